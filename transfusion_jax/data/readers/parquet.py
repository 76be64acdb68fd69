"""Parquet tables: a row is an image with its captions, a text, or lists of images and texts as in OBELICS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import fields, files, records
from transfusion_jax.data.readers.format import Format, ReadOptions, flag, package
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RecordError
from transfusion_jax.data.readers.records import ImageFolder
from transfusion_jax.errors import require

IMAGE_NAMES = ("image", "images", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
TEXT_NAMES = ("texts", *records.CAPTION_NAMES, "txt")
BATCH = 32  # rows in memory at a time, fewer where they are large


@dataclass(frozen=True)
class _Columns:
    image: str | None
    text: str
    interleaved: bool  # both are lists
    sure: bool  # whether an option names the text's


def _shards(path: str, options: ReadOptions) -> list[InputShard]:
    """Runs of row groups that hold at least `shard_size` rows."""
    with files.open_file(path) as file:
        try:
            table, counts = _open(file)
        except _broken() as error:
            files.damage(error)
            return [InputShard(path)]  # reading it says what is wrong
        _columns(path, table.schema_arrow, options)
    cuts, rows = [0], 0
    for group, count in enumerate(counts, 1):
        rows += count
        if rows >= options.shard_size or group == len(counts):
            cuts, rows = [*cuts, group], 0
    return [InputShard(path, begin, end) for begin, end in itertools.pairwise(cuts)]


def _read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    folder = ImageFolder.of(shard.path, options)
    with files.open_file(shard.path) as file:
        try:
            table, counts = _open(file)
        except _broken() as error:
            yield Fault("file", f"broken Parquet file: {files.damage(error)}")
            return
        columns = _columns(shard.path, table.schema_arrow, options)
        for group in range(shard.begin, shard.end or len(counts)):
            number = sum(counts[:group])
            try:
                for image, text in _rows(table, group, columns):
                    yield from _documents(str(number), image, text, columns, folder)
                    number += 1
            except _broken() as error:
                yield Fault(str(number), f"broken row group: {files.damage(error)}")


def _broken() -> tuple[type[Exception], ...]:
    return (_arrow().ArrowException, ValueError, *files.DAMAGE)


def _arrow() -> Any:
    return package("pyarrow", "transfusion-jax[prepare]")


def _open(file: Any) -> tuple[Any, list[int]]:
    """The table and the rows of each of its row groups."""
    parquet = package("pyarrow.parquet", "transfusion-jax[prepare]")
    table = parquet.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
    return table, [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]


def _rows(table: Any, group: int, columns: _Columns) -> Iterator[tuple[Any, Any]]:
    """Image and text of each row as Arrow's scalars."""
    names = [name for name in (columns.image, columns.text) if name]
    about = table.metadata.row_group(group)
    rows = files.LARGEST * about.num_rows // max(about.total_byte_size, 1)
    size = min(max(rows, 1), BATCH)
    for batch in table.iter_batches(size, row_groups=[group], columns=names, use_threads=False):
        texts = batch.column(columns.text)
        yield from zip(batch.column(columns.image) if columns.image else texts, texts, strict=True)


def _documents(
    key: str, image: Any, text: Any, columns: _Columns, folder: ImageFolder
) -> Iterator[RawDocument | Fault]:
    try:
        text, image = text.as_py(), image.as_py()
        if columns.interleaved:
            yield from records.page(key, records.aligned(text, image), folder)
        elif columns.image:
            yield from records.pictured(key, [image], text, folder)
        else:
            yield from records.document(key, text, columns.sure)
    except UnicodeDecodeError:
        yield Fault(key, "text is not UTF-8")
    except RecordError as error:
        yield Fault(key, str(error))


def _columns(path: str, schema: Any, options: ReadOptions) -> _Columns:
    present = f"{path} has the columns {', '.join(schema.names) or '(none)'}"
    for option in ("image_column", "text_column"):
        name = getattr(options, option)
        require(name in (None, *schema.names), f"{flag(option)} is {name!r}, but {present}")
    image = options.image_column or next((name for name in IMAGE_NAMES if name in schema.names), None)
    text = options.text_column or next((name for name in TEXT_NAMES if name in schema.names), None)
    sure = options.text_column is not None
    kinds = {name: _inner(schema.field(name).type) for name in schema.names}
    odd = fields.unknown_images(
        {n: n for n, kind in kinds.items() if not _arrow().types.is_primitive(kind)}, ("text",)
    )
    if text is None or (image is None and not sure and (text != "text" or odd)):
        raise ConfigError(
            f"{present}: name those of images and texts with --image-column and --text-column; "
            "images that are URLs must be fetched first, as img2dataset does"
        )
    types = _arrow().types
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view)
    lists = [_is_list(schema.field(name).type) for name in (image, text) if name]
    for name, tests in ((text, texts + binaries), (image, (*texts, *binaries, types.is_struct))):
        if name is not None:
            inner = _inner(schema.field(name).type)
            require(any(test(inner) for test in tests), f"column {name!r} cannot be used, it is {inner}: {present}")
    require(
        lists in ([True, True], [False, True], [False, False], [False]),
        f"lists of images need lists of texts beside them, and lists of texts an image: {present}",
    )
    return _Columns(image, text, lists == [True, True], sure)


def _is_list(kind: Any) -> bool:
    types = _arrow().types
    return any(test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _inner(kind: Any) -> Any:
    """The type of a list's values, or of a dictionary's."""
    return _inner(kind.value_type) if _is_list(kind) or _arrow().types.is_dictionary(kind) else kind


OPTIONS = ("image_column", "text_column", "images", "allow_paths", "shard_size")
FORMAT = Format(_shards, _read, (".parquet",), OPTIONS)
