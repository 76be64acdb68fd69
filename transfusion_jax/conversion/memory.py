"""What a conversion frees goes back to the system."""

import ctypes
import sys

MMAP_THRESHOLD = -3  # mallopt's name for it in glibc's malloc.h
LARGE = 2**20  # bytes


def give_back() -> None:
    """Has glibc return large blocks once they are freed, where it keeps them for each of its threads otherwise.

    TensorStore's threads would hold several pieces each that nobody needs any more. Other C libraries have no such
    setting, and need none.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, LARGE)
