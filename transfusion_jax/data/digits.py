"""scikit-learn's 1,797 handwritten digits as images with captions."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from transfusion_jax.config import ConfigError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = ("a handwritten {}", "the digit {}", "number {}", "a small {}")
LARGEST = 16  # scikit-learn's pixels run from 0 to 16


@dataclass(frozen=True)
class Digits:
    """Images `[n, 8, 8, 1]` in [−1, 1] and their labels `[n]`."""

    images: np.ndarray
    labels: np.ndarray


def load(held_out: float, seed: int) -> tuple[Digits, Digits]:
    """The digits that are trained on and those that are kept out, split at random by the seed.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    sklearn = find_spec("sklearn")  # its file alone: importing it takes two seconds
    if sklearn is None or sklearn.origin is None:
        raise ConfigError("the digits need scikit-learn: pip install 'transfusion-jax[digits]'")
    table = np.loadtxt(Path(sklearn.origin).parent / "datasets/data/digits.csv.gz", np.int64, delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1]
    images = (pixels / LARGEST * 2 - 1).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    kept, out = np.split(order, [round(len(order) * (1 - held_out))])
    return Digits(images[kept], labels[kept]), Digits(images[out], labels[out])


def captions(label: int) -> list[str]:
    """Every wording for a digit."""
    return [wording.format(NAMES[label]) for wording in WORDINGS]


def digit_in(caption: str) -> int | None:
    """The one digit that a caption names, or None."""
    named = [digit for digit, name in enumerate(NAMES) if name in caption.split()]
    return named[0] if len(named) == 1 else None
