"""A lock in a bucket: an object that its holder renews; it expires when the holder stops.

Every write names the generation that it takes the place of, so that of two processes one succeeds. No clocks are
compared: whoever waits watches the object for longer than its holder may be silent.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import tensorstore as ts

from transfusion_jax.errors import ConfigError, StorageError
from transfusion_jax.storage.gcs import FIRST, BucketPath

BEAT = 10.0  # seconds between two writes of the holder
SILENT = 60.0  # seconds without one, after which the lease is free
MEANING = {"PERMISSION_DENIED": "forbidden to these credentials", "NOT_FOUND": "there is no such bucket"}
UNKNOWN = {"id": None, "host": "an unknown machine", "process": "?", "machine": None, "began": None}
NOT_WRITTEN = b""  # TensorStore's generation where a condition did not hold


@contextmanager
def leased(path: BucketPath, log: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Holds the lease while the context lasts. A process that loses it nevertheless ends at once.

    The context gives a function that tells whether the lease is still held.

    Raises:
        ConfigError: another process holds it.
        StorageError: the bucket cannot be used.
    """
    store = open_store(path.parent)
    holder = this_process()
    generation = _take(store, path, holder, log)
    released = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, path, holder, generation, released), daemon=True)
    beating.start()
    try:
        yield lambda: _is_held(store, path, holder)
    finally:
        released.set()
        beating.join()


def open_store(folder: BucketPath) -> Any:
    """TensorStore's way to the objects of a folder, which is how checkpoints go.

    Raises:
        StorageError: the bucket cannot be used.
    """
    return answer_of(folder, lambda: ts.KvStore.open(f"{folder}/"))


def answer_of(path: BucketPath, begin: Callable[[], Any], seconds: float = FIRST) -> Any:
    """What TensorStore answers.

    Raises:
        StorageError: it does not, or refuses.
    """
    try:
        return begin().result(timeout=seconds)
    except TimeoutError as error:
        raise StorageError(f"{path} cannot be reached: no answer within {seconds:.0f} s") from error
    except ValueError as error:
        kind, _, rest = str(error).partition(":")
        said = MEANING.get(kind, f"{kind}:{rest.partition(chr(10))[0]}")
        raise StorageError(f"{path} cannot be used: {said}") from error


def _take(store: Any, path: BucketPath, holder: dict[str, Any], log: Callable[[str], None]) -> bytes:
    seen, since = None, 0.0
    while True:
        found = answer_of(path, lambda: store.read(path.name))
        held_by = _holder(found)
        now = time.monotonic()
        if seen is None:
            seen, since = found.stamp.generation, now
            if held_by and not has_ended(held_by):
                log(f"{path.parent} is held by {_words(held_by)}: waiting up to {SILENT:.0f} s for a sign of it")
        elif held_by and seen != found.stamp.generation:
            raise ConfigError(
                f"another process trains in {path.parent} ({_words(held_by)}): wait for its end, or choose another "
                "--workdir"
            )
        if held_by is None or has_ended(held_by) or now - since >= SILENT:
            generation = _put(store, path, holder, found.stamp.generation)
            if generation != NOT_WRITTEN:
                return generation
            seen = b"another's"  # who was faster: the next look finds its name
        else:
            time.sleep(1.0)


def _beat(
    store: Any, path: BucketPath, holder: dict[str, Any], generation: bytes, released: threading.Event
) -> None:
    while not released.wait(BEAT):
        try:
            written = _put(store, path, holder, generation)
            if written == NOT_WRITTEN:
                found = answer_of(path, lambda: store.read(path.name))
                if not _names(found, holder):
                    _end(path)
                written = found.stamp.generation  # this process's own write, whose answer was lost
            generation = written
        except StorageError:
            continue  # the next beat may come through; who takes the lease meanwhile is found then
    try:
        answer_of(path, lambda: store.write(path.name, None, if_equal=generation))
    except StorageError as error:
        print(f"transfusion: {error}; the lease runs out in {SILENT:.0f} s", file=sys.stderr)


def _is_held(store: Any, path: BucketPath, holder: dict[str, Any]) -> bool:
    return _names(answer_of(path, lambda: store.read(path.name)), holder)


def _holder(found: Any) -> dict[str, Any] | None:
    """Who holds the lock that was read, `UNKNOWN` where it is damaged; None if it is free."""
    if found.state != "value":
        return None
    try:
        holder = json.loads(found.value)
    except ValueError:  # also bytes that are no UTF-8
        return UNKNOWN
    return holder if isinstance(holder, dict) and holder.keys() >= UNKNOWN.keys() else UNKNOWN


def _names(found: Any, holder: dict[str, Any]) -> bool:
    """Whether the lock that was read is the holder's."""
    return (_holder(found) or UNKNOWN)["id"] == holder["id"]


def _put(store: Any, path: BucketPath, holder: dict[str, Any], generation: bytes) -> bytes:
    text = json.dumps(holder | {"time": time.time()}).encode()
    stamp = answer_of(path, lambda: store.write(path.name, text, if_equal=generation))
    return bytes(stamp.generation)


def _end(path: BucketPath) -> NoReturn:
    print(f"transfusion: {path} was taken by another process after this one had been silent", file=sys.stderr)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(StorageError.exit_code)


def this_process() -> dict[str, Any]:
    """The identity of this process among those of all machines."""
    process = os.getpid()
    about = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "process": process}
    return about | {"machine": this_machine(), "began": _began(process)}


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether a process, as from `this_process`, was on this machine and has ended."""
    if holder["machine"] is None or holder["machine"] != this_machine():
        return False
    return bool(holder["began"] != _began(holder["process"]))


def this_machine() -> str | None:
    """This machine since its start, and the container on it, so that processes have numbers; None where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _began(process: int) -> str | None:
    """When a process was started, in the kernel's words; None where there is none that runs."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


def _words(holder: dict[str, Any]) -> str:
    return f"process {holder['process']} of {holder['host']}"
