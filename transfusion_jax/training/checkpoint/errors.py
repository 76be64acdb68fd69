"""What Orbax and TensorStore raise and print about files that are damaged or cannot be written, as one error."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transfusion_jax.errors import CheckpointError, StorageError
from transfusion_jax.storage.gcs import storage_errors

# TensorStore's codes for what is no fault of the files.
NOT_DAMAGE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")

# Orbax logs each save and load in a dozen lines, and each error that it raises with its traceback.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not what was saved."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"checkpoint {step} is damaged: {reason}")
        self.step, self.reason = step, reason

    def __reduce__(self) -> tuple[type[DamagedCheckpoint], tuple[int, str]]:
        return type(self), (self.step, self.reason)  # to be raised on other processes, too


class DeletedCheckpoint(CheckpointError):
    """A checkpoint that its run deleted or moved away while it was read."""

    def __init__(self, step: int):
        super().__init__(
            f"checkpoint {step} was deleted by its run while it was read: read another, or have the run keep more "
            "of them (loop.keep, loop.keep_every)"
        )
        self.step = step

    def __reduce__(self) -> tuple[type[DeletedCheckpoint], tuple[int]]:
        return type(self), (self.step,)


@contextmanager
def save_errors(step: int, steps: Sequence[int]) -> Iterator[None]:
    """Raises StorageError where a step cannot be written, and names the newest of `steps`, which are written."""
    try:
        yield
    except storage_errors(ValueError) as error:  # TensorStore raises a full disk as ValueError
        whole = [s for s in steps if s != step]
        rest = f"checkpoint {whole[-1]} is whole" if whole else "there is no earlier one"
        raise StorageError(f"checkpoint {step} could not be written ({_in_short(error)}); {rest}") from error


@contextmanager
def load_errors(step: int) -> Iterator[None]:
    """Raises DamagedCheckpoint where files are damaged or missing, and StorageError where they cannot be read."""
    with _without_prints():
        try:
            yield
        except Exception as error:  # Orbax raises that very class where TensorStore fails; others go on below
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            unread = isinstance(error, storage_errors()) and not missing
            if unread or str(error).startswith(NOT_DAMAGE):
                raise StorageError(f"checkpoint {step} cannot be read: {_in_short(error)}") from error
            expected = isinstance(error, OSError | ValueError | LookupError | TypeError)
            if not expected and type(error) is not Exception:
                raise
            reason = _in_short(error)
            del error
            gc.collect()  # the tasks that failed beside this one complain when they are collected: now
            raise DamagedCheckpoint(step, reason) from None


@contextmanager
def _without_prints() -> Iterator[None]:
    asyncio = logging.getLogger("asyncio")
    level, hook = asyncio.level, sys.unraisablehook
    asyncio.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        asyncio.setLevel(level)
        sys.unraisablehook = hook


def _in_short(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) < 250 else f"{line[:120]} … {line[-120:]}"  # TensorStore's lines are long
