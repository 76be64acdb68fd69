"""Readers of the formats that people have: from paths and URLs to raw documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transfusion_jax.config import ConfigError
from transfusion_jax.config.checks import one_of
from transfusion_jax.data.readers import (
    digits,
    edits,
    emoji,
    files,
    folder,
    jsonl,
    parquet,
    prose,
    shapes,
    tfds,
    webdataset,
)
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText

FILES = (webdataset.FORMAT, parquet.FORMAT, jsonl.FORMAT, folder.FOLDER, folder.COCO)
SETS = (
    tfds.FORMAT,
    digits.FORMAT,
    prose.FORMAT,
    emoji.FORMAT,
    shapes.FORMAT,
    edits.FORMAT,
)  # by name, as in shapes:20000
FORMATS: Mapping[str, Format] = {format.name: format for format in FILES + SETS}
ALWAYS = ("image_size",)  # options that hold for every format

__all__ = [
    "FORMATS",
    "Fault",
    "Format",
    "InputShard",
    "RawDocument",
    "RawImage",
    "RawText",
    "ReadOptions",
    "input_shards",
    "origin",
]


def input_shards(inputs: Sequence[str], format: str | None, options: ReadOptions) -> list[InputShard]:
    """The parts of the inputs, in order.

    An input is a file, a folder, a pattern such as `a/*.tar`, a URL of one of those, or a data set's name such as
    `tfds:coco_captions:train` or `emoji`. Files of a folder or a pattern are sorted. Without `format`, names tell.

    Raises:
        ConfigError: nothing is found, the inputs are of several formats, or an option does not fit theirs.
    """
    if format is not None:
        one_of("the format", format, FORMATS)
    found = [pair for path in inputs for pair in _expand(path, format)]
    names = sorted({name for name, _ in found})
    if len(names) > 1:
        raise ConfigError(
            f"the inputs are of several formats ({', '.join(names)}): prepare each into its own folder"
        )
    for name in names:
        _refuse_unused(FORMATS[name], options)
    shards = [shard for name, path in dict.fromkeys(found) for shard in FORMATS[name].shards(path, options)]
    if not shards:
        raise ConfigError(f"there is nothing to read in {', '.join(inputs) or 'no inputs'}")
    return shards


def origin(shard: InputShard) -> str:
    """What a shard is a part of: a path, or the name of a set."""
    is_set = FORMATS[shard.format] in SETS
    return f"{shard.format}:{shard.path}".removesuffix(":") if is_set else shard.path


def _expand(path: str, format: str | None) -> list[tuple[str, str]]:
    """The format and the path of each input that a path stands for."""
    name, _, rest = path.partition(":")
    if name in [known.name for known in SETS]:
        return [(name, rest)]
    files.check_reachable(path)
    if files.is_folder(path):
        return _expand_folder(path, format)
    paths = [path] if files.exists(path) else files.matches(path)
    if not paths:
        raise ConfigError(f"nothing matches {path}: name files, a folder or a pattern such as 'data/*.tar'")
    return [(format or _format_of(p), p) for p in paths]


def _expand_folder(path: str, format: str | None) -> list[tuple[str, str]]:
    if format is not None and not FORMATS[format].suffixes:
        return [(format, path)]
    names = files.inside(path)
    if format is None and any(map(folder.is_image, names)):
        return [(folder.FOLDER.name, path)]
    wanted = [FORMATS[format]] if format else FORMATS.values()
    found = [
        (f.name, files.join(path, name)) for name in names for f in wanted if name.lower().endswith(f.suffixes)
    ]
    if not found:
        raise ConfigError(f"{path} holds no {format or 'tar, Parquet, JSONL or image'} files")
    return found


def _format_of(path: str) -> str:
    for format in FORMATS.values():
        if format.suffixes and path.lower().endswith(format.suffixes):
            return format.name
    raise ConfigError(f"the name of {path} does not say its format: name one of {', '.join(FORMATS)}")


def _refuse_unused(format: Format, options: ReadOptions) -> None:
    for name, value in vars(options).items():
        if value != getattr(ReadOptions, name) and name not in (*ALWAYS, *format.options):
            raise ConfigError(f"{name} means nothing to {format.name}: leave it out")
