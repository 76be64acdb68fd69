"""The parser of every command: what the values of options may be, and mistakes as one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from transfusion_jax.errors import LARGEST, MOST, ConfigError
from transfusion_jax.storage.paths import Place, place


class Parser(argparse.ArgumentParser):
    """A parser whose options take checked values, and whose mistakes are ConfigErrors.

    An option without a type takes a text that is not blank; one of the type `str`, any text.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for kind, read in TYPES.items():
            self.register("type", kind, read)

    def add_subparsers(self, **options: Any) -> Any:
        """As argparse's; the words of a part are checked by that part's own parser."""
        action = super().add_subparsers(**options)
        action.type = str
        return action

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with argparse's message."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


def read_whole(text: str, least: int = -MOST, most: int = MOST) -> int:
    """A whole number of an option."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} must be at least {least:,}")
    if number > most:
        raise argparse.ArgumentTypeError(f"{number} must be at most {most:,}")
    return number


def between(least: int, most: int = MOST) -> Callable[[str], int]:
    """The type of an option that takes whole numbers of a range."""
    return lambda text: read_whole(text, least, most)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not abs(number) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of 32 bits")
    return number


def _given(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "the value is empty: give one, or leave the option out (an unset variable of the shell is empty)"
        )
    return text


def _path(text: str) -> Path:
    return Path(_given(text))


def _place(text: str) -> Place:
    return place(_given(text))


TYPES: dict[Any, Callable[[str], Any]] = {None: _given, int: read_whole, float: _number, Path: _path, place: _place}
