"""scikit-learn's 1,797 handwritten digits, 8×8 pixels of grey, each with four captions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import InputShard, RawDocument, RawImage, RawText

COUNT = 1797
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = ("a handwritten {}", "the digit {}", "number {}", "a small {}")
LARGEST = 16  # scikit-learn's pixels run from 0 to 16


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """One shard; `path` is empty.

    Raises:
        ConfigError: the path is not empty, or scikit-learn is not installed.
    """
    require(not path, f"digits:{path}: the digits are one set: name it digits")
    _file()
    return [InputShard(path)]


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument]:
    """A document for each wording of each digit, whose label is kept."""
    table = np.loadtxt(_file(), np.int64, delimiter=",")
    pixels = np.rint(table[:, :-1] * (255 / LARGEST)).astype(np.uint8).reshape(-1, 8, 8, 1)
    for number, (image, label) in enumerate(zip(pixels, table[:, -1].tolist(), strict=True)):
        for wording, caption in enumerate(captions(label)):
            yield RawDocument(f"{number}.{wording}", (RawText(caption), RawImage(image)), {"digit": label})


def captions(label: int) -> list[str]:
    """Every wording for a digit."""
    return [wording.format(NAMES[label]) for wording in WORDINGS]


def digit_in(caption: str) -> int | None:
    """The one digit that a caption names, or None."""
    named = [digit for digit, name in enumerate(NAMES) if name in caption.split()]
    return named[0] if len(named) == 1 else None


def _file() -> Path:
    sklearn = find_spec("sklearn")  # its file alone: importing it takes two seconds
    if sklearn is None or sklearn.origin is None:
        raise ConfigError("the digits need scikit-learn: pip install 'transfusion-jax[digits]'")
    return Path(sklearn.origin).parent / "datasets/data/digits.csv.gz"


FORMAT = Format(shards, read, is_set=True)
