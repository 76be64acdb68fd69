"""A row plan's columns, in memory or as a folder of files that appears whole or not at all.

Each column has a checksum for every 64 KiB, and `plan.json` has a hash of itself. A plan is opened without reading
its columns, and every value is verified before it is used.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transfusion_jax.errors import StorageError
from transfusion_jax.storage.atomic import DamagedFile, locked, read_json, sync, write_json
from transfusion_jax.storage.cache_dirs import cache_folder
from transfusion_jax.storage.paths import Place

Columns = dict[str, np.ndarray]
CHUNK = 1 << 16  # bytes per checksum
HELD = 64  # verified chunks that a plan holds in memory


class DamagedPlan(StorageError):
    """A plan's files do not hold what was written."""


@dataclass(frozen=True, repr=False)
class RowPlan:
    """Columns of pieces, in row order: row r holds pieces `row_offset[r]` to `row_offset[r + 1]`.

    Rows were planned in blocks; b counts the ends of blocks, and the beginning of the first is b = 0.
    """

    piece_document: np.ndarray  # [pieces] int64, the corpus's number of the document
    piece_start: np.ndarray  # [pieces] int64, first element of the document
    piece_length: np.ndarray  # [pieces] int32
    row_offset: np.ndarray  # [rows + 1] int64
    block_row: np.ndarray  # [b] int64, rows so far
    block_elements: np.ndarray  # [b, sources] int64, elements in the block's rows
    block_place: np.ndarray  # [b, sources, 3] int64: documents taken, elements read of the next, end of `carried`
    carried: np.ndarray  # [n] int64, a source's numbers of documents that were taken and not placed
    about: Mapping[str, Any]  # what `plan.json` holds
    folder: Path | None = None

    @property
    def rows(self) -> int:
        """Rows in one epoch."""
        return len(self.row_offset) - 1

    @cached_property
    def piece_row(self) -> np.ndarray:
        """The row of each piece, `[pieces]`."""
        return np.repeat(np.arange(self.rows), np.diff(self.row_offset))

    def elements(self) -> np.ndarray:
        """Elements used in each row, `[rows]`."""
        return np.bincount(self.piece_row, self.piece_length, self.rows).astype(np.int64)

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """The pieces of a row: the corpus's number of the document, the first element, and the length of each.

        Raises:
            DamagedPlan: the files do not hold what was written.
        """
        stretch = self.read("row_offset", row, row + 2).tolist()
        columns = [self.read(name, *stretch) for name in ("piece_document", "piece_start", "piece_length")]
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def read(self, name: str, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Entries `begin` to `end` of a column; of a plan in a folder, compared with their sums.

        Raises:
            DamagedPlan: the files do not hold what was written.
        """
        column = getattr(self, name)
        begin, end, _ = slice(begin, end).indices(len(column))
        if self.folder is None or begin >= end:
            return np.asarray(column[begin:end])
        size = column[:1].nbytes
        first, last = begin * size // CHUNK, -(-end * size // CHUNK)
        data = b"".join(self._chunk(name, number) for number in range(first, last))
        stretch = data[begin * size - first * CHUNK : end * size - first * CHUNK]
        return np.frombuffer(stretch, column.dtype).reshape(end - begin, *column.shape[1:])

    def verify(self) -> None:
        """Reads everything.

        Raises:
            DamagedPlan: the files do not hold what was written.
        """
        for name in COLUMNS:
            self.read(name)

    @cached_property
    def _chunk(self) -> Callable[[str, int], bytes]:
        """A verified copy of a part of a column, since the mapped file may change afterwards."""
        return lru_cache(HELD)(self._read_chunk)

    def _read_chunk(self, name: str, number: int) -> bytes:
        assert self.folder
        try:
            with open(self.folder / f"{name}.npy", "rb") as file:
                file.seek(os.fstat(file.fileno()).st_size - getattr(self, name).nbytes + number * CHUNK)
                data = file.read(CHUNK)
        except (OSError, ValueError):  # deleted or cut short meanwhile
            data = b""
        if zlib.crc32(data) != self._sums[name][number]:
            raise _damaged(self.folder)
        return data

    @cached_property
    def _sums(self) -> dict[str, np.ndarray]:
        return {name: np.frombuffer(bytes.fromhex(text), "<u4") for name, text in self.about["sums"].items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """A plan in a folder is sent to another process by its path."""
        if self.folder:
            return _reopen, (self.folder,)
        return RowPlan, tuple(getattr(self, f.name) for f in fields(self))


OF_BLOCKS = ("block_row", "block_elements", "block_place", "carried")  # small, and verified where a plan is opened
COLUMNS = tuple(f.name for f in fields(RowPlan) if f.name not in ("about", "folder"))


def default_cache() -> Path:
    """Where plans are kept: `$TRANSFUSION_CACHE/plans`, or `~/.cache/transfusion_jax/plans`."""
    return cache_folder() / "plans"


def in_memory(blocks: Iterable[Columns], describe: Callable[[Columns], dict[str, Any]]) -> RowPlan:
    """The plan of blocks, laid end to end."""
    parts = list(blocks)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    return _plan(columns, describe(columns))


def open_plan(folder: Path) -> RowPlan | None:
    """The plan in a folder, memory-mapped; None if there is none, or a damaged one."""
    about = open_sealed(folder / "plan.json", folder.name)
    try:
        columns = _map(folder)
        if about is None or _files(folder, columns) != about["files"]:
            return None
        plan = _plan(columns, about, folder)
        for name in OF_BLOCKS:
            plan.read(name)
    except (OSError, ValueError, EOFError, DamagedPlan):  # a file is missing, cut short or no such file
        return None
    return plan


def delete_plan(folder: Path) -> None:
    """Deletes a plan; processes that have it open may fail to read it, and plan again."""
    if folder.exists():
        gone = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".gone", dir=folder.parent))
        with suppress(FileNotFoundError):
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def damaged_plans(cache: Path) -> list[str]:
    """A sentence for each damaged plan of a cache; all of them are read whole."""
    found = []
    for path in sorted(cache.iterdir()) if cache.is_dir() else []:
        if path.suffix == ".json":
            if open_sealed(path, path.stem) is None:
                found.append(f"{path} is damaged: delete it, and it will be written again")
        elif path.is_dir() and not path.suffix:
            try:
                if (plan := open_plan(path)) is None:
                    raise _damaged(path)
                plan.verify()
            except DamagedPlan:
                found.append(f"the row plan in {path} is damaged: delete it, and rows will be planned again")
    return found


@contextmanager
def alone(cache: Path) -> Iterator[None]:
    """Keeps other processes of this machine from planning meanwhile, so that all use what one has planned.

    Raises:
        StorageError: there can be no such folder.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error
    with locked(cache):  # where that cannot be, each process plans for itself
        yield


def write_sealed(path: Place, name: str, values: Mapping[str, Any]) -> None:
    """Writes values as JSON, with a name and a hash of all, whole or not at all.

    Raises:
        StorageError: they cannot be written.
    """
    write_json(path, {"name": name, **values}, indent=2)


def open_sealed(path: Place, name: str) -> dict[str, Any] | None:
    """What `seal` wrote under this name; None if it is missing or damaged."""
    try:
        values = read_json(path, "it is made again")
    except (OSError, DamagedFile):
        return None
    return values if values.pop("name", None) == name else None


def store_blocks(folder: Path, blocks: Iterable[Columns], describe: Callable[[Columns], dict[str, Any]]) -> RowPlan:
    """Writes blocks to a folder as they come, and opens it.

    Another process may do the same at the same time: the first to end provides the folder.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            _write(partial, folder.name, blocks, describe)
            _rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise _unwritable(error) from error
    return _reopen(folder)


def _unwritable(error: OSError) -> StorageError:
    return StorageError(
        f"the row plan cannot be written: {error}. Set the variable TRANSFUSION_CACHE to a folder with room"
    )


def _damaged(folder: Path) -> DamagedPlan:
    return DamagedPlan(f"the row plan in {folder} was damaged or deleted while in use: run the same command again")


def _files(folder: Path, columns: Columns) -> dict[str, list[Any]]:
    """The type, the shape and the file's bytes of each column."""
    return {
        name: [column.dtype.str, list(column.shape), (folder / f"{name}.npy").stat().st_size]
        for name, column in columns.items()
    }


def _plan(columns: Columns, about: Mapping[str, Any], folder: Path | None = None) -> RowPlan:
    values: dict[str, Any] = {**columns, "about": about, "folder": folder}
    return RowPlan(**values)


def _reopen(folder: Path) -> RowPlan:
    plan = open_plan(folder)
    if plan is None:
        raise _damaged(folder)
    return plan


def _map(folder: Path) -> Columns:
    return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in COLUMNS}


def _write(
    folder: Path, name: str, blocks: Iterable[Columns], describe: Callable[[Columns], dict[str, Any]]
) -> None:
    with ExitStack() as stack:
        files = {column: stack.enter_context(open(folder / f"{column}.npy", "wb")) for column in COLUMNS}
        sums = {column: _Sums() for column in COLUMNS}
        shapes: dict[str, list[int]] = {}
        for block in blocks:
            for column, part in block.items():
                if column not in shapes:
                    shapes[column] = [0, *part.shape[1:]]
                    _write_header(files[column], part.dtype, shapes[column])
                shapes[column][0] += len(part)
                data = np.ascontiguousarray(part).tobytes()
                sums[column].add(data)
                files[column].write(data)
        for column, file in files.items():
            file.seek(0)
            _write_header(file, block[column].dtype, shapes[column])
            _sync(file)
    columns = _map(folder)
    about = {"files": _files(folder, columns), "sums": {column: one.hex() for column, one in sums.items()}}
    write_sealed(folder / "plan.json", name, describe(columns) | about)


class _Sums:
    """Checksums of a stream of bytes, one for each chunk."""

    def __init__(self) -> None:
        self._whole: list[int] = []
        self._sum = self._size = 0

    def add(self, data: bytes) -> None:
        """The bytes that follow."""
        rest = memoryview(data)
        while rest:
            part, rest = rest[: CHUNK - self._size], rest[CHUNK - self._size :]
            self._sum, self._size = zlib.crc32(part, self._sum), self._size + len(part)
            if self._size == CHUNK:
                self._whole.append(self._sum)
                self._sum = self._size = 0

    def hex(self) -> str:
        """All of them, as four bytes each."""
        return np.array([*self._whole, *([self._sum] if self._size else [])], "<u4").tobytes().hex()


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: list[int]) -> None:
    """Headers of arrays that differ in their first dimension alone are equally long: NumPy leaves room."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, about)


def _rename(partial: Path, folder: Path) -> None:
    """Other processes may be at the same: a whole plan that stands there stays, a damaged one goes."""
    while True:
        try:
            partial.rename(folder)
            return sync(folder.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if open_plan(folder):
            return None
        damaged = partial.with_suffix(".damaged")
        with suppress(FileNotFoundError):
            folder.rename(damaged)
            shutil.rmtree(damaged)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
