"""What becomes of a job when its processes end: the one reading of the exit codes that every target follows."""

from __future__ import annotations

from collections.abc import Sequence

from transfusion_jax.errors import INTERRUPTED, StorageError, TrainingHalted, UserError

HUNG = 76  # EX_PROTOCOL of sysexits.h: a watchdog ended a process whose peers did not answer
STOP = (UserError.exit_code, TrainingHalted.exit_code, StorageError.exit_code)  # running again would change nothing
AGAIN = (
    INTERRUPTED,
    HUNG,
)  # nothing is wrong with the job itself: these restarts are not counted where that can be


def restarts(code: int) -> bool:
    """Whether a job that ended so is to be run again."""
    return code != 0 and code not in STOP


def combine(codes: Sequence[int]) -> int:
    """The exit code of a job from those of its processes, in the order in which they ended.

    The first of `STOP` and `AGAIN` that occurs says most: processes whose peer has gone are aborted, whatever made
    it go. Otherwise the first that failed is the cause.
    """
    for code in (*STOP, *AGAIN):
        if code in codes:
            return code
    return next((code for code in codes if code), 0)
