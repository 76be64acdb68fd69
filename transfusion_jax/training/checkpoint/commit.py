"""Folders of checkpoints, which are there whole or not at all.

On a disk, a folder is made, moved and unmade by one rename. A bucket renames nothing: there a folder is whole while
it holds the object that Orbax writes last, which is taken away before anything else.
"""

from __future__ import annotations

from pathlib import Path

from transfusion_jax.errors import whole_number
from transfusion_jax.storage.atomic import check_own
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place, remove

WHOLE = "commit_success.txt"  # Orbax's name
UNFINISHED = ".orbax-checkpoint-tmp"  # what Orbax appends to a local folder until it is whole
UNWANTED = ".deleting"


def uncommitted(folder: Place, token: str) -> Place:
    """Where a folder is written before it is moved into place; in a bucket, that place itself."""
    return folder if isinstance(folder, BucketPath) else folder.with_name(f"{folder.name}.{token}{UNFINISHED}")


def sweep_uncommitted(folder: Place) -> None:
    """Removes what Orbax has written of an uncommitted folder, under whichever of its names."""
    for entry in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if entry.name.startswith(folder.name):
            remove(entry)


def numbered(directory: Place) -> list[int]:
    """The numbers that name whole folders, in order."""
    if isinstance(directory, Path) and not directory.is_dir():
        return []
    found = {whole_number(entry.name): entry for entry in directory.iterdir()}
    return sorted(number for number, entry in found.items() if number is not None and is_whole(entry))


def is_whole(folder: Place) -> bool:
    """Whether a folder with a number for its name is complete."""
    return not isinstance(folder, BucketPath) or (folder / WHOLE).is_file()


def is_there(folder: Place) -> bool:
    """Whether the folder of a checkpoint is in its place, complete."""
    return is_whole(folder) if isinstance(folder, BucketPath) else folder.is_dir()


def remove_unfinished(directory: Place) -> None:
    """Removes what a killed process left of writing, moving or deleting folders."""
    check_own(directory)
    if isinstance(directory, Path) and not directory.is_dir():
        return
    entries: list[Place] = list(directory.iterdir())
    for entry in entries:
        if entry.name.endswith((UNFINISHED, UNWANTED)) or not is_whole(entry):
            remove(entry)


def delete_folder(folder: Place) -> None:
    """Deletes a folder; killed midway, it leaves no part of it that could be taken for whole."""
    check_own(folder)
    if isinstance(folder, BucketPath):
        (folder / WHOLE).unlink(missing_ok=True)
        folder.remove()
    else:
        remove(folder.rename(folder.with_name(folder.name + UNWANTED)))


def move(folder: Place, to: Place) -> Place:
    """Moves a folder; killed midway, it is whole in one of the two places. In a bucket the service copies it."""
    check_own(folder)
    if isinstance(folder, Path):
        assert isinstance(to, Path)
        return folder.rename(to)
    assert isinstance(to, BucketPath)
    names = list(folder.sizes())
    for name in [name for name in names if name != WHOLE] + [name for name in names if name == WHOLE]:
        (folder / name).copy(to / name)
    delete_folder(folder)
    return to
