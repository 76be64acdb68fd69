"""Whether this machine can write where a run is kept, and read what it is trained on: asked before all else."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

from transfusion_jax.config import Run
from transfusion_jax.data.store.dataset import Prepared
from transfusion_jax.errors import StorageError, UserError
from transfusion_jax.storage.atomic import check_writable
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.lock import answer_of, open_store
from transfusion_jax.storage.paths import Place, place

WITHIN = 25.0  # seconds for all of it


def check_storage(workdir: Place, config: Run) -> None:
    """Returns once the workdir has been written to and the manifest of every prepared source has been read.

    Nothing stays in the workdir, and a local one that is not there is not made.

    Raises:
        UserError: what cannot be written or read, and why, within half a minute.
    """
    prepared = [place(name) for name in config.folders]
    checks: list[tuple[Place, Callable[[], object]]] = [(workdir, lambda: _write(workdir))]
    checks += [(folder, lambda folder=folder: Prepared.open(folder)) for folder in prepared]  # type: ignore[misc]
    _all_within(WITHIN, checks)


def _write(workdir: Place) -> None:
    if isinstance(workdir, BucketPath):
        probe = workdir / f"probe-{socket.gethostname()}-{os.getpid()}"
        store = open_store(workdir)  # as checkpoints are written
        answer_of(workdir, lambda: store.write(probe.name, b"probe"))
        if probe.read_bytes() != b"probe":
            raise StorageError(f"{workdir} does not hold what is written to it")
        probe.unlink()
        return
    check_writable(workdir)


def _all_within(seconds: float, checks: list[tuple[Place, Callable[[], object]]]) -> None:
    """Does all at once; threads that hang in the operating system are left behind."""
    outcomes: dict[int, UserError | None] = {}

    def run(number: int, check: Callable[[], object]) -> None:
        try:
            check()
            outcomes[number] = None
        except UserError as error:
            outcomes[number] = error

    until = time.monotonic() + seconds
    threads = [threading.Thread(target=run, args=(n, check), daemon=True) for n, (_, check) in enumerate(checks)]
    for thread in threads:
        thread.start()
    for number, thread in enumerate(threads):
        thread.join(max(until - time.monotonic(), 0))
        if thread.is_alive():
            raise StorageError(f"{checks[number][0]} cannot be reached: no answer within {seconds:.0f} s")
        if error := outcomes.get(number):
            raise error
