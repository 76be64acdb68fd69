"""Batches of an endless stream of rows, each a function of its number, served through Grain."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from transfusion_jax.data.batch import Batch, stack
from transfusion_jax.parallel.children import end_with_parent

DEAD_WORKER = "Worker process was terminated unexpectedly"  # how Grain says so
LOCAL, REMOTE = 2, 16  # threads of a process that read rows: from a disk, and from a bucket, where they wait
LAST_ROW = 2**31 - 1  # row numbers are int32 on the device


class AnyRows(Protocol):
    """A stream of rows of any kind; `DocumentRows` are those of documents."""

    @property
    def corpus(self) -> Any:
        """What they are made of; `remote` tells whether it is read over a network."""
        ...

    def __getitem__(self, row: int) -> Any:
        """A row by its number, a function of that alone."""
        ...

    def after(self, row: int, count: int) -> int:
        """The row that is `count` rows further on."""
        ...


@contextmanager
def batches(
    rows: AnyRows,
    first_row: int,
    batch_rows: int,
    local: slice,
    workers: int,
    log: Callable[[str], None] = print,
) -> Iterator[Iterator[Batch]]:
    """An iterator of batches from a row on; leaving the context stops its workers.

    A worker process that dies, as for want of memory, is replaced: what it would have read is read again.

    Args:
        rows: the stream.
        first_row: where to begin: the data state of a checkpoint.
        batch_rows: rows of one global batch.
        local: which of them this process reads.
        workers: processes that assemble rows; 0 uses threads of this one. The stream is the same for any number.
        log: prints a line for the user.
    """
    with closing(_batches(rows, first_row, batch_rows, local, workers, log)) as iterator:
        yield iterator


def _batches(
    rows: AnyRows, first_row: int, batch_rows: int, local: slice, workers: int, log: Callable[[str], None]
) -> Generator[Batch, None, None]:
    row, opened_at = first_row, -1
    while True:
        try:
            with closing(_open(rows, row, batch_rows, local, workers)) as iterator:
                opened_at = row
                for batch in map(_copy, iterator) if workers else iterator:
                    yield batch
                    row = rows.after(row, batch_rows)
        except RuntimeError as error:
            if DEAD_WORKER not in str(error) or row == opened_at:
                raise
            log(f"{error} Reading goes on from row {row} with new workers.")
        else:
            return


def _copy(batch: Batch) -> Batch:
    """A batch in this process's own memory: the memory shared with a worker is given back at once."""
    return jax.tree.map(np.array, batch)


def _open(rows: AnyRows, first_row: int, batch_rows: int, local: slice, workers: int) -> Any:
    own = range(*local.indices(batch_rows))
    numbers = _RowNumbers(rows, first_row, batch_rows, own)
    dataset: Any = grain.MapDataset.source(numbers).map(rows.__getitem__).batch(len(own), batch_fn=stack)
    threads = REMOTE if rows.corpus.remote else LOCAL
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(8, threads))
    dataset = dataset.to_iter_dataset(read_options=options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
    return iter(dataset)


def _begin_worker(index: int, count: int) -> None:
    """A worker leaves signals to the process that started it, and ends when that has ended, killed or not."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


@dataclass(frozen=True)
class _RowNumbers:
    """The numbers of the rows that one process reads, as a Grain source."""

    rows: AnyRows
    first_row: int
    batch_rows: int
    own: range

    def __len__(self) -> int:
        left = LAST_ROW - self.rows.after(self.first_row, 0)
        return left // self.batch_rows * len(self.own)

    def __getitem__(self, index: int) -> int:
        step, place = divmod(int(index), len(self.own))
        return self.rows.after(self.first_row, step * self.batch_rows + self.own[place])
