"""Whether an output can be written: asked before the work that it is to hold."""

from __future__ import annotations

from transfusion_jax.errors import require
from transfusion_jax.storage.atomic import check_writable
from transfusion_jax.storage.paths import Place


def check_output_file(path: Place) -> None:
    """Returns where a file can be written; nothing is made or left behind.

    Raises:
        ConfigError: it is a folder.
        StorageError: its folder cannot be written to.
    """
    require(not path.is_dir(), f"{path} is a folder: name a file in it")
    check_writable(path.parent)


def check_output_folder(path: Place) -> None:
    """Returns where files can be written to a folder; nothing is made or left behind.

    Raises:
        ConfigError: it is a file.
        StorageError: it cannot be written to.
    """
    require(path.is_dir() or not path.exists(), f"{path} is a file: choose a folder")
    check_writable(path)
