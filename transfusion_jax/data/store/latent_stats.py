"""Mean and deviation of latents, by which a model sees them normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel over the training images, `[c]`."""

    mean: np.ndarray
    std: np.ndarray

    def normalise(self, latents: np.ndarray) -> np.ndarray:
        """Latents, float32, with zero mean and unit variance."""
        *rest, width, channels = 1, *latents.shape
        lines = latents.reshape(*rest, width * channels).astype(np.float32)
        mean, std = self._of_line(width)
        lines -= mean
        lines /= std
        return lines.reshape(latents.shape)

    def _of_line(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation tiled along a line of places: NumPy is twice as fast on long lines."""
        if width not in self._lines:
            mean, std = self.mean.astype(np.float32), self.std.astype(np.float32)
            self._lines[width] = np.tile(mean, width), np.tile(std, width)
        return self._lines[width]

    @cached_property
    def _lines(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}

    def restore(self, latents: np.ndarray) -> np.ndarray:
        """The inverse of `normalise`."""
        return (latents * self.std + self.mean).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `LatentStatistics.from_dict` reads back."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatentStatistics:
        """The inverse of `to_dict`."""
        return cls(np.asarray(values["mean"]), np.asarray(values["std"]))


@dataclass(frozen=True)
class Moments:
    """Sums over latents, which add up: over images, shards and data sets."""

    count: int  # latent elements per channel
    total: np.ndarray  # [c] float64
    squares: np.ndarray  # [c] float64

    @classmethod
    def none(cls, channels: int) -> Moments:
        """Of no latents."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, latents: np.ndarray) -> Moments:
        """Of latents `[..., c]`."""
        channels = np.ascontiguousarray(latents.reshape(-1, latents.shape[-1]).T, np.float64)  # sums run fast so
        return cls(channels.shape[1], channels.sum(1), np.square(channels).sum(1))

    @classmethod
    def of_all(cls, images: Sequence[np.ndarray], channels: int) -> Moments:
        """Of the latents `[..., c]` of any number of images, which may differ in shape."""
        if not images:
            return cls.none(channels)
        return cls.of(np.concatenate([image.reshape(-1, channels) for image in images]))

    def __bool__(self) -> bool:
        return self.count > 0

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def statistics(self) -> LatentStatistics:
        """Mean and deviation."""
        mean = self.total / self.count
        return LatentStatistics(mean, np.sqrt(np.maximum(self.squares / self.count - mean**2, 0)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `Moments.from_dict` reads back exactly."""
        return {"count": self.count, "total": self.total.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Moments:
        """The inverse of `to_dict`."""
        return cls(values["count"], np.asarray(values["total"]), np.asarray(values["squares"]))
