"""All shards of a job, here or on a Ray cluster, with progress."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from transfusion_jax.data.prepare.encode import Encoders
from transfusion_jax.data.prepare.finish import finish_folder
from transfusion_jax.data.prepare.job import PrepareJob, owned_by_job
from transfusion_jax.data.prepare.progress import DocumentProgress, Progress
from transfusion_jax.data.prepare.shard import prepare_shard, report_file, sound
from transfusion_jax.data.readers.format import package
from transfusion_jax.errors import UserError, whole_number
from transfusion_jax.parallel.children import end_with_parent
from transfusion_jax.storage.atomic import sweep_unfinished
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place

Reports = Generator[dict[str, Any], None, None]


def run_job(
    folder: Place,
    job: PrepareJob,
    own: Sequence[int],
    runner: str,
    workers: int,
    report: Callable[[Progress], None],
    encoders: Encoders | None = None,
) -> dict[str, Any] | None:
    """Prepares some shards, and finishes the folder once all are there. Damaged files are prepared again.

    Args:
        folder: where `begin` wrote the job.
        job: the job.
        own: numbers of the shards that are this host's.
        runner: a name in `RUNNERS`.
        workers: processes of the local runner.
        report: is told of each finished shard; once all are prepared, of each encoded one.
        encoders: take the shards whose pixels are there.

    Returns:
        The manifest, or None while shards of other hosts are missing.

    Raises:
        ConfigError: the runner is not installed.
        OSError: an input cannot be read, or the folder not be written.
        LostFolder: the folder is another's by now.
    """
    with owned_by_job(folder, job):
        return _run(folder, job, own, runner, workers, report, encoders)


def _run(
    folder: Place,
    job: PrepareJob,
    own: Sequence[int],
    runner: str,
    workers: int,
    report: Callable[[Progress], None],
    encoders: Encoders | None,
) -> dict[str, Any] | None:
    begun = time.monotonic()
    documents = size = unused = 0
    done = sound(folder, own)
    todo = [number for number in own if number not in done]
    for number in todo:
        report_file(folder, number).unlink(missing_ok=True)
    encode = encoders.submit if encoders else _leave
    for number in own:
        if number in done:
            encode(number)
    if todo:
        with closing(RUNNERS[runner](folder, job, todo, workers)) as reports:
            for count, values in enumerate(reports, 1):
                encode(values["shard"])
                documents += values["documents"]
                size += values["size"]
                unused += sum(values["faults"].values())
                report(DocumentProgress(count, len(todo), time.monotonic() - begun, documents, size, unused))
    if encoders:
        encoders.finish(report)
    if not _finished(folder).issuperset(range(len(job.shards))):
        return None
    sweep_unfinished(folder)  # once more: workers of a killed process may have outlived it by a moment
    return finish_folder(folder, job)


def _finished(folder: Place) -> set[int]:
    """The numbers of the shards that are prepared."""
    shards = folder / "shards"
    if not isinstance(shards, BucketPath) and not shards.is_dir():
        return set()
    numbers = (whole_number(entry.name.removesuffix(".json")) for entry in shards.iterdir())
    return {number for number in numbers if number is not None}


def _leave(shard: int) -> None:
    """No encoding is asked for."""


def _local(folder: Place, job: PrepareJob, todo: Sequence[int], workers: int) -> Reports:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(prepare_shard, folder, job, number) for number in todo]):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for want of memory: the same command goes on; give it fewer "
                "--workers if that happens again"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ray(folder: Place, job: PrepareJob, todo: Sequence[int], workers: int) -> Reports:
    """On the cluster that the environment names, or one of this host's cores; the folder must be seen by all."""
    del workers
    ray = package("ray", "transfusion-jax[ray]")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    task, shared = ray.remote(prepare_shard), ray.put(job)
    waiting = [task.remote(folder.absolute(), shared, number) for number in todo]
    while waiting:
        (ended, *_), waiting = ray.wait(waiting)
        try:
            yield ray.get(ended)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


RUNNERS = {"local": _local, "ray": _ray}
