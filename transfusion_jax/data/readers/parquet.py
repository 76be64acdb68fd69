"""Parquet tables: a row is an image with its captions, a text, or lists of images and texts as in OBELICS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transfusion_jax.data.readers import fields, files, records
from transfusion_jax.data.readers.format import Format, ReadOptions, UnfitFile, flag, package
from transfusion_jax.data.readers.parquet_pages import Pages, claimed_pages, pages_of
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RecordError
from transfusion_jax.data.readers.records import ImageFolder

IMAGE_NAMES = ("image", "images", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
TEXT_NAMES = ("texts", *records.CAPTION_NAMES, "txt")
BATCH = 32  # rows in memory at a time, fewer where they may be large
PAGE = 1 << 29  # bytes, unpacked, of a compressed page of each column together, and of their dictionaries
VALUES = 1 << 25  # of a dictionary, and of a column of lists in a row group, all of which one row may hold


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
        try:
            columns = _columns(shard.path, table.schema_arrow, options)
        except UnfitFile as error:
            yield Fault("file", f"columns that cannot be used: {error}")
            return
        starts = list(itertools.accumulate(counts, initial=0))
        for group in range(shard.begin, shard.end or len(counts)):
            number = starts[group]
            try:
                for image, text in _rows(shard.path, file, table, group, columns):
                    yield from _documents(str(number), image, text, columns, folder)
                    number += 1
            except RecordError as error:
                yield Fault(str(number), f"row group too large: {error}")
            except _broken() as error:
                yield Fault(str(number), f"broken row group: {files.damage(error)}")


def _broken() -> tuple[type[Exception], ...]:
    return (_arrow().ArrowException, ValueError, *files.DAMAGE)


def _arrow() -> Any:
    return package("pyarrow", "transfusion-jax[prepare]")


def _open(file: Any, **options: Any) -> tuple[Any, list[int]]:
    """The table and the rows of each of its row groups."""
    parquet = package("pyarrow.parquet", "transfusion-jax[prepare]")
    table = parquet.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True, **options)
    return table, [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]


def _rows(path: str, file: Any, table: Any, group: int, columns: _Columns) -> Iterator[tuple[Any, Any]]:
    """Image and text of each row as arrays of one value.

    Raises:
        RecordError: what must be unpacked at once would fill the memory.
    """
    names = [name for name in (columns.image, columns.text) if name]
    pages = _pages(path, file, table, group, names)
    widest = sum(max(found.largest, found.dictionary) for found in pages.values())
    size = min(max(files.LARGEST // max(widest, 1), 1), BATCH)
    if pointers := _lists_of_pointers(table, pages):
        table, _ = _open(file, metadata=table.metadata, read_dictionary=pointers)
    for batch in table.iter_batches(size, row_groups=[group], columns=names, use_threads=False):
        for row in range(batch.num_rows):
            image, text = (batch.column(name).slice(row, 1) for name in (names[0], names[-1]))
            yield image, text


def _pages(path: str, file: Any, table: Any, group: int, names: list[str]) -> dict[int, Pages]:
    """The pages of some columns in a row group, by the number of each of their parts.

    Raises:
        RecordError: they are too large, or too many.
    """
    about, found, together = table.metadata.row_group(group), {}, 0
    for number in range(about.num_columns):
        chunk = about.column(number)
        if chunk.path_in_schema not in names and not chunk.path_in_schema.startswith(tuple(f"{n}." for n in names)):
            continue
        # a bucket's files are not read twice where they need not be
        believed = files.is_url(path) and chunk.total_uncompressed_size <= files.LARGEST
        pages = found[number] = claimed_pages(chunk) if believed else pages_of(file, chunk)
        listed = table.schema.column(number).max_repetition_level > 0
        together += pages.swollen
        for size, most, what in (
            (pages.entries, VALUES, "a dictionary of {:,} values, and one may have {:,}"),
            (together, PAGE, "compressed pages of {:,} bytes, and those of its columns may have {:,}"),
            (pages.shared if listed else 0, PAGE, "lists in DELTA_BYTE_ARRAY of {:,} bytes, and it may have {:,}"),
            (pages.values if listed else 0, VALUES, "{:,} values in lists, and it may have {:,}"),
        ):
            if size > most:
                raise RecordError(f"{what.format(size, most)}: write it with smaller row groups and pages")
    return found


def _lists_of_pointers(table: Any, pages: dict[int, Pages]) -> list[str]:
    """Columns of lists to be read as pointers into dictionaries: a row may hold a value of one any number of times.

    What they hold without a dictionary is kept until the row group's end, so those that hold much are left out.
    """
    columns = {number: table.schema.column(number) for number in pages}
    return [
        column.path
        for number, column in columns.items()
        if column.max_repetition_level > 0
        and column.physical_type == "BYTE_ARRAY"
        and pages[number].dictionary > 0
        and pages[number].data <= files.LARGEST
    ]


def _documents(
    key: str, image: Any, text: Any, columns: _Columns, folder: ImageFolder
) -> Iterator[RawDocument | Fault]:
    try:
        image, text = _value(image), _value(text)
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


def _value(column: Any) -> Any:
    """The one value of an array.

    Raises:
        RecordError: it is too large.
    """
    inner = column
    while _is_list(inner.type):
        inner = inner.flatten()
        records.check_parts(len(inner))
    if _size(inner) > files.LARGEST:
        raise RecordError(f"value too large: above {files.LARGEST >> 20} MiB")
    return column[0].as_py()


def _size(values: Any) -> int:
    """The bytes of an array's values, counted as often as they are pointed to."""
    if _arrow().types.is_struct(values.type):
        return sum(map(_size, values.flatten()))
    if _arrow().types.is_dictionary(values.type):
        compute = package("pyarrow.compute", "transfusion-jax[prepare]")
        counted = values.indices.drop_null().value_counts()
        lengths = compute.binary_length(values.dictionary.take(counted.field("values"))).cast("int64")
        return int(compute.sum(compute.multiply(lengths, counted.field("counts"))).as_py() or 0)
    return int(values.nbytes)


def _columns(path: str, schema: Any, options: ReadOptions) -> _Columns:
    present = f"{path} has the columns {', '.join(schema.names) or '(none)'}"
    for option in ("image_column", "text_column"):
        name = getattr(options, option)
        _require(name in (None, *schema.names), f"{flag(option)} is {name!r}, but {present}")
    image = options.image_column or next((name for name in IMAGE_NAMES if name in schema.names), None)
    text = options.text_column or next((name for name in TEXT_NAMES if name in schema.names), None)
    sure = options.text_column is not None
    for name in (image, text):
        _require(schema.names.count(name) < 2, f"several columns are called {name!r}: {present}")
    kinds = {field.name: _inner(field.type) for field in schema}
    odd = fields.unknown_images(
        {n: n for n, kind in kinds.items() if not _arrow().types.is_primitive(kind)}, ("text",)
    )
    if text is None or (image is None and not sure and (text != "text" or odd)):
        raise UnfitFile(
            f"{present}: name those of images and texts with --image-column and --text-column; "
            "images that are URLs must be fetched first, as img2dataset does"
        )
    several = [name for name, kind in kinds.items() if name == image or _holds_images(name, kind)]
    _require(
        image is None or options.image_column is not None or len(several) < 2,
        f"several columns may hold images, {', '.join(several)}: name one with --image-column",
    )
    types = _arrow().types
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view)
    lists = [_is_list(schema.field(name).type) for name in (image, text) if name]
    for name, tests in ((text, texts + binaries), (image, (*texts, *binaries, types.is_struct))):
        if name is not None:
            inner = _inner(schema.field(name).type)
            _require(
                any(test(inner) for test in tests), f"column {name!r} cannot be used, it is {inner}: {present}"
            )
    _require(
        lists in ([True, True], [False, True], [False, False], [False]),
        f"lists of images need lists of texts beside them, and lists of texts an image: {present}",
    )
    return _Columns(image, text, lists == [True, True], sure)


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise UnfitFile(message)


def _holds_images(name: str, kind: Any) -> bool:
    """Whether a column's values are files, by how Hugging Face writes them, or by its name."""
    types = _arrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(binary and (name in IMAGE_NAMES or fields.SHOWS.search(name)))


def _is_list(kind: Any) -> bool:
    types = _arrow().types
    return any(test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _inner(kind: Any) -> Any:
    """The type of a list's values, or of a dictionary's."""
    return _inner(kind.value_type) if _is_list(kind) or _arrow().types.is_dictionary(kind) else kind


OPTIONS = ("image_column", "text_column", "images", "allow_paths", "shard_size")
FORMAT = Format(_shards, _read, (".parquet",), OPTIONS)
