"""What becomes of a job when its processes end: the one reading of the exit codes that every target follows."""

from __future__ import annotations

from collections.abc import Sequence

from transfusion_jax.errors import INTERRUPTED, LostProcess, StorageError, TrainingHalted, UserError

STOP = (UserError.exit_code, TrainingHalted.exit_code, StorageError.exit_code)  # running again would change nothing


def restarts(code: int) -> bool:
    """Whether a job that ended so is to be run again."""
    return code != 0 and code not in STOP


def combine_codes(codes: Sequence[int]) -> int:
    """The exit code of a job from those of its processes, in the order in which they ended.

    A process that knows why to stop, or that the state is saved, speaks for all. Otherwise the first that failed is
    the cause, unless all it says is that it lost another one.
    """
    for code in (*STOP, INTERRUPTED):
        if code in codes:
            return code
    failed = [code for code in codes if code]
    causes = [code for code in failed if code != LostProcess.exit_code]
    return (causes or failed or [0])[0]
