"""Data sets of TFDS in ArrayRecord files, by `tfds:NAME[/CONFIG][:VERSION]:SPLIT`, read without TensorFlow."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import records
from transfusion_jax.data.readers.format import Format, ReadOptions, package
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument

_NAME = re.compile(r"(?P<name>[^:\[\]]+(:\d+\.\d+\.\d+)?):(?P<split>[^:].*)")


def _shards(path: str, options: ReadOptions) -> list[InputShard]:
    count, size = len(_source(path, options)[0]), options.shard_size
    return [InputShard(path, begin, min(begin + size, count)) for begin in range(0, count, size)]


def _read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    source, image, text = _source(shard.path, options)
    sure = options.text_column is not None
    for number in range(shard.begin, shard.end or len(source)):
        key = str(number)
        try:
            record = source[number]
        except (RuntimeError, ValueError, LookupError) as error:
            yield Fault(key, f"broken record: {' '.join(str(error).split())[:200]}")
            continue
        texts = functools.reduce(operator.getitem, text, record)
        texts = texts if isinstance(texts, bytes) else list(texts)
        yield from records.pairs(key, record[image], texts) if image else records.document(key, texts, sure)


def _source(path: str, options: ReadOptions) -> tuple[Sequence[Any], str | None, tuple[str, ...]]:
    """The records, and the names on the way to their image, if any, and to their text."""
    match = _NAME.fullmatch(path)
    if match is None:
        raise ConfigError(f"tfds:{path} is not of the form tfds:NAME[/CONFIG][:VERSION]:SPLIT")
    tfds = package("tensorflow_datasets", "transfusion-jax[tfds]")
    try:
        builder = tfds.builder(match["name"], data_dir=options.data_dir)
        image, text = _features(tfds.features, builder.info.features or {}, path, options)
        decoders = {image: tfds.decode.SkipDecoding()} if image else None
        return builder.as_data_source(match["split"], decoders=decoders), image, text
    except ConfigError:
        raise
    except (
        ValueError,  # no such set or split
        NotImplementedError,  # TFDS's own, where files of that format have no random access
        AssertionError,  # TFDS's own, where the set's version was not built
        OSError,
    ) as error:
        reason = str(error).partition("\n")[0][:300]
        raise ConfigError(
            f"{path} cannot be read ({reason}): prepare it with `tfds build NAME --file_format=array_record`, "
            "and say where it lies with --data-dir"
        ) from error


def _features(
    kinds: Any, features: Mapping[str, Any], path: str, options: ReadOptions
) -> tuple[str | None, tuple[str, ...]]:
    images = [name for name, feature in features.items() if isinstance(feature, kinds.Image)]
    texts = {name: way for name, feature in features.items() if (way := _text(kinds, name, feature))}
    image = options.image_column or (images[0] if len(images) == 1 else None)
    named = [name for name in records.CAPTION_NAMES if name in texts]
    text = options.text_column or next(iter(named or (texts if len(texts) == 1 else ())), None)
    if image not in (None, *images) or text not in texts or (image is None and images):
        there = [", ".join(sorted(names)) or "(none)" for names in (images, texts)]
        raise ConfigError(
            f"{path} has the images {there[0]} and the texts {there[1]}: "
            "name one of each with --image-column and --text-column"
        )
    return image, texts[text]


def _text(kinds: Any, name: str, feature: Any) -> tuple[str, ...]:
    """The names on the way to a text, or to a list of texts; none if the feature holds no text."""
    if isinstance(feature, kinds.Text):
        return (name,)
    inner = feature.feature if isinstance(feature, kinds.Sequence) else None
    if isinstance(inner, kinds.FeaturesDict):
        found = [
            key for key in (*records.CAPTION_NAMES, "raw") if isinstance(dict(inner.items()).get(key), kinds.Text)
        ]
        return (name, found[0]) if found else ()
    return (name,) if isinstance(inner, kinds.Text) else ()


FORMAT = Format(_shards, _read, options=("image_column", "text_column", "data_dir", "shard_size"), is_set=True)
