"""Images in folders, with captions beside them or in a table.

Captions stand in NAME.txt beside NAME.jpg (one a line), or in a metadata.jsonl or metadata.csv anywhere in the tree
(`file_name`, `caption`). Where there is such a table, only the images that it names are read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from transfusion_jax.data.readers import files, jsonl, records
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument
from transfusion_jax.data.readers.webdataset import IMAGES
from transfusion_jax.errors import require

TABLES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class FolderEntry:
    """An image and where its captions are."""

    key: str
    image: str  # its path
    captions: Callable[[], Any]


Entries = list[FolderEntry | Fault]


def is_image(path: str) -> bool:
    """Whether a path ends as an image's does."""
    name = path.rpartition("/")[2].lower()
    return name.endswith(tuple(f".{extension}" for extension in IMAGES)) and not name.startswith(".")


def captioned_images(entries: Callable[[str, ReadOptions], Entries], options: tuple[str, ...]) -> Format:
    """The format of images that `entries(path, options)` lists with their captions."""

    def shards(path: str, options: ReadOptions) -> list[InputShard]:
        count, size = len(entries(path, options)), options.shard_size
        return [InputShard(path, begin, min(begin + size, count)) for begin in range(0, count, size)]

    def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
        for entry in entries(shard.path, options)[shard.begin : shard.end or None]:
            if isinstance(entry, Fault):
                yield entry
                continue
            try:
                yield from records.pairs(entry.key, records.read_image(entry.image), entry.captions())
            except records.RecordError as error:
                yield Fault(entry.key, str(error))

    return Format(shards, read, options=("shard_size", *options))


def _folder_entries(path: str, options: ReadOptions) -> Entries:
    require(files.is_folder(path), f"{path} is not a folder: name the one that the images lie in")
    names = files.inside(path)
    tables = [name for name in names if name.rpartition("/")[2] in TABLES]
    if tables:
        return [entry for table in tables for entry in _table_entries(path, table, options.text_column)]
    require(options.text_column is None, f"text_column needs a {' or '.join(TABLES)} in {path}, and there is none")
    there = set(names)
    return [
        FolderEntry(name, files.join(path, name), partial(_lines, path, name, there))
        for name in names
        if is_image(name)
    ]


def _lines(folder: str, image: str, there: set[str]) -> list[bytes] | None:
    """The captions beside an image."""
    beside = image.rpartition(".")[0] + ".txt"
    if beside not in there:
        return None
    with files.open_file(files.join(folder, beside)) as file:
        data = file.read(files.LARGEST)
    return [line for line in data.splitlines() if line.strip()] or [b""]


def _table_entries(folder: str, table: str, text_column: str | None) -> Iterator[FolderEntry | Fault]:
    rows = _csv_rows if table.endswith(".csv") else _jsonl_rows
    inner = files.folder_of(table)  # names in a table are relative to it
    for key, row in rows(files.join(folder, table)):
        name = row if isinstance(row, Fault) else row.get("file_name")
        if isinstance(row, Fault) or not isinstance(name, str) or not name:
            yield Fault(f"{table}{key}", row.reason if isinstance(row, Fault) else "no file_name")
            continue
        captions = records.caption_of(row, text_column)
        image = files.join(inner, name)
        yield FolderEntry(image, files.join(folder, image), partial(same, captions))


def _jsonl_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any] | Fault]]:
    for offset, line in jsonl.lines_of_shard(InputShard(path)):
        key = f"@{offset}"
        try:
            if isinstance(line, Fault) or line.strip():
                yield key, line if isinstance(line, Fault) else records.json_object(line)
        except records.RecordError as error:
            yield key, Fault(key, str(error))


def _csv_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any] | Fault]]:
    with files.open_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")  # bad bytes are found in captions
        rows = csv.DictReader(text)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"@{rows.line_num}", Fault("", f"not CSV: {error}")
            else:
                yield f"@{rows.line_num}", row


def same(captions: Any) -> Any:
    """Captions that are there already, as `Entry` asks for them."""
    return captions


FORMAT = captioned_images(_folder_entries, ("text_column",))
