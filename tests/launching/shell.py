"""Shell scripts, checked by the shellcheck that pip installed beside Python."""

import subprocess
import sysconfig
from pathlib import Path

SHELLCHECK = Path(sysconfig.get_path("scripts")) / "shellcheck"


def assert_sound(script):
    """Fails with what shellcheck says of a file."""
    checked = subprocess.run([SHELLCHECK, "--shell=bash", script], text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
