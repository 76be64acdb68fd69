"""A patch discriminator (arXiv 1611.07004): for each patch of an image a number, high where it takes it for real.

Its norms are group norms. The batch norm of the original would make an image's number depend on the images beside
it, and with that the loss on how a batch is split.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion_jax.autoencoder.network import Conv, GroupNorm, Params, fill
from transfusion_jax.model.layers import declared_axes
from transfusion_jax.parallel.sharding import AxisNames

WIDTHS = (64, 128, 256, 512)  # of the convolutions; all but the last halve the image
GROUPS, SLOPE = 32, 0.2


def init(channels: int, key: jax.Array) -> Params:
    """Fresh parameters for images of so many channels."""
    abstract: Params = nnx.to_pure_dict(_structure(channels)[1])
    return fill(abstract, key)


def axes(channels: int) -> AxisNames:
    """Named axes of each parameter."""
    return declared_axes(_structure(channels)[1])


def judge_patches(params: Params, images: jax.Array) -> jax.Array:
    """Numbers `[B, y, x]` for the patches of images `[B, H, W, C]`."""
    structure, abstract = _structure(images.shape[-1])
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(structure, state)(images)


def hinge(real: jax.Array, drawn: jax.Array) -> jax.Array:
    """The discriminator's loss of each image, `[B]`, from its numbers for it and for its reconstruction."""
    per_patch = jax.nn.relu(1 - real) + jax.nn.relu(1 + drawn)
    return 0.5 * jnp.mean(per_patch, axis=(1, 2))


class Discriminator(nnx.Module):
    """Convolutions of 4×4."""

    def __init__(self, channels: int):
        self.conv_0 = Conv(channels, WIDTHS[0], 4)
        for place, (inputs, width) in enumerate(itertools.pairwise(WIDTHS), 1):
            setattr(self, f"conv_{place}", Conv(inputs, width, 4))
            setattr(self, f"norm_{place}", GroupNorm(GROUPS, width))
        self.conv_out = Conv(WIDTHS[-1], 1, 4)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, y, x]`."""
        x = jax.nn.leaky_relu(self.conv_0(x, 2, (1, 1)), SLOPE)
        for place in range(1, len(WIDTHS)):
            stride = 2 if place < len(WIDTHS) - 1 else 1
            x = getattr(self, f"norm_{place}")(getattr(self, f"conv_{place}")(x, stride, (1, 1)))
            x = jax.nn.leaky_relu(x, SLOPE)
        return self.conv_out(x, 1, (1, 1))[..., 0]


@functools.cache
def _structure(channels: int) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Discriminator(channels)))
