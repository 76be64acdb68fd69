"""The identity autoencoder: latents are pixels."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from transfusion_jax.autoencoder.interface import Array, Encoding
from transfusion_jax.storage.paths import Place


@dataclass(frozen=True)
class Identity:
    """Passes images through; every latent lies in [−1, 1]."""

    name: str = "identity"
    bounds: tuple[float, float] | None = (-1.0, 1.0)
    codebook: int = 0

    def encode(self, images: Array) -> Encoding:
        """The images themselves as an exact mean."""
        return Encoding(mean=images)

    def decode(self, latents: Array) -> Array:
        """The latents, limited to [−1, 1]."""
        return jnp.clip(latents, -1, 1)

    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The same shape."""
        return latent_shape

    def hash(self) -> str:
        """A constant: there are no weights."""
        return self.name

    def save(self, folder: Place) -> None:
        """Nothing: its name is enough to find it."""


def from_name(name: str) -> Identity | None:
    """The autoencoder `identity`, or None if the name means none."""
    return Identity() if name == Identity.name else None
