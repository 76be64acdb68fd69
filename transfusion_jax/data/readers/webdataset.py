"""Tar files as WebDataset and img2dataset write them: members that share a key, such as 1.jpg and 1.txt."""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import IO, Any, NamedTuple

from transfusion_jax.data.readers import files, records
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "pgm")
CAPTIONS = ("txt", "caption")  # before the fields of .json
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # the key ends at the first dot of the last part


class _Member(NamedTuple):
    key: str
    extension: str
    data: bytes | None  # None: too large to read


def _shards(path: str, options: ReadOptions) -> list[InputShard]:
    return [InputShard(path)]


def _read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    last: list[_Member | Fault] = []
    with files.open_unpacked(shard.path) as stream:
        for _, sample in itertools.groupby(_members(stream), attrgetter("key")):
            previous, last = last, list(sample)
            found = _documents(previous, options)
            if isinstance(last[0], Fault):  # what else belonged to the previous sample may be lost
                found = (d for d in found if isinstance(d, RawDocument) and len(d.segments) == 2)
            yield from found
    yield from _documents(last, options)


def _members(stream: IO[bytes]) -> Iterator[_Member | Fault]:
    """The files in order, and a fault at the end if the tar is broken."""
    where = 0
    ending: Any = _Ending(stream)
    try:
        with tarfile.open(fileobj=ending, mode="r|", tarinfo=_Header, errors="backslashreplace") as tar:
            while (member := tar.next()) is not None:
                split = _NAME.fullmatch(member.name)
                if member.isreg() and split:
                    file = tar.extractfile(member) if member.size <= files.LARGEST else None
                    yield _Member(split[1], split[2].lower(), file.read() if file else None)
                tar.members.clear()  # type: ignore[attr-defined]  # or it remembers every header
                where = tar.offset
    except (tarfile.TarError, ValueError, *files.DAMAGE) as error:
        yield Fault(f"byte {min(where, ending.passed)}", f"broken tar: {files.damage(error)}")


@dataclass
class _Ending:
    """A stream that is not read on and on after its end, as tarfile would to pass over a member of a false size."""

    stream: IO[bytes]
    passed: int = 0
    ends: int = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.passed += len(data)
        self.ends += not data
        if self.ends > 9:  # it may look twice or three times in good faith
            raise EOFError("unexpected end of data")
        return data


class _Header(tarfile.TarInfo):
    """A header that says when it is broken; tarfile alone takes that for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            raise
        except tarfile.HeaderError as error:
            empty = isinstance(error, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            raise tarfile.ReadError("no mark of its end" if empty else str(error)) from error


def _documents(members: Sequence[_Member | Fault], options: ReadOptions) -> Iterator[RawDocument | Fault]:
    sample: dict[str, bytes] = {}
    for member in members:
        if isinstance(member, Fault):
            yield member
            return
        if member.data is None or member.extension in sample:
            reason = "too large" if member.data is None else "twice in its sample"
            yield Fault(member.key, f"member {reason}: .{member.extension}")
            return
        sample[member.extension] = member.data
    if sample:
        yield from _sample_documents(members[0].key, sample, options)


def _sample_documents(key: str, sample: Mapping[str, bytes], options: ReadOptions) -> Iterator[RawDocument | Fault]:
    wanted = (options.image_column.lower(),) if options.image_column else IMAGES
    images = [extension for extension in wanted if extension in sample]
    try:
        if len(images) > 1:
            raise records.RecordError(f"several images: name one with image_column: .{', .'.join(images)}")
        if options.image_column and not images:
            raise records.RecordError(f"no image: members are .{', .'.join(sorted(sample))}")
        text = _text(sample, options.text_column)
        if not images and text is None:
            raise records.RecordError(f"neither image nor text: members are .{', .'.join(sorted(sample))}")
    except records.RecordError as error:
        yield Fault(key, str(error))
        return
    yield from records.pairs(key, sample[images[0]], text) if images else records.document(key, text)


def _text(sample: Mapping[str, bytes], field: str | None) -> Any:
    for extension in () if field else CAPTIONS:
        if extension in sample:
            return sample[extension]
    if "json" not in sample:
        return None
    return records.caption_of(records.json_object(sample["json"]), field)


SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
FORMAT = Format(_shards, _read, SUFFIXES, ("image_column", "text_column"))
