"""Images in folders, with captions beside them or in a table.

Captions stand in NAME.txt beside NAME.jpg (one a line), or in a metadata.jsonl or metadata.csv anywhere in the tree
(`file_name`, `caption`). In a folder that has such a table, only the images that it names are read.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from transfusion_jax.config import READERS
from transfusion_jax.data.readers import files, lines, records
from transfusion_jax.data.readers.fields import is_image, unread_image
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RecordError
from transfusion_jax.data.readers.records import ImageFolder
from transfusion_jax.errors import require, some

TABLES = ("metadata.jsonl", "metadata.csv")
COLUMNS = 1 << 12  # of a table: each row has a value for every one
LINE = 1 << 22  # characters of a table's line, each of which may end a value


@dataclass(frozen=True)
class FolderEntry:
    """An image and its captions, and how either is read; both raise RecordError where it cannot be used."""

    key: str
    image: Callable[[], bytes]
    captions: Callable[[], Any]


Entries = list[FolderEntry | Fault]


def captioned_images(
    entries: Callable[[str, ReadOptions], Entries],
    options: tuple[str, ...],
    strays: Callable[[str], Iterable[Fault]] = lambda path: (),
    state: Callable[[str], str] = files.state,
) -> Format:
    """The format of images that `entries(path, options)` lists with their captions.

    What else is there, `strays(path)`, is told of first, and is not counted. Whoever reads shard after shard of a
    path lists its entries once, as long as its `state(path)` stays the same.
    """

    def shards(path: str, options: ReadOptions) -> list[InputShard]:
        _listed.cache_clear()  # whoever lists shards need not read one
        count, size = len(entries(path, options)), options.shard_size
        found = [InputShard(path, begin, min(begin + size, count)) for begin in range(0, count, size)]
        return found or [InputShard(path) for _ in itertools.islice(strays(path), 1)]

    def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
        if not shard.begin:
            yield from strays(shard.path)
        listed = _listed(entries, shard.path, options, state(shard.path))
        for entry in listed[shard.begin : shard.end or None]:
            if isinstance(entry, Fault):
                yield entry
                continue
            try:
                yield from records.pictured(entry.key, [entry.image()], entry.captions(), ImageFolder(""))
            except RecordError as error:
                yield Fault(entry.key, str(error))

    return Format(shards, read, options=("shard_size", *options))


@lru_cache(maxsize=1)
def _listed(entries: Callable[[str, ReadOptions], Entries], path: str, options: ReadOptions, state: str) -> Entries:
    return entries(path, options)


def _folder_state(path: str) -> str:
    names = files.inside(path)
    return f"{hash(tuple(names))} {[files.state(files.join(path, table)) for table in _tables(names)]}"


def _folder_entries(path: str, options: ReadOptions) -> Entries:
    require(files.is_folder(path), f"{path} is not a folder: name the one that the images lie in")
    names, folder = files.inside(path), ImageFolder(path, options.allow_paths)
    tables, there = _tables(names), set(names)
    require(
        options.text_column is None or bool(tables),
        f"--text-column needs a {' or '.join(TABLES)} in {path}, and there is none",
    )
    of_folders = _by_folder(tables)
    rows = [entry for table in tables for entry in _table_entries(folder, table, options.text_column)]
    named = {_absolute(path, entry.key) for entry in rows if isinstance(entry, FolderEntry)}
    others = (name for name in names if is_image(name) and _absolute(path, name) not in named)
    return rows + [
        Fault(name, f"not named in {table}")
        if (table := _table_over(name, of_folders))
        else FolderEntry(name, partial(folder.read, name), partial(_lines, folder, name, there))
        for name in others
    ]


def _absolute(folder: str, name: str) -> str:
    """A file's path, the same however its name is written."""
    return os.path.abspath(files.join(folder, name))


def _by_folder(tables: Iterable[str]) -> dict[str, str]:
    return {table.rpartition("/")[0]: table for table in tables}


def _table_over(name: str, tables: Mapping[str, str]) -> str:
    """The table in a file's folder or in the nearest one above, if there is one."""
    while name:
        name = name.rpartition("/")[0]
        if name in tables:
            return tables[name]
    return ""


def images_and_captions(names: Sequence[str]) -> tuple[list[str], set[str]]:
    """The images among a folder's files, and what holds captions of theirs: tables, or texts of their names.

    Where there are no images, a metadata.jsonl may hold records of any kind.
    """
    images = [name for name in names if is_image(name)]
    tables = _tables(names) if images else [name for name in _tables(names) if name.endswith(".csv")]
    return images, {*tables, *(f"{stem_of(image)}.txt" for image in images)} & set(names)


def _tables(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.rpartition("/")[2] in TABLES]


def _strays(path: str) -> Iterator[Fault]:
    """What in a folder is no image, holds no captions of one, and is of no format."""
    names = files.inside(path)
    tables = _by_folder(_tables(names))
    others = tuple(suffix for format in READERS.values() for suffix in format.suffixes)
    stems = {stem_of(name) for name in names if is_image(name)}
    for name in names:
        ending = name[len(stem_of(name)) :]
        if ending == ".txt" and (table := _table_over(name, tables)):
            yield Fault(name, f"not used: the captions are those of {table}")
        elif ending == ".txt" and stem_of(name) not in stems:
            yield Fault(name, "captions of no image: none of this name is here that can be read")
        elif ending == ".json" and stem_of(name) in stems and not _is_about_one(path, name):
            yield Fault(
                name, "not read: an image has its name, and it is no JSON object about that; rename one of them"
            )
        elif not (
            is_image(name) or ending == ".txt" or name.rpartition("/")[2] in TABLES or name.lower().endswith(others)
        ):
            linked = "a link to a folder" if files.is_folder(files.join(path, name)) else ending or "no ending"
            yield Fault(name, unread_image(name) or f"no image by its name: {linked}")


def _without_name(row: Mapping[str, Any]) -> str:
    return f"no file_name: its fields are {some([str(field)[:40] for field in row])}"


def _is_about_one(path: str, name: str) -> bool:
    """Whether a file beside an image is a JSON object; in a bucket, where looking is slow, it is taken for one."""
    try:
        return files.is_url(path) or records.json_object(ImageFolder(path).read(name, "JSON")) is not None
    except RecordError:
        return False


def stem_of(name: str) -> str:
    """A path without its ending."""
    return os.path.splitext(name)[0]


def _lines(folder: ImageFolder, image: str, there: set[str]) -> list[bytes] | None:
    """The captions beside an image."""
    beside = stem_of(image) + ".txt"
    if beside not in there:
        return None
    data = folder.read(beside, "caption")
    if data.count(b"\n") + data.count(b"\r") > 2 * records.COUNTED:
        raise RecordError(f"too many captions: an image may have {records.COUNTED:,}")
    return [line for line in data.splitlines() if line.strip()] or [b""]


def _table_entries(folder: ImageFolder, table: str, text_column: str | None) -> Iterator[FolderEntry | Fault]:
    rows = _csv_rows if table.endswith(".csv") else _jsonl_rows
    if what := files.what_is(files.join(folder.path, table)):
        yield Fault(table, f"no regular file: {what}")
        return
    try:
        path = folder.path_of(table, "table")
    except RecordError as error:
        yield Fault(table, str(error))
        return
    inner = files.folder_of(table)  # names in a table are relative to it
    for key, row in rows(path):
        name = row if isinstance(row, Fault) else row.get("file_name")
        if isinstance(row, Fault) or not isinstance(name, str) or not name:
            yield Fault(f"{table}{key}", row.reason if isinstance(row, Fault) else _without_name(row))
            continue
        captions = records.caption_of(row, text_column)
        image = files.join(inner, name)
        yield FolderEntry(image, partial(folder.read, image), partial(same, captions))


def _jsonl_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any] | Fault]]:
    for offset, line in lines.records_of_shard(InputShard(path)):
        key = f"@{offset}"
        try:
            if isinstance(line, Fault) or line.strip():
                yield key, line if isinstance(line, Fault) else records.json_object(line)
        except RecordError as error:
            yield key, Fault(key, str(error))


def _csv_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any] | Fault]]:
    """The rows, up to one in which a quote may be unclosed: what follows it may be a part of a caption."""
    read = quotes = 0  # lines, and quotes of a row

    def counted(text: io.TextIOWrapper) -> Iterator[str]:
        nonlocal read, quotes
        while line := text.readline(LINE):
            read += 1
            quotes += line.count('"')
            if len(line) == LINE:
                raise csv.Error(f"a line of {LINE:,} characters or more, and the rows after it are not read")
            yield line

    with files.open_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")  # bad bytes are found in captions
        rows = csv.DictReader(counted(text), strict=True)
        if fault := _unfit_columns(rows):
            yield "", fault
            return
        while True:
            quotes = 0
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                rest = "; a quote may be unclosed, and the rows after it are not read" if quotes % 2 else ""
                yield f"@{read}", Fault("", f"not CSV: {error}{rest}")
                if rest:
                    return
            else:
                doubt = _doubt(row)
                yield f"@{read}", Fault("", doubt) if doubt else row


def _unfit_columns(rows: csv.DictReader[str]) -> Fault | None:
    """What is wrong with a table's first line, which costs all of its rows."""
    try:
        columns = Counter(rows.fieldnames or ())
    except csv.Error as error:
        return Fault("", f"not CSV: {error}, in the line of the columns")
    if columns.total() > COLUMNS:
        return Fault("", f"too many columns: {columns.total():,}, and a table may have {COLUMNS:,}")
    twice = next((name for name, times in columns.items() if name and times > 1), None)
    return Fault("", f"two columns are called {twice[:80]!r}") if twice else None


def _doubt(row: Mapping[str | None, Any]) -> str:
    """Why a row may not be what was meant, if it may not."""
    if None in row:
        return "more fields than columns: a text that holds a comma needs quotes around it"
    broken = [value for value in row.values() if isinstance(value, str) and ("\n" in value or "\r" in value)]
    if any(map(_names_image, (line for value in broken for line in value.splitlines()[1:]))):
        return "a text of several lines, of which one is like a row: a quote may be unclosed"
    return ""


def _names_image(line: str) -> bool:
    """Whether a line is like a row of a table."""
    return "," in line and any(is_image(part.strip(' "')) for part in line.split(","))


def same(captions: Any) -> Any:
    """Captions that are there already, as `FolderEntry` asks for them."""
    return captions


FORMAT = captioned_images(_folder_entries, ("text_column", "allow_paths"), _strays, _folder_state)
