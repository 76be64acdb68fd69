"""Harm done to files, and what folders hold."""

import hashlib
import shutil
from pathlib import Path

import numpy as np


def names(folder: Path) -> list[str]:
    """The files of a folder, by their paths within."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names(folder)}


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, other: Path) -> None:
    """A bit whose place depends on the name alone."""
    data = bytearray(path.read_bytes() or b" ")
    place = np.random.default_rng(list(path.name.encode())).integers(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def remove(path: Path, other: Path) -> None:
    path.unlink()


def replace(path: Path, other: Path) -> None:
    """By the file of that name in another folder."""
    shutil.copy(other, path) if other.exists() else path.unlink()


def directory(path: Path, other: Path) -> None:
    """What a restored backup or a mistyped copy leaves."""
    path.unlink()
    path.mkdir()


HARMS = {harm.__name__: harm for harm in (cut, empty, flip, remove, replace)}
