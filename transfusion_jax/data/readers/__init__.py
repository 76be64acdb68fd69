"""Readers of the formats that people have: from paths and URLs to raw documents."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from transfusion_jax.config import READERS, ConfigError
from transfusion_jax.data.readers import files
from transfusion_jax.data.readers.fields import is_image, unread_image
from transfusion_jax.data.readers.folder import images_and_captions, stem_of
from transfusion_jax.data.readers.format import Format, ReadOptions, UnfitFile, flag
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText
from transfusion_jax.errors import encodable

ALWAYS = ("image_size", "native")  # options that hold for every format

__all__ = [
    "Fault",
    "Format",
    "InputShard",
    "RawDocument",
    "RawImage",
    "RawText",
    "ReadOptions",
    "input_shards",
    "origin",
    "read_shard",
]


def input_shards(inputs: Sequence[str], format: str | None, options: ReadOptions) -> list[InputShard]:
    """The parts of the inputs, in order.

    An input is a file, a folder, a pattern such as `a/*.tar`, a URL of one of those, or a data set's name such as
    `tfds:coco_captions:train` or `emoji`. Files of a folder or a pattern are sorted. Without `format`, names tell.

    Inputs may be of several formats.

    Raises:
        ConfigError: nothing is found, an option does not fit the formats, or no file of an input can be used.
    """
    if format is not None:
        READERS.check("--format", format)
    found = {path: _expand(path, format) for path in inputs}
    _refuse_unused(sorted({name for pairs in found.values() for name, _ in pairs}), options)
    shards = list(dict.fromkeys(shard for pairs in found.values() for shard in _shards_of(pairs, options)))
    if not shards:
        raise ConfigError(f"there is nothing to read in {', '.join(inputs) or 'no inputs'}")
    return shards


def read_shard(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """What a shard holds; always the same, in the same order, under keys that UTF-8 can hold."""
    if not READERS[shard.format].is_set and (what := files.what_is(shard.path)):
        yield Fault("file", f"no regular file: {what}")
        return
    for record in READERS[shard.format].read(shard, options):
        key = encodable(record.key)
        yield record if key == record.key else replace(record, key=key)


def origin(shard: InputShard) -> str:
    """What a shard is a part of: a path, or the name of a set."""
    path = encodable(shard.path)
    return f"{shard.format}:{path}".removesuffix(":") if READERS[shard.format].is_set else path


def _shards_of(found: Sequence[tuple[str, str]], options: ReadOptions) -> list[InputShard]:
    """The parts of the files that an input stands for; one that does not fit is read for its fault.

    Raises:
        UnfitFile: none of them fits.
    """
    shards: list[InputShard] = []
    unfit: list[UnfitFile] = []
    for name, path in found:
        try:
            parts = [InputShard(path)] if files.what_is(path) else READERS[name].shards(path, options)
        except UnfitFile as error:
            unfit.append(error)
            parts = [InputShard(path)]
        shards += [replace(part, format=name) for part in parts]
    if unfit and len(unfit) == len(found):
        raise unfit[0]
    return shards


def _expand(path: str, format: str | None) -> list[tuple[str, str]]:
    """The format and the path of each input that a path stands for."""
    name, _, rest = path.partition(":")
    if name in READERS and READERS[name].is_set:
        return [(name, rest)]
    path = os.path.expanduser(path.removeprefix("file://"))
    files.check_reachable(path)
    if files.is_folder(path):
        return _expand_folder(path, format)
    if what := files.what_is(path):
        raise ConfigError(f"{path} is {what}: name files, a folder or a pattern such as 'data/*.tar'")
    paths = [path] if files.exists(path) else _without_companions(files.matches(path))
    if not paths:
        raise ConfigError(f"nothing matches {path}: name files, a folder or a pattern such as 'data/*.tar'")
    return [(format or _format_of(p), p) for p in paths]


def _expand_folder(path: str, format: str | None) -> list[tuple[str, str]]:
    if format is not None and not READERS[format].suffixes:
        return [(format, path)]
    names = _without_companions(files.inside(path))
    images, captioned = images_and_captions(names) if format is None else ([], set())
    of_images = {files.join(path, f"{stem_of(image)}.json") for image in images}  # which say more about them
    wanted = {name: READERS[name].suffixes for name in ([format] if format else READERS)}
    found = [
        (known, files.join(path, name))
        for name in names
        for known, suffixes in wanted.items()
        if name.lower().endswith(suffixes) and name not in captioned
    ]
    others = [(known, file) for known, file in found if file not in of_images]
    named = any("images" in READERS[known].options for known, _ in others)  # by lines or rows, which have captions
    if captioned or (images and not named):
        found = [("folder", path), *others]
    if not found:
        unread = next(filter(None, map(unread_image, names)), "")
        said = f"{path} holds no {format or 'tar, Parquet, JSONL or image'} files"
        raise ConfigError(f"{said}: {unread}" if unread else said)
    return found


def _without_companions(names: Sequence[str]) -> list[str]:
    """Without what img2dataset writes beside 00000.tar, or a folder 00000: 00000.parquet and 00000_stats.json.

    Its shards are numbers. Under other names, what is beside a shard may be data.
    """
    tars, tables = ({n.removesuffix(e) for n in names if n.endswith(e)} for e in (".tar", ".parquet"))
    tars |= {name.rpartition("/")[0] for name in names if is_image(name)}
    numbers = {stem for stem in tars | tables if stem.rpartition("/")[2].isdecimal()}
    beside = {f"{stem}.parquet" for stem in tars & numbers} | {f"{stem}_stats.json" for stem in numbers}
    return [name for name in names if name not in beside]


def _format_of(path: str) -> str:
    for name, format in READERS.items():
        if format.suffixes and path.lower().endswith(format.suffixes):
            return name
    raise ConfigError(f"the name of {path} does not say its format: name one of {', '.join(READERS)}")


def _refuse_unused(formats: Sequence[str], options: ReadOptions) -> None:
    honoured = {*ALWAYS, *(name for format in formats for name in READERS[format].options)}
    for name, value in vars(options).items():
        if formats and value != getattr(ReadOptions, name) and name not in honoured:
            raise ConfigError(f"{flag(name)} means nothing to {' and '.join(formats)}: leave it out")
