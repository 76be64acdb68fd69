"""Errors that end a command with one sentence, the checks that raise them, and the exit codes of every command.

The codes are a stable interface.

| code | means |
|---|---|
| 0 | done |
| 1 | an unexpected error, with its traceback |
| 2 | the command cannot be honoured as it was given |
| 3 | training stopped itself: too many bad steps in a row, or a spike where the config says stop |
| 74 | nothing can be written or read, as on a full disk or from a bucket; the last checkpoint is whole |
| 75 | a signal ended training and the state is saved: the same command goes on |
| 76 | another process of the run is gone, or nothing went on for too long: the same command goes on |
| 130, 143 | SIGINT ended a command that has nothing to save, or a second SIGINT or SIGTERM one that has |
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
MOST = 2**31 - 1  # the largest count: steps, rows and tokens are numbered in 32 bits on the devices
LARGEST = 3.4e38  # number, of 32 bits as the devices compute with
LONGEST_LINE = 2000  # characters of an error that are shown
SURROGATES = "\ud800-\udfff"  # half a character: JSON can hold them, and names of files that are not UTF-8
STEERING = (
    re.compile(  # controls of a terminal but for line ends and tabs, marks that turn the direction, half characters
        f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069{SURROGATES}]"
    )
)
_HALVES = re.compile(f"[{SURROGATES}]")


def printable(text: str) -> str:
    """A text from data such that printing it shows it and does nothing else: what steers a terminal is escaped."""
    return STEERING.sub(_escape, text)


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: half characters are escaped."""
    return text if text.isascii() else _HALVES.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()


class UserError(Exception):
    """An end that the user should read as one sentence, without a traceback, and that prints no data's escapes."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(UserError, ValueError):
    """A config, or an option, that cannot be honoured."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, or that holds another state than the one asked for."""


class TrainingHalted(UserError):
    """Training that stopped itself because of bad steps."""

    exit_code = 3


class StorageError(UserError):
    """Files that cannot be written or read; 74 is EX_IOERR of sysexits.h."""

    exit_code = 74


class LostProcess(UserError):
    """A process that this one cannot go on without; EX_PROTOCOL of sysexits.h."""

    exit_code = 76


def some(names: Sequence[Any], most: int = 4) -> str:
    """The first few of many names, for a message."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def cut_lines(text: str) -> str:
    """A message whose long lines are cut."""
    return "\n".join(map(_shortened, text.split("\n")))


def _shortened(line: str) -> str:
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def whole_number(text: str, most: int = MOST) -> int | None:
    """The number that a word of decimal digits says; None for other words, and for numbers above `most`."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    number = int(text)
    return number if number <= most else None


def whole_range(text: str, between: str) -> tuple[int, int] | None:
    """The two numbers of `A:B`, or with another sign between them; None for other words."""
    first, _, second = text.partition(between)
    numbers = whole_number(first), whole_number(second)
    return None if None in numbers else numbers  # type: ignore[return-value]


def check_text(text: str, name: str) -> None:
    """Requires Unicode text without null characters: nothing else can be a file's name, or be encoded as UTF-8.

    Raises:
        ConfigError: it is not; `name` says what it is.
    """
    require("\0" not in text, f"{name} {text!r} contains a null character: leave it out")
    require(
        not any("\ud800" <= character <= "\udfff" for character in text),
        f"{name} {text!r} is not UTF-8 text: rename what it names, or write it in UTF-8",
    )


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any, section: str, *names: str) -> None:
    """Requires the named fields to be above zero, and finite; `section` is their dotted prefix."""
    for name in names:
        value = getattr(config, name)
        require(0 < value < math.inf, f"{section}{name} must be positive, not {value}")


def not_negative(config: Any, section: str, *names: str) -> None:
    """Requires the named fields to be zero or above, and finite; `section` is their dotted prefix."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value < math.inf, f"{section}{name} must not be negative, not {value}")


def from_to(config: Any, section: str, low: float, high: float, *names: str) -> None:
    """Requires the named fields to lie between two numbers, or at one of them."""
    for name in names:
        value = getattr(config, name)
        require(low <= value <= high, f"{section}{name} must lie between {low:g} and {high:g}, not {value}")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Requires a value from the list, and names the nearest one otherwise."""
    choices = tuple(choices)
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; {nearest(value, choices)}")


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """`did you mean …?` where something is near, the whole list otherwise."""
    valid = sorted(valid)
    close = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"
