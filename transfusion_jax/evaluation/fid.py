"""FID: the Fréchet distance by Inception's features, with clean-fid's rules of resizing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from PIL import Image as Pillow

from transfusion_jax.evaluation import inception
from transfusion_jax.evaluation.pictures import Drawn, listed_sizes, resized, sizes_of
from transfusion_jax.evaluation.suites.frechet import Statistics, distance
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.storage.paths import sha256

TOGETHER = 16  # images at a time
VARIANT = "clean-fid's resizing (Pillow's bicubic in float, to 299), Inception v3 of 2015-12-05, 2048 features"


@dataclass
class Fid:
    """Gathers features of drawn images, and of held-out ones unless their statistics are given."""

    weights: Path
    reference: Statistics | None = None
    _drawn: list[np.ndarray] = field(default_factory=list)
    _real: list[np.ndarray] = field(default_factory=list)
    _sizes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._arrays = inception.load_tensors(self.weights)

    def see(self, part: Drawn) -> None:
        """More images."""
        self._sizes += sizes_of(part.drawn)
        self._drawn.append(features_of(self._arrays, part.drawn))
        if self.reference is None:
            self._real.append(features_of(self._arrays, part.real))

    def metrics(self) -> dict[str, float]:
        """`fid`."""
        reference = self.reference or Statistics.of(np.concatenate(self._real))
        return {"fid": distance(Statistics.of(np.concatenate(self._drawn)), reference)}

    def about(self) -> dict[str, str]:
        """Which FID it is, and what became of the images."""
        side = inception.SIZE
        return {
            "fid_variant": VARIANT,
            "fid_resizing": f"from {listed_sizes(self._sizes)}, as the captions' own images, to {side}x{side} by "
            "Pillow's bicubic in float; proportions are not kept (clean-fid)",
            "inception": f"{self.weights.name}, sha256 {sha256(self.weights)}",
        }


def features_of(arrays: inception.Arrays, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Inception's features `[n, 2048]` of images `[H, W, 3]` uint8, of any shapes."""
    found = []
    for begin in range(0, len(images), TOGETHER):
        part = [resized(x, inception.SIZE, Pillow.Resampling.BICUBIC) for x in images[begin : begin + TOGETHER]]
        batch = np.zeros((TOGETHER, *part[0].shape), np.float32)
        batch[: len(part)] = part
        found.append(to_host(_features(arrays, batch))[: len(part)])
    return np.concatenate(found)


_features = jax.jit(inception.inception_features)
