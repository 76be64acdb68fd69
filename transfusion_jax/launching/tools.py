"""The programs of clusters, as this machine has them."""

from __future__ import annotations

import shutil
import subprocess

from transfusion_jax.config import ConfigError
from transfusion_jax.errors import UserError


def require_tool(name: str, advice: str) -> None:
    """Raises a ConfigError with what to do where there is no such program."""
    if shutil.which(name) is None:
        raise ConfigError(f"this machine has no {name}: {advice} (--dry-run needs none)")


def output(*words: str, stdin: str | None = None) -> str:
    """What the program prints.

    Raises:
        UserError: it fails; with what it says itself.
    """
    result = attempt(*words, stdin=stdin)
    if result.returncode:
        raise UserError(f"{' '.join(words[:3])} failed: {says(result)}")
    return result.stdout


def attempt(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the program, which may fail."""
    return subprocess.run(words, input=stdin, text=True, capture_output=True, check=False)


def says(result: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed gives as the reason, on one line."""
    return " ".join((result.stderr or result.stdout).split()) or f"exit code {result.returncode}"
