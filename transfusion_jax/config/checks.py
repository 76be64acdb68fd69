"""Checks of values, each an error that says what is wrong in one sentence."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from transfusion_jax.errors import UserError


class ConfigError(UserError, ValueError):
    """A config, or an option, that cannot be honoured."""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any, section: str, *names: str) -> None:
    """Requires the named fields to be above zero, and finite; `section` is their dotted prefix."""
    for name in names:
        value = getattr(config, name)
        require(0 < value < math.inf, f"{section}{name} must be positive, not {value}")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Requires a value from the list, and names the nearest one otherwise."""
    choices = tuple(choices)
    require(value in choices, f"{name} is {value!r}; {nearest(value, choices)}")


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """`did you mean …?` where something is near, the whole list otherwise."""
    valid = sorted(valid)
    close = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"
