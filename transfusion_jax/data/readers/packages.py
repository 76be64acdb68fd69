"""Sets that come as Debian packages: where their files lie."""

from __future__ import annotations

import os

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import files


def package_folder(name: str, path: str, package: str, place: str) -> str:
    """The folder of a set's files.

    Args:
        name: the set's, for messages.
        path: that folder, or one into which the package was unpacked; empty for the place where it is installed.
        package: its name in Debian.
        place: the folder within the package, such as `usr/share/tuxpaint/stamps`.

    Raises:
        ConfigError: there is no such folder.
    """
    root = os.path.expanduser(path) or "/"
    if files.is_folder(inner := files.join(root, place)):
        return inner
    if path and files.is_folder(root):
        return root
    if path.endswith(".deb") and files.exists(root):
        raise ConfigError(f"{path} is a package: unpack it with dpkg -x {path} FOLDER, and give {name}:FOLDER")
    unpacked = f"or give {name}:FOLDER, where FOLDER is what dpkg -x made of that package"
    raise ConfigError(f"there is no folder {root if path else inner}: apt-get install {package}, {unpacked}")
