"""What every image autoencoder offers; `load_autoencoder` finds one by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from transfusion_jax.storage.paths import Place

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoding:
    """An encoded batch: a Gaussian over latents, or codes of a vector-quantised autoencoder."""

    mean: Array | None = None  # [B, h, w, c]
    log_variance: Array | None = None  # [B, h, w, c]; None where the encoding is exact
    codes: Array | None = None  # [B, h, w] int


class Autoencoder(Protocol):
    """Images `[B, H, W, 3 or 1]` in [−1, 1] to latents and back."""

    @property
    def name(self) -> str:
        """What a config calls it."""
        ...

    @property
    def codebook(self) -> int:
        """How many codes there are; 0 where it gives latents."""
        ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Values that latents are limited to, before normalisation; None: they are not."""
        ...

    def encode(self, images: Array) -> Encoding:
        """Latents or codes of images; compiled by itself."""
        ...

    def decode(self, latents: Array) -> Array:
        """Images `[B, H, W, channels]` in [−1, 1] of latents `[B, h, w, c]` (or codes `[B, h, w]`)."""
        ...

    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the images that have latents of this shape."""
        ...

    def hash(self) -> str:
        """Identifies the weights: equal hashes encode equally."""
        ...

    def save(self, folder: Place) -> None:
        """Writes what its name alone does not tell, such as weights; most write nothing."""
        ...
