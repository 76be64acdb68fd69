"""Grey levels of blocks as a vector-quantised autoencoder without weights: the simplest images that are codes.

`grey-f8k512` gives each 8×8 pixels one of 512 levels. Nothing is learnt, so it is there when no trained autoencoder
is: for synthetic codes, and to try models of codes on small grey images with `grey-f1k…`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax.numpy as jnp

from transfusion_jax.autoencoder.interface import Array, Encoding
from transfusion_jax.storage.paths import Place

NAME = re.compile(r"grey-f(1|2|4|8|16)k([1-9]\d*)")


@dataclass(frozen=True)
class Grey:
    """Each block's mean level, over its pixels and colours, as one of `levels` codes from black to white."""

    block: int
    levels: int
    bounds: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """`grey-f8k512`: the block's side and the levels."""
        return f"grey-f{self.block}k{self.levels}"

    @property
    def codebook(self) -> int:
        """The levels."""
        return self.levels

    def encode(self, images: Array) -> Encoding:
        """Codes `[B, h, w]` int32 of images `[B, H, W, 3 or 1]`."""
        b, height, width, channels = images.shape
        n = self.block
        means = jnp.asarray(images).reshape(b, height // n, n, width // n, n, channels).mean((2, 4, 5))
        codes = jnp.round((jnp.clip(means, -1, 1) + 1) / 2 * (self.levels - 1)).astype(jnp.int32)
        return Encoding(codes=codes)

    def decode(self, latents: Array) -> Array:
        """Images `[B, H, W, 1]` of codes `[B, h, w]`."""
        grey = jnp.asarray(latents) / jnp.float32(max(self.levels - 1, 1)) * 2 - 1
        return jnp.repeat(jnp.repeat(grey, self.block, 1), self.block, 2)[..., None]

    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """So many times the side, in grey."""
        return latent_shape[0] * self.block, latent_shape[1] * self.block, 1

    def hash(self) -> str:
        """The name: there are no weights."""
        return self.name

    def save(self, folder: Place) -> None:
        """Nothing: its name is enough to find it."""


def from_name(name: str) -> Grey | None:
    """The autoencoder `grey-fBkK`, or None if the name means none."""
    found = NAME.fullmatch(name)
    return Grey(int(found[1]), int(found[2])) if found else None
