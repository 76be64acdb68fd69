"""A row plan's columns, in memory or as a folder of memory-mapped files that appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transfusion_jax.cache import cache_folder
from transfusion_jax.errors import StorageError

Columns = dict[str, np.ndarray]


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

    def __reduce__(self) -> tuple[Any, ...]:
        """A plan in a folder is sent to another process by its path."""
        if self.folder:
            return _reopen, (self.folder,)
        return RowPlan, tuple(getattr(self, f.name) for f in fields(self))


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
    try:
        about = json.loads((folder / "plan.json").read_text())
        columns = _map(folder)
        if {name: list(column.shape) for name, column in columns.items()} != about["shapes"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):  # a file is missing, cut short or no such file
        return None
    return _plan(columns, about, folder)


def store(folder: Path, blocks: Iterable[Columns], describe: Callable[[Columns], dict[str, Any]]) -> RowPlan:
    """Writes blocks to a folder as they come, and opens it.

    Another process may do the same at the same time: the first to end provides the folder.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            _write(partial, blocks, describe)
            _rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"the row plan cannot be written: {error}. The variable TRANSFUSION_CACHE can name a folder with room"
        ) from error
    return _reopen(folder)


def _plan(columns: Columns, about: Mapping[str, Any], folder: Path | None = None) -> RowPlan:
    values: dict[str, Any] = {**columns, "about": about, "folder": folder}
    return RowPlan(**values)


def _reopen(folder: Path) -> RowPlan:
    plan = open_plan(folder)
    if plan is None:
        raise StorageError(f"the row plan in {folder} was damaged or deleted meanwhile: start again")
    return plan


def _map(folder: Path) -> Columns:
    return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in COLUMNS}


def _write(folder: Path, blocks: Iterable[Columns], describe: Callable[[Columns], dict[str, Any]]) -> None:
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in COLUMNS}
        shapes: dict[str, list[int]] = {}
        for block in blocks:
            for name, part in block.items():
                if name not in shapes:
                    shapes[name] = [0, *part.shape[1:]]
                    _write_header(files[name], part.dtype, shapes[name])
                shapes[name][0] += len(part)
                part.tofile(files[name])
        for name, file in files.items():
            file.seek(0)
            _write_header(file, block[name].dtype, shapes[name])
            _sync(file)
    with open(folder / "plan.json", "w", encoding="utf-8") as text:
        json.dump(describe(_map(folder)) | {"shapes": shapes}, text, indent=2)
        _sync(text)
    _sync_folder(folder)


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: list[int]) -> None:
    """Headers of arrays that differ in their first dimension alone are equally long: NumPy leaves room."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, about)


def _rename(partial: Path, folder: Path) -> None:
    """Other processes may be at the same: a whole plan that stands there stays, a damaged one goes."""
    while True:
        try:
            partial.rename(folder)
            return _sync_folder(folder.parent)
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
