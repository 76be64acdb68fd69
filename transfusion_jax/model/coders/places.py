"""The places that a U-Net works on: of images of one size, or of the patches of items of any shape.

Both classes have the same methods, and arrays of their own shape whose last axis has the channels; on each level
further from the latents the sides are halved, until a place is a patch.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from transfusion_jax.config import ModelConfig
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.attention import attention
from transfusion_jax.model.layers import dot
from transfusion_jax.model.media import Media, patchify, unpatchify
from transfusion_jax.parallel.sharding import split

HEAD = 64  # channels of an attention head, where they divide the level's
NONE = -1  # no place


def places_of(media: Media, config: ModelConfig) -> ImagePlaces | PatchPlaces:
    """The places of these items."""
    return ImagePlaces(media, config) if media.one_size else PatchPlaces(media, config)


class ImagePlaces:
    """Those of images of one size, whole: `[B·N, height, width, channels]`."""

    def __init__(self, media: Media, config: ModelConfig):
        self.lead, self.grid = media.grid.shape[:2], config.patch_grid

    def split(self, x: Shaped[Array, "images ..."]) -> Shaped[Array, "images ..."]:
        """The same, rows split as a batch is, and slots over what is left."""
        return split(x.reshape(*self.lead, *x.shape[1:]), "batch", "slots").reshape(x.shape)

    def of_items(self, values: Shaped[Array, "B N ..."]) -> Shaped[Array, "images ..."]:
        """Values of the items, as `spread` takes them."""
        return values.reshape(-1, *values.shape[2:])

    def spread(
        self, values: Float[Array, "images c"], like: Float[Array, "images h w c"]
    ) -> Float[Array, "images 1 1 c"]:
        """Values of the items, to be added to those of their places."""
        del like
        return values[:, None, None]

    def unpack(self, patches: Float[Array, "B M values"], side: int) -> Float[Array, "images h w c"]:
        """Patches as so many places high and wide."""
        images = patches.reshape(-1, self.grid[0] * self.grid[1], patches.shape[-1])
        return unpatchify(images, side, self.grid)

    def pack(self, x: Float[Array, "images h w c"]) -> Float[Array, "B M values"]:
        """The inverse of `unpack`."""
        patches = patchify(x, x.shape[1] // self.grid[0])
        return patches.reshape(self.lead[0], -1, patches.shape[-1])

    def repeat(self, x: Float[Array, "images h w c"]) -> Float[Array, "images H W c"]:
        """Each place as two by two."""
        return x.repeat(2, axis=1).repeat(2, axis=2)

    def convolve(
        self, x: Float[Array, "images h w n"], kernel: nnx.Param, stride: int = 1
    ) -> Float[Array, "images _ _ m"]:
        """Convolution by a kernel `[3, 3, in, out]`, with one place of zeros around each image."""
        return jax.lax.conv_general_dilated(
            x, split(kernel[...]), (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def attend(
        self, q: Float[Array, "images h w c"], k: Float[Array, "images h w c"], v: Float[Array, "images h w c"]
    ) -> Float[Array, "images h w c"]:
        """Attention of every place to every one of its image."""
        heads = (x.reshape(len(x), -1, *heads_of(x.shape[-1])) for x in (q, k, v))
        return jax.nn.dot_product_attention(*heads, implementation="xla").reshape(q.shape)


class PatchPlaces:
    """Those of the patches of items of any shape, side by side as in `Media`: `[B, M · places, channels]`.

    A patch's places are in z-order: on every level the four of a square follow one another, and are one place of
    the next level. A convolution gathers the nine places that each of its windows reads, zeros outside of the
    item. Nothing is computed but what a row has room for.
    """

    def __init__(self, media: Media, config: ModelConfig):
        self.media, self.attention = media, config.attention
        self.patches = media.item.shape[1]
        index, real = jnp.arange(self.patches), media.item >= 0
        time, row, column = jnp.moveaxis(jnp.asarray(media.coords), -1, 0)
        frames, height, width = jnp.moveaxis(media.spread(jnp.asarray(media.grid)), -1, 0)
        first = index - (time * height + row) * width - column
        end = first + frames * height * width
        self.spans = Spans(jnp.where(real, first, index), jnp.where(real, end, index + 1))  # of its item's patches
        down, across = np.indices((3, 3)) - 1
        y, x = row[..., None, None] + down, column[..., None, None] + across
        inside = (y >= 0) & (y < height[..., None, None]) & (x >= 0) & (x < width[..., None, None])
        beside = (index[:, None, None] + down * width[..., None, None]) + across
        self.beside = jnp.where(inside & real[..., None, None], beside, NONE)  # patches around each, [B, M, 3, 3]

    def split(self, x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
        """The same, rows split as a batch is."""
        return split(x, "batch")

    def of_items(self, values: Shaped[Array, "B N ..."]) -> Shaped[Array, "B N ..."]:
        """Values of the items, as `spread` takes them."""
        return values

    def spread(self, values: Float[Array, "B N c"], like: Float[Array, "B P c"]) -> Float[Array, "B P c"]:
        """Values of the items, to be added to those of their places."""
        return self.media.spread(values).repeat(like.shape[1] // self.patches, axis=1)

    def unpack(self, patches: Float[Array, "B M values"], side: int) -> Float[Array, "B P c"]:
        """Patches as so many places high and wide."""
        each = patches.reshape(*patches.shape[:2], side * side, -1)
        return each[:, :, z_order(side)].reshape(len(patches), self.patches * side * side, -1)

    def pack(self, x: Float[Array, "B P c"]) -> Float[Array, "B M values"]:
        """The inverse of `unpack`."""
        each = x.reshape(len(x), self.patches, -1, x.shape[-1])
        return each[:, :, np.argsort(z_order(math.isqrt(each.shape[2])))].reshape(len(x), self.patches, -1)

    def repeat(self, x: Float[Array, "B P c"]) -> Float[Array, "B four_P c"]:
        """Each place as two by two."""
        return x.repeat(4, axis=1)

    def convolve(self, x: Float[Array, "B P n"], kernel: nnx.Param, stride: int = 1) -> Float[Array, "B _ m"]:
        """Convolution by a kernel `[3, 3, in, out]`, with one place of zeros around each item."""
        around = self.around(math.isqrt(x.shape[1] // self.patches))
        squares = stride**2  # a window for the first place of each
        back = jnp.where(around % squares == 0, around // squares, NONE)[..., ::-1]
        weights = split(kernel[...])
        return product_of_windows(x, weights.reshape(9, *weights.shape[2:]), around[:, ::squares], back)

    def around(self, side: int) -> Int[Array, "B P 9"]:
        """The places around each and itself, row by row, where a patch is so many high and wide; `NONE` outside."""
        place = z_order(side)
        rank, (down, across) = np.argsort(place).reshape(side, side), np.indices((3, 3)).reshape(2, 9) - 1
        y, x = (n[:, None] + step for n, step in zip(np.divmod(place, side), (down, across), strict=True))
        patch = self.beside[:, :, y // side + 1, x // side + 1]  # [B, M, side², 9]
        index = jnp.where(patch == NONE, NONE, patch * side**2 + rank[y % side, x % side])
        return index.reshape(len(index), -1, 9)

    def attend(
        self, q: Float[Array, "B M c"], k: Float[Array, "B M c"], v: Float[Array, "B M c"]
    ) -> Float[Array, "B M c"]:
        """Attention of every patch to every one of its item; behind the last one, each attends itself."""
        queries, keys, values = (x.reshape(*x.shape[:2], *heads_of(x.shape[-1])) for x in (q, k, v))
        return attention(queries, keys, values, self.spans, self.attention).reshape(q.shape)


def z_order(side: int) -> Int[np.ndarray, " places"]:
    """The places of a square, numbered row by row, in z-order: each quarter by itself, down to single places."""
    if side == 1:
        return np.zeros(1, np.int32)
    y, x = np.divmod(z_order(side // 2), side // 2)
    square = np.array([0, 1, side, side + 1], np.int32)
    return ((2 * y * side + 2 * x)[:, None] + square).reshape(-1)


@jax.custom_vjp
def product_of_windows(
    x: Float[Array, "B S n"], kernel: Float[Array, "9 n m"], there: Int[Array, "B P 9"], back: Int[Array, "B S 9"]
) -> Float[Array, "B P m"]:
    """What stands in each window, times the kernel.

    `there` names the places that a window reads, and `back` the windows that read a place, each by the part of the
    kernel. So the gradient gathers, too, where JAX's own rule would add its parts up place by place; and windows,
    nine times as large as x, are not kept for it.
    """
    return _forward(x, kernel, there, back)[0]


def windows(x: Float[Array, "B S n"], there: Int[Array, "B P 9"]) -> Float[Array, "B P all"]:
    """What stands in each window, side by side; zeros where there is nothing."""
    rows, places, channels = x.shape
    with_zeros = jnp.concatenate([x, jnp.zeros((rows, 1, channels), x.dtype)], axis=1)
    index = jnp.where(there == NONE, places, there)
    return jnp.concatenate(
        [
            jnp.take_along_axis(with_zeros, index[..., place, None], axis=1, mode="promise_in_bounds")
            for place in range(index.shape[-1])
        ],
        axis=-1,
    )


def _forward(x, kernel, there, back):  # type: ignore[no-untyped-def]
    """The product, and what the backward pass needs: the inputs."""
    return dot(windows(x, there), kernel.reshape(-1, kernel.shape[-1])), (x, kernel, there, back)


def _backward(residuals, d_out):  # type: ignore[no-untyped-def]
    """Gradients of `product_of_windows` for x and the kernel."""
    x, kernel, there, back = residuals
    d_x = dot(windows(d_out, back), kernel.swapaxes(1, 2).reshape(-1, kernel.shape[1]))
    d_kernel = jnp.einsum("bpi,bpo->io", windows(x, there), d_out)
    return d_x, d_kernel.reshape(kernel.shape), None, None


product_of_windows.defvjp(_forward, _backward)


def heads_of(channels: int) -> tuple[int, int]:
    """How many attention heads, and the channels of each."""
    head = HEAD if channels % HEAD == 0 else channels
    return channels // head, head
