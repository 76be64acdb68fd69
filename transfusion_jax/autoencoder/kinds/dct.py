"""Blocks of cosine transforms as an autoencoder without weights: the low frequencies of B×B pixels are one latent.

`dct-f8c8` halves 256×256×3 pixels three times over, to 32×32×8: six frequencies of luminance and the mean of each
chrominance, as JPEG keeps them first. Nothing is learnt, so it is there when no trained autoencoder is; what it
leaves out is lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np

from transfusion_jax.autoencoder.interface import Array, Encoding
from transfusion_jax.storage.paths import Place

NAME = re.compile(r"dct-f(2|4|8|16)c(\d+)")
YCBCR = np.array(  # ITU-R BT.601; rows: luminance and both chrominances of red, green and blue
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


@dataclass(frozen=True)
class CosineBlocks:
    """Orthonormal two-dimensional cosine transforms (type II) of blocks, the lowest frequencies first."""

    block: int
    channels: int
    bounds: tuple[float, float] | None = None
    codebook: int = 0

    @property
    def name(self) -> str:
        """`dct-f8c8`: the block's side and the channels."""
        return f"dct-f{self.block}c{self.channels}"

    def encode(self, images: Array) -> Encoding:
        """Coefficients, divided by the block's side, of images `[B, H, W, 3]`; there is no variance."""
        b, height, width, _ = images.shape
        n, planes = self.block, jnp.asarray(images) @ YCBCR.T.astype(np.float32)
        blocks = planes.reshape(b, height // n, n, width // n, n, 3)
        return Encoding(mean=jnp.einsum("bhywxp,yxpc->bhwc", blocks, self._analysis))

    def decode(self, latents: Array) -> Array:
        """Images `[B, H, W, 3]`, limited to [−1, 1]."""
        b, height, width, _ = latents.shape
        blocks = jnp.einsum("bhwc,yxpc->bhywxp", jnp.asarray(latents), self._analysis * self.block**2)
        planes = blocks.reshape(b, height * self.block, width * self.block, 3)
        return jnp.clip(planes @ np.linalg.inv(YCBCR).T.astype(np.float32), -1, 1)

    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """So many times the side, in colour."""
        return latent_shape[0] * self.block, latent_shape[1] * self.block, 3

    def hash(self) -> str:
        """The name: there are no weights."""
        return self.name

    def save(self, folder: Place) -> None:
        """Nothing: its name is enough to find it."""

    @cached_property
    def _analysis(self) -> np.ndarray:
        """`[y, x, plane, channel]` float32: what each channel takes of each value of a block."""
        n = self.block
        k, x = np.arange(n)[:, None], np.arange(n)[None]
        basis = np.cos(np.pi * k * (2 * x + 1) / (2 * n)) * np.sqrt(np.where(k == 0, 1, 2) / n)
        order = sorted(np.ndindex(n, n), key=lambda at: (at[0] + at[1], at[0]))  # zigzag
        chroma = max(1, self.channels // 8)  # frequencies of each chrominance
        kept = [(0, at) for at in order[: self.channels - 2 * chroma]]
        kept += [(plane, at) for at in order[:chroma] for plane in (1, 2)]
        result = np.zeros((n, n, 3, self.channels), np.float32)
        for channel, (plane, (v, u)) in enumerate(kept):
            result[:, :, plane, channel] = np.outer(basis[v], basis[u]) / n
        return result


def from_name(name: str) -> CosineBlocks | None:
    """The autoencoder `dct-fBcC`, or None if the name means none: C runs from 3 to B² and more."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    block, channels = int(found[1]), int(found[2])
    luminance = channels - 2 * max(1, channels // 8)
    return CosineBlocks(block, channels) if 1 <= luminance <= block**2 else None
