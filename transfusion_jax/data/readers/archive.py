"""Tar archives as samples: members that share a key, whether they stand together, lie apart or are links."""

from __future__ import annotations

import posixpath
import re
import tarfile
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import numpy as np

from transfusion_jax.data.readers import files
from transfusion_jax.data.readers.fields import IMAGES
from transfusion_jax.data.readers.raw import Fault, RecordError

MEMBERS = 1 << 17  # of an archive that is read by its index
UNPACKED = 1 << 30  # bytes of a compressed one that is
MOST = 256  # members of one sample
HOPS = 8  # from link to link
LONGEST = 1 << 20  # bytes of all headers of a member, its name among them, which are held in memory
NAMES = (
    1 << 25
)  # characters of all names of an archive that is read by its index, and 64 for each hole of a sparse file
STRAYS = 1 << 16  # members of no sample that have a line each
NEGATIVE = "a member of a negative size"
SHOWN = 1000  # characters of such a member's name
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # the key ends at the first dot of the last part
_KINDS = {
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
}
_Names = dict[str, tarfile.TarInfo]  # members by their normal paths
_BROKEN = (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError, *files.DAMAGE)


@dataclass
class TarSample:
    """Members that share a key."""

    key: str
    number: int = 0  # of the archive's runs of members that share a key, the one that it begins with
    data: dict[str, bytes] = field(default_factory=dict)  # by extension, in lower case
    size: int = 0
    reason: str = ""  # why it cannot be used
    links: bool = False  # whether members are links that are not followed
    torn: bool = False  # whether the archive breaks off after it: its other members may be lost
    split: bool = False  # whether members of the key are in another sample

    def add(self, extension: str, info: tarfile.TarInfo, data: bytes | None) -> None:
        """Takes a member, or says why the sample cannot be used with it; `data` is None where it was not read."""
        self.size += info.size
        if info.islnk() or info.issym():
            self.links = True
        elif self.reason:
            return
        elif not info.isreg():
            self.reason = f"member is no file: .{extension} is {_KINDS.get(info.type, 'of an unknown kind')}"
        elif extension in self.data:
            self.reason = f"member twice in its sample: .{extension}"
        elif data is None:
            self.reason = f"member too large: with .{extension} its sample has more than {files.LARGEST >> 20} MiB"
        elif len(self.data) == MOST:
            self.reason = f"too many members: a sample has {MOST} at most"
        else:
            self.data[extension] = data


@dataclass
class Survey:
    """What an archive's headers say."""

    ordered: bool = True  # members of a sample stand together, and none is a link
    whole: bool = True  # it does not break off
    members: int = 0
    size: int = 0  # bytes, unpacked
    names: int = 0  # as `NAMES` counts


class _Rest(Fault):
    """What follows an archive's end and is none itself: it tears no sample."""


class _Member(NamedTuple):
    key: str  # empty where it is of no sample
    extension: str
    info: tarfile.TarInfo
    data: bytes | None


def samples(stream: IO[bytes]) -> Iterator[TarSample | Fault]:
    """The samples in order, as far as their members stand together; then what is of none, and where it breaks."""
    sample: TarSample | None = None
    strays: list[Fault] = []

    def fits(key: str, info: tarfile.TarInfo) -> bool:
        taken = sample.size if sample and sample.key == key else 0
        return taken + info.size <= files.LARGEST

    for member in _members(stream, "r|", fits):
        if isinstance(member, Fault):
            strays.append(member)
            if sample and not isinstance(member, _Rest):
                sample.torn = True
        elif not member.key:
            strays += _stray(member.info, strays)
        else:
            if sample is None or member.key != sample.key:
                if sample:
                    yield sample
                sample = TarSample(member.key, sample.number + 1 if sample else 0)
            sample.add(member.extension, member.info, member.data)
    if sample:
        yield sample
    yield from strays


def survey_archive(stream: IO[bytes]) -> Survey:
    """Reads an archive's headers."""
    found, runs = Survey(), array("q")  # of each run of members that share a key, its hash: 8 bytes
    for member in _members(stream, "r|", lambda key, info: False):
        if isinstance(member, Fault):
            found.whole = isinstance(member, _Rest)
            continue
        found.members += 1
        found.names += len(member.info.name) + len(member.info.linkname) + 64 * len(member.info.sparse or ())
        found.size = member.info.offset_data + member.info.size
        if member.key:
            found.ordered &= not (member.info.islnk() or member.info.issym())
            if not runs or runs[-1] != hash(member.key):
                runs.append(hash(member.key))
    found.ordered &= len(np.unique(np.array(runs))) == len(runs)
    return found


def indexed_samples(stream: IO[bytes], begin: int) -> Iterator[TarSample | Fault]:
    """The samples of an archive that can be sought in, wherever their members lie; links are followed within it.

    Args:
        stream: the archive.
        begin: runs of members that share a key, which were read already.
    """
    runs: list[list[_Member]] = []
    names: _Names = {}
    after: list[Fault] = []
    for member in _members(stream, "r:", lambda key, info: False):
        if isinstance(member, Fault):
            after.append(member)
            continue
        names[_path(member.info.name)] = member.info
        if not member.key:
            after += _stray(member.info, after)
        elif runs and runs[-1][0].key == member.key:
            runs[-1].append(member)
        else:
            runs.append([member])
    torn = bool(after) and after[-1].key.startswith("byte") and not isinstance(after[-1], _Rest)
    last = runs[-1][-1] if runs and torn else None
    joined = _joined(runs[begin:])
    times = Counter(run[0].key for run in runs[:begin]) + Counter(members[0].key for members in joined)
    stream.seek(0)
    tar = _opened(stream, "r:") if runs else None
    for members in joined:
        key = members[0].key
        yield _read_sample(tar, members, names, TarSample(key, torn=last in members, split=times[key] > 1))
    yield from after


def _joined(runs: list[list[_Member]]) -> list[list[_Member]]:
    """The members of each sample, in the order of the first; an extension that comes again begins another."""
    found: list[list[_Member]] = []
    newest: dict[str, list[_Member]] = {}
    for run in runs:
        members = newest.get(run[0].key)
        if members is None or {m.extension for m in members} & {m.extension for m in run}:
            newest[run[0].key] = members = []
            found.append(members)
        members += run
    return found


def _read_sample(
    tar: Any, members: list[_Member], names: dict[str, tarfile.TarInfo], sample: TarSample
) -> TarSample:
    for member in members:
        try:
            info = _target(member.info, names)
            fits = info.isreg() and not sample.reason and sample.size + info.size <= files.LARGEST
            data = tar.extractfile(info).read() if fits else None
        except RecordError as error:
            sample.reason = sample.reason or f"{error}: .{member.extension}"
        except _BROKEN as error:
            sample.reason = sample.reason or f"member cannot be read: .{member.extension}: {files.damage(error)}"
        else:
            sample.add(member.extension, info, data)
    return sample


def _target(info: tarfile.TarInfo, names: _Names) -> tarfile.TarInfo:
    """The member that a link leads to, or the member itself.

    Raises:
        RecordError: it leads to none.
    """
    for _ in range(HOPS):
        if not (info.islnk() or info.issym()):
            return info
        folder = posixpath.dirname(info.name) if info.issym() else ""
        name = _path(posixpath.join(folder, info.linkname))
        if name not in names or names[name] is info:
            raise RecordError(f"member is a link to what the archive does not hold: {info.linkname[:200]}")
        info = names[name]
    raise RecordError("member is a link of links without end")


@contextmanager
def seekable(path: str) -> Iterator[IO[bytes]]:
    """An archive to seek in: the file, or an unpacked copy of bounded size, of what stands before damage."""
    with files.open_unpacked(path) as stream:
        if not files.is_packed(path):
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            try:
                while copy.tell() <= UNPACKED and (data := files.read_some(stream, 1 << 20)):
                    copy.write(data)
            except files.DAMAGE as error:  # the archive breaks off there, too
                files.damage(error)
            copy.seek(0)
            yield copy


def _path(name: str) -> str:
    """A member's name, however it is written: `./a//b.png` is unpacked to where `a/b.png` is."""
    return posixpath.normpath(name).lstrip("/")


def _stray(info: tarfile.TarInfo, before: list[Fault]) -> list[Fault]:
    if files.is_hidden(info.name) or len(before) > STRAYS:
        return []
    more = f": and perhaps others, after {STRAYS:,} that have a line each" if len(before) == STRAYS else ""
    return [Fault(info.name[:SHOWN], f"member of no sample: its name has no ending{more}")]


def _members(
    stream: IO[bytes], mode: str, wanted: Callable[[str, tarfile.TarInfo], bool]
) -> Iterator[_Member | Fault]:
    """The members in order but for folders, and a fault at the end if the archive is broken.

    A folder that is called as an image is a member: what stands beside it is no text of its own. Archives that
    follow each other in one file are read as one.
    """
    tar: _Archive | None = None
    where, ending = 0, _Ending(stream)
    end = stream.seek(0, 2) - stream.seek(0) if mode == "r:" else 0
    try:
        tar = _opened(ending if mode == "r|" else stream, mode)
        while (info := tar.next()) is not None:
            name = _path(info.name)
            found = None if files.is_hidden(name) else _NAME.fullmatch(name)
            key, extension = (found[1], found[2].lower()) if found else ("", "")
            if not info.isdir() or extension in IMAGES:
                file = tar.extractfile(info) if key and info.isreg() and wanted(key, info) else None
                yield _Member(key, extension, info, file.read() if file else None)
            tar.members.clear()  # type: ignore[attr-defined]  # or it remembers every header
            tar.pax_headers, info.pax_headers = {}, {}  # nothing there is needed any more
            if mode == "r:" and tar.offset > end:
                raise tarfile.ReadError("unexpected end of data")
            where = tar.offset
    except _BROKEN as error:
        byte = f"byte {min(where, end or ending.passed)}"
        if tar and tar.ended:
            yield _Rest(byte, f"what follows the end of a tar is none: {files.damage(error)}")
        else:
            yield Fault(byte, f"broken tar: {files.damage(error)}")


class _Archive(tarfile.TarFile):
    """An archive, or several one after the other."""

    ended = False  # whether the last block was the mark of an end


def _opened(stream: Any, mode: Any) -> _Archive:
    return _Archive.open(fileobj=stream, mode=mode, tarinfo=_Header, errors="backslashreplace", ignore_zeros=True)


@dataclass
class _Ending:
    """A stream that is not read on and on after its end, as tarfile would to pass over a member of a false size."""

    stream: IO[bytes]
    passed: int = 0
    ends: int = 0
    damage: BaseException | None = None  # met after what was read last

    def read(self, size: int) -> bytes:
        """The next bytes, fewer before the end or damage."""
        if self.damage:
            raise self.damage
        parts: list[bytes] = []
        left = size
        try:
            while left and (part := files.read_some(self.stream, left)):
                parts.append(part)
                left -= len(part)
        except files.DAMAGE as error:
            self.damage = error
            if not parts:
                raise
        self.passed += size - left
        self.ends += not parts
        if self.ends > 9:  # it may look twice or three times in good faith
            raise EOFError("unexpected end of data")
        return b"".join(parts)


@dataclass
class _Metered:
    """A stream while a member's headers are read, which gives no more than they may have."""

    stream: Any
    left: int = field(default_factory=lambda: LONGEST + 2 * tarfile.BLOCKSIZE)

    def read(self, size: int) -> bytes:
        """As the stream's; raises ReadError where headers are too long."""
        if size < 0:
            raise tarfile.ReadError(NEGATIVE)
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError(f"headers of a member of more than {LONGEST:,} bytes")
        data: bytes = self.stream.read(size)
        return data

    def tell(self) -> int:
        """As the stream's."""
        return int(self.stream.tell())


class _Header(tarfile.TarInfo):
    """A header that says when it is broken; tarfile alone takes that for the archive's end, or reads it again."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        assert isinstance(archive, _Archive)
        ended, stream = archive.ended, archive.fileobj
        archive.fileobj = _Metered(stream)  # type: ignore[assignment]  # within another's, where one header follows another
        try:
            found = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            archive.ended = True
            raise
        except tarfile.HeaderError as error:
            archive.ended = ended  # a name that zeros follow is no mark
            empty = isinstance(error, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            if empty and ended:
                raise
            raise tarfile.ReadError("no mark of its end" if empty else str(error)) from error
        finally:
            archive.fileobj = stream
        parts: Any = found.sparse or ()
        if found.size < 0 or archive.offset < stream.tell() or any(min(part) < 0 for part in parts):
            raise tarfile.ReadError(NEGATIVE)  # the same headers would be read again, and perhaps for ever
        archive.ended = False
        return found
