"""All shards of a job, by as many processes as there are, with progress."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfusion_jax.data.prepare.finish import finish
from transfusion_jax.data.prepare.job import Job
from transfusion_jax.data.prepare.shard import prepare_shard, report_file


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    done: int  # shards
    total: int
    documents: int
    quarantined: int
    seconds: float

    def __str__(self) -> str:
        rate = self.documents / max(self.seconds, 1e-9)
        left = self.seconds / self.done * (self.total - self.done)
        return (
            f"{self.done}/{self.total} shards  {self.documents:,} documents  {self.quarantined:,} quarantined  "
            f"{rate:,.0f} documents/s  {left / 60:.0f}m {left % 60:02.0f}s left"
        )


def run(
    folder: Path,
    job: Job,
    own: Sequence[int],
    workers: int,
    report: Callable[[Progress], None],
) -> dict[str, Any] | None:
    """Prepares some shards, and finishes the folder once all are there.

    Args:
        folder: where `begin` wrote the job.
        job: the job.
        own: numbers of the shards that are this host's.
        workers: processes.
        report: is told of each finished shard.

    Returns:
        The manifest, or None while shards of other hosts are missing.

    Raises:
        OSError: an input cannot be read, or the folder not be written.
    """
    begun, documents, quarantined = time.monotonic(), 0, 0
    todo = [n for n in own if not report_file(folder, n).exists()]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(prepare_shard, folder, job, n) for n in todo]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                values = future.result()
                documents += values["documents"]
                quarantined += sum(values["faults"].values())
                report(Progress(done, len(todo), documents, quarantined, time.monotonic() - begun))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not all(report_file(folder, n).exists() for n in range(len(job.shards))):
        return None
    return finish(folder, job)
