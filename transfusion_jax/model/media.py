"""`Media`: the items of a modality in rows, each a grid of patches, packed without gaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Shaped

from transfusion_jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Media:
    """Items of one modality in B rows, each with room for N items and M patches.

    An item's patches stand together, in the order of its grid: time, height, width, the last axis running fastest.
    """

    patches: Float[Any, "B M values"]  # normalised; zeros behind the last one; none where images are codes
    item: Int32[Any, "B M"]  # which of the row's items a patch is of; −1 behind the last one
    coords: Int32[Any, "B M 3"]  # a patch's place in the grid of its item
    element: Int32[Any, "B M"]  # which of the row's elements a patch is; T behind the last one
    grid: Int32[Any, "B N 3"]  # an item's patches along time, height and width; 0 of an empty slot
    weight: Float32[Any, "B N"]  # 1 where the item bears a loss
    timestep_limit: Int32[Any, "B N"]  # highest timestep to train; 0 keeps the item clean
    comes_first: Bool[Any, "B N"]  # whether the item precedes its caption
    source: Int32[Any, "B N"]  # index of the source; −1 of an empty slot
    one_size: int = field(default=0, metadata={"static": True})  # patches of every item; 0: items differ

    @property
    def sizes(self) -> Int32[Array, "B N"]:
        """Patches of each item."""
        return jnp.prod(jnp.asarray(self.grid), axis=-1)

    def spread(self, values: Shaped[Array, "B N ..."]) -> Shaped[Array, "B M ..."]:
        """Each item's value at all of its patches; behind the last patch it means nothing."""
        rows, items, *rest = values.shape
        if self.one_size:
            repeated = jnp.broadcast_to(values[:, :, None], (rows, items, self.one_size, *rest))
            return repeated.reshape(rows, items * self.one_size, *rest)
        index = jnp.maximum(self.item, 0).reshape(*self.item.shape, *(1,) * len(rest))
        return jnp.take_along_axis(values, index, axis=1)

    def by_item(self, values: Shaped[Array, "B M ..."]) -> Shaped[Array, "B ..."]:
        """Values of patches: of items of one size each item's apart, `[B, N, P, …]`, else as they are."""
        rows, _, *rest = values.shape
        return values.reshape(rows, -1, self.one_size, *rest) if self.one_size else values

    def unpack(self, patches: Float[Any, "B M values"], model: ModelConfig) -> Float[Array, "B ..."]:
        """Patches as items are noised and compared: whole images `[B, N, h, w, c]` of one size, or as they are."""
        k, grid = model.patch_size, model.patch_grid
        return unpatchify(self.by_item(jnp.asarray(patches)), k, grid) if self.one_size else jnp.asarray(patches)

    def pack(self, values: Float[Array, "B ..."], model: ModelConfig) -> Float[Array, "B M values"]:
        """The inverse of `unpack`."""
        return patchify(values, model.patch_size).reshape(self.patches.shape) if self.one_size else values

    def mean(self, values: Float[Array, "B ..."]) -> Float[Array, "B N"]:
        """The mean over each item of values such as `unpack` gives."""
        if self.one_size:
            return jnp.mean(values, axis=(2, 3, 4))
        own = self.item[:, None, :] == jnp.arange(self.grid.shape[1])[:, None]
        of_patches = jnp.mean(values, axis=-1)[:, None, :]
        return jnp.sum(jnp.where(own, of_patches, 0), axis=-1) / jnp.maximum(self.sizes, 1)


def one_image(patches: Float[Array, "B M values"], grid: Int[Array, "B 2"], one_size: bool) -> Media:
    """Rows of elements that begin with one image each.

    Args:
        patches: of the images, with room for M each.
        grid: rows and columns of patches of each image.
        one_size: whether every image has M patches.
    """
    index = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
    height, width = grid[:, :1], grid[:, 1:]
    here = index < height * width
    zeros = jnp.zeros_like(height)
    return Media(
        patches=patches,
        item=jnp.where(here, 0, -1),
        coords=jnp.where(here[..., None], _place_in(index, width), 0),
        element=jnp.where(here, index, jnp.iinfo(jnp.int32).max),
        grid=jnp.concatenate([jnp.ones_like(height), grid], axis=1)[:, None],
        weight=zeros.astype(jnp.float32),
        timestep_limit=zeros,
        comes_first=zeros.astype(bool),
        source=zeros,
        one_size=patches.shape[1] if one_size else 0,
    )


def _place_in(index: Int[Array, "B M"], width: Int[Array, "B 1"]) -> Int[Array, "B M 3"]:
    """Time, row and column of each patch of an image with this number of columns."""
    width = jnp.maximum(width, 1)
    return jnp.stack([jnp.zeros_like(index), index // width, index % width], axis=-1)


@lru_cache(maxsize=4096)
def grid_coords(*grid: int) -> Int32[np.ndarray, "patches axes"]:
    """The place of each patch of a grid, `[patches, axes]` int32, the last axis running fastest."""
    return np.indices(grid, np.int32).reshape(len(grid), -1).T


def text_positions(count: int, axes: bool) -> Int[np.ndarray, "{count} ..."]:
    """Positions of so much text, `[n]`, or the same on three axes, `[n, 3]`."""
    positions = np.arange(count)
    return np.repeat(positions[:, None], 3, axis=1) if axes else positions


def following_positions(grid: Int[Array, "B 2"], elements: int, axes: bool) -> Int[Array, "B {elements} ..."]:
    """Positions of an image's patches and of the text behind it, counted from the first element.

    With three axes, time, height and width, a patch has its place in the grid, and the text goes on behind the
    largest of them, the same on all axes (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Args:
        grid: rows and columns of patches of each image.
        elements: of each row, the image's patches first.
        axes: whether there are three.
    """
    index = jnp.broadcast_to(jnp.arange(elements), (len(grid), elements))
    if not axes:
        return index
    height, width = grid[:, :1], grid[:, 1:]
    behind = jnp.maximum(height, width) + index - height * width
    return jnp.where((index < height * width)[..., None], _place_in(index, width), behind[..., None])


def patchify(latents: Float[Any, "*lead h w c"], size: int) -> Float[Any, "*lead P D"]:
    """Squares of size × size places as vectors, left to right and top to bottom."""
    *lead, height, width, channels = latents.shape
    squares = latents.reshape(*lead, height // size, size, width // size, size, channels)
    return squares.swapaxes(-4, -3).reshape(*lead, -1, size * size * channels)


def unpatchify(patches: Float[Any, "*lead P D"], size: int, grid: tuple[int, int]) -> Float[Any, "*lead h w c"]:
    """The inverse of `patchify`, for so many rows and columns of patches."""
    *lead, _, values = patches.shape
    squares = patches.reshape(*lead, *grid, size, size, values // size**2)
    return squares.swapaxes(-4, -3).reshape(*lead, grid[0] * size, grid[1] * size, values // size**2)
