"""The Fréchet distance between two sets of features, and the suite `frechet`: that of small pixels.

`frechet_pixels` compares images by their own pixels, averaged to 8×8. It needs no weights and little time, and
knows nothing of what images show: it is no FID, and is not to be compared with one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image as Pillow

from transfusion_jax.config import Config, ConfigError, require
from transfusion_jax.data.datasets import Data
from transfusion_jax.evaluation.pictures import captioned_pictures, draw_for_pictures, resized
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask

GRID = 8  # pixels of a side that are left


@dataclass(frozen=True)
class Statistics:
    """Mean `[d]` and covariance `[d, d]` of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Statistics:
        """Of features `[n, d]`; the covariance is the unbiased one.

        Raises:
            ConfigError: of one image, there is no covariance.
        """
        require(len(features) > 1, f"a Fréchet distance takes two images at least, not {len(features)}")
        features = features.astype(np.float64)
        return cls(features.mean(0), np.cov(features, rowvar=False))

    @classmethod
    def load(cls, path: Path, size: int) -> Statistics:
        """Of an `.npz` file with `mu` and `sigma`, as pytorch-fid and clean-fid keep them.

        Raises:
            ConfigError: it holds none, or of other features than `size`.
        """
        require(path.is_file(), f"there is no file {path}")
        try:
            with np.load(path) as held:
                found = cls(held["mu"].astype(np.float64), held["sigma"].astype(np.float64))
        except (KeyError, ValueError, OSError) as error:
            raise ConfigError(f"{path} holds no mu and sigma: {error}") from error
        require(
            found.mean.shape == (size,) and found.covariance.shape == (size, size),
            f"{path} holds statistics of {found.mean.shape} features, not of {size}",
        )
        return found


def distance(first: Statistics, second: Statistics) -> float:
    """The squared Fréchet distance of two normal distributions (arXiv 1706.08500).

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½): of symmetric matrices, so that singular ones do, too.
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    both = np.linalg.eigvalsh(root @ second.covariance @ root)
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(np.sum((first.mean - second.mean) ** 2) + traces - 2 * np.sum(np.sqrt(np.maximum(both, 0))))


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`frechet_pixels` from held-out images to those drawn for their captions, each in the shape of its own.

    And `frechet_pixels_real`, to as many training images, where there are two or more.

    Raises:
        ConfigError: fewer than two captioned images were held out.
    """
    check(task.config, data)
    config, seed = task.config, int(jax.random.bits(key, dtype=np.uint32))
    unseen, seen = (
        list(itertools.islice(captioned_pictures(corpus, config, data.codec, seed), config.evaluation.images))
        for corpus in (data.held_out, data.train)
    )
    drawn = draw_for_pictures(task, params, data.codec, unseen, seed)
    real = small_pixels([picture.image for picture in unseen])
    found = {"frechet_pixels": distance(small_pixels(drawn), real)}
    if len(seen) > 1:
        learnt = small_pixels([picture.image for picture in seen[: len(unseen)]])
        found["frechet_pixels_real"] = distance(learnt, real)
    return found


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where fewer than two captioned images are held out, or the model draws none."""
    require(config.model.images != "none", "the suite 'frechet' draws, and this is a model of text alone")
    found = list(itertools.islice(captioned_pictures(data.held_out, config, data.codec, config.seed), 2))
    require(len(found) > 1, "the suite 'frechet' needs captioned images among the held-out data")


def small_pixels(images: Sequence[np.ndarray] | np.ndarray) -> Statistics:
    """Of images `[H, W, 3]` uint8 of any shapes, averaged to 8×8, in [−1, 1]."""
    small = np.stack([resized(image, GRID, Pillow.Resampling.BOX) for image in images])
    return Statistics.of(small.reshape(len(small), -1) / 127.5 - 1)


SUITE = Suite(run, "images", True, check=check, native_version=2)
