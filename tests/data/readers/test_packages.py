"""Sets that come as Debian packages: what is said where they are not found."""

import pytest

from data.readers.samples import read
from transfusion_jax.config import ConfigError

SETS = pytest.mark.parametrize(
    ("name", "package"), [("stamps", "tuxpaint-stamps-default"), ("clipart", "openclipart-png")]
)


@SETS
def test_a_folder_that_is_not_there_is_named_with_the_package(tmp_path, name, package):
    with pytest.raises(ConfigError, match=f"none: apt-get install {package}, or give {name}:FOLDER"):
        read(f"{name}:{tmp_path / 'none'}")


@SETS
def test_a_package_is_to_be_unpacked(tmp_path, name, package):
    (tmp_path / "set.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(ConfigError, match=rf"dpkg -x .*set\.deb FOLDER, and give {name}:FOLDER"):
        read(f"{name}:{tmp_path / 'set.deb'}")


@SETS
def test_a_folder_of_something_else_is_refused(tmp_path, name, package):
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no"):
        read(f"{name}:{tmp_path}")
