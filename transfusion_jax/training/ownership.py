"""Whether a run's folder is still its own: a run writes nothing to one that was moved, replaced or deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transfusion_jax.storage.atomic import LostFolder, claimed
from transfusion_jax.storage.paths import Place


@contextmanager
def owned(folder: Place, run: Callable[[], str | None], also: Callable[[], bool] | None = None) -> Iterator[None]:
    """While the context lasts, writes below a folder fail once it belongs to another run.

    Args:
        folder: a run's directory. A local one is known by its inode, and held open so that no other gets it.
        run: the identity of the run that stands there; None where there is none.
        also: whether this process still holds the folder otherwise, such as by a lock.
    """
    place, known = folder.absolute(), run()

    def check() -> None:
        nonlocal known
        if isinstance(place, Path) and not is_at(opened, place):
            raise _lost(place, "it was moved, replaced or deleted")
        found = run()
        if known is not None and found != known:
            raise _lost(place, "another run is there" if found else "its manifest is gone")
        known = found
        if also is not None and not also():
            raise _lost(place, "its lock was deleted or taken")

    with ExitStack() as stack:
        opened = -1
        if isinstance(place, Path):
            opened = os.open(place, os.O_RDONLY)
            stack.callback(os.close, opened)
        stack.enter_context(claimed(place, check))
        yield


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is the one that is at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _lost(folder: Any, why: str) -> LostFolder:
    return LostFolder(
        f"{folder} is no longer this run's folder ({why}): nothing more was written there. The run's checkpoints "
        "are where its folder is now; to continue, run the same command with that --workdir"
    )
