"""The autoencoder's network as pure functions.

network = Network(Architecture("kl"))
params = network.init(key)
encoding = network.encode(params, images)
images = network.decode(params, encoding.mean)

Parameters carry the names that diffusers gives them (`encoder/down_blocks_0/resnets_1/conv1/kernel`), so that
weights come and go by one rule (`names.py`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion_jax.autoencoder.interface import Encoding
from transfusion_jax.config.autoencoder import Architecture
from transfusion_jax.model.layers import declared_axes, param
from transfusion_jax.parallel.sharding import AxisNames

Params = dict[str, Any]
EPSILON = 1e-6  # of the norms
LOG_VARIANCE = (-30.0, 20.0)  # its limits, as in CompVis's and diffusers' code


@dataclass(frozen=True)
class Network:
    """Pure functions of (params, inputs). Parameters are a nested dict of arrays."""

    architecture: Architecture

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters."""
        return fill(self.abstract_params(), key)

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters."""
        params: Params = nnx.to_pure_dict(_structure(self.architecture)[1])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

    def axes(self) -> AxisNames:
        """Named axes of each parameter."""
        return declared_axes(_structure(self.architecture)[1])

    def encode(self, params: Params, images: jax.Array) -> Encoding:
        """Images `[B, H, W, C]` in [−1, 1], encoded.

        Returns:
            kl: mean and log-variance `[B, h, w, c]`. vq: the vectors before quantisation as the mean, and codes
            `[B, h, w]`, the nearest entries by Euclidean distance.
        """
        modules = self._bind(params)
        encoded = modules.encoder(jnp.asarray(images))
        if self.architecture.projections:
            encoded = modules.quant_conv(encoded)
        if self.architecture.kind == "kl":
            mean, log_variance = jnp.split(encoded, 2, axis=-1)
            return Encoding(mean=mean, log_variance=jnp.clip(log_variance, *LOG_VARIANCE))
        return Encoding(mean=encoded, codes=nearest_entries(encoded, params["quantize"]["entries"]))

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """Images `[B, H, W, C]`, not limited to [−1, 1], of latents (or a codebook's entries) `[B, h, w, c]`."""
        modules = self._bind(params)
        latents = modules.post_quant_conv(latents) if self.architecture.projections else latents
        return modules.decoder(latents)

    def lookup(self, params: Params, codes: jax.Array) -> jax.Array:
        """The codebook's entries `[…, c]` of codes `[…]`."""
        entries: jax.Array = params["quantize"]["entries"]
        return entries[codes]

    def _bind(self, params: Params) -> Modules:
        structure, abstract = _structure(self.architecture)
        state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the cached one must never hold a tracer
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(structure, state)


def nearest_entries(vectors: jax.Array, entries: jax.Array) -> jax.Array:
    """The place `[…]`, int32, of the entry `[n, c]` that is nearest to each vector `[…, c]`."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    distance = jnp.sum(jnp.square(entries), -1) - 2 * jnp.dot(flat, entries.T, precision="highest")
    return jnp.argmin(distance, -1).astype(jnp.int32).reshape(vectors.shape[:-1])


def fill(abstract: Params, key: jax.Array) -> Params:
    """Parameters of these shapes: what a kernel or matrix gives has the scale of what it takes.

    All are drawn at once: a program of a draw for each leaf compiles for a minute.
    """
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)]
    drawn = iter(jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1].tolist()))

    def leaf(path: tuple, like: jax.ShapeDtypeStruct) -> jax.Array:
        normal, name = next(drawn).reshape(like.shape), path[-1].key
        if name in ("scale", "bias"):
            return jnp.full(like.shape, float(name == "scale"), like.dtype)  # else weak: the step compiles twice
        return normal / math.sqrt(math.prod(like.shape[:-1]) if name != "entries" else like.shape[0])

    params: Params = jax.tree_util.tree_map_with_path(leaf, abstract)
    return params


class Modules(nnx.Module):
    """Parameters and structure; used through `Network`, which keeps them apart and fills them in."""

    def __init__(self, a: Architecture):
        self.encoder = Encoder(a)
        self.decoder = Decoder(a)
        if a.projections:
            self.quant_conv = Conv(a.moments * a.encoded_channels, a.moments * a.latent_channels, 1)
            self.post_quant_conv = Conv(a.latent_channels, a.encoded_channels, 1)
        if a.kind == "vq":
            self.quantize = Codebook(a)


class Codebook(nnx.Module):
    """The entries of a vector quantisation."""

    def __init__(self, a: Architecture):
        self.entries = param(jnp.zeros((a.codebook, a.latent_channels)), "inputs", "norm")


class Encoder(nnx.Module):
    """Pixels to what is projected to latents."""

    def __init__(self, a: Architecture):
        self.conv_in = Conv(a.image_channels, a.widths[0], 3)
        before = a.widths[0]
        for level, width in enumerate(a.widths):
            last = level == len(a.widths) - 1
            resize = None if last else "downsamplers_0"
            stage = Resolution(a, before, width, a.blocks, level in a.attention, resize)
            setattr(self, f"down_blocks_{level}", stage)
            before = width
        self.levels = len(a.widths)
        self.mid_block = Middle(a, before)
        self.conv_norm_out = GroupNorm(a.groups, before)
        self.conv_out = Conv(before, a.moments * a.encoded_channels, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, h, w, moments · encoded_channels]`."""
        x = self.conv_in(x)
        for level in range(self.levels):
            x = getattr(self, f"down_blocks_{level}")(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """The way back to pixels."""

    def __init__(self, a: Architecture):
        before = a.widths[-1]
        self.conv_in = Conv(a.encoded_channels, before, 3)
        self.mid_block = Middle(a, before)
        self.levels = len(a.widths)
        for place, width in enumerate(reversed(a.widths)):
            level = self.levels - 1 - place
            resize = "upsamplers_0" if level else None
            stage = Resolution(a, before, width, a.blocks + 1, level in a.attention, resize)
            setattr(self, f"up_blocks_{place}", stage)
            before = width
        self.conv_norm_out = GroupNorm(a.groups, before)
        self.conv_out = Conv(before, a.image_channels, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, h, w, encoded_channels]` to `[B, H, W, C]`."""
        x = self.mid_block(self.conv_in(x))
        for place in range(self.levels):
            x = getattr(self, f"up_blocks_{place}")(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Resolution(nnx.Module):
    """The residual blocks of one resolution, and the way to the next one: `resize` names it as diffusers does."""

    def __init__(self, a: Architecture, inputs: int, width: int, blocks: int, attends: bool, resize: str | None):
        self.blocks, self.attends, self.resize = blocks, attends, resize
        for place in range(blocks):
            setattr(self, f"resnets_{place}", Residual(a, inputs, width))
            if attends:
                setattr(self, f"attentions_{place}", SpatialAttention(a, width))
            inputs = width
        if resize:
            setattr(self, resize, Resample(width, resize))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, y, x, inputs]` to `[B, y', x', width]`."""
        for place in range(self.blocks):
            x = getattr(self, f"resnets_{place}")(x)
            x = getattr(self, f"attentions_{place}")(x) if self.attends else x
        return getattr(self, self.resize)(x) if self.resize else x


class Middle(nnx.Module):
    """Two residual blocks at the smallest resolution, attention between them."""

    def __init__(self, a: Architecture, width: int):
        self.attends = a.middle_attention
        self.resnets_0 = Residual(a, width, width)
        self.resnets_1 = Residual(a, width, width)
        if self.attends:
            self.attentions_0 = SpatialAttention(a, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, y, x, width]` to the same."""
        x = self.resnets_0(x)
        return self.resnets_1(self.attentions_0(x) if self.attends else x)


class Residual(nnx.Module):
    """Norm, SiLU and convolution, twice, beside what comes in."""

    def __init__(self, a: Architecture, inputs: int, width: int):
        self.norm1, self.conv1 = GroupNorm(a.groups, inputs), Conv(inputs, width, 3)
        self.norm2, self.conv2 = GroupNorm(a.groups, width), Conv(width, width, 3)
        self.conv_shortcut = Conv(inputs, width, 1) if inputs != width else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, y, x, inputs]` to `[B, y, x, width]`."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialAttention(nnx.Module):
    """Self-attention of every place to every place, with one head."""

    def __init__(self, a: Architecture, width: int):
        self.group_norm = GroupNorm(a.groups, width)
        self.to_q, self.to_k = Linear(width), Linear(width)
        self.to_v, self.to_out_0 = Linear(width), Linear(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, y, x, width]` to the same."""
        places = self.group_norm(x).reshape(len(x), -1, 1, x.shape[-1])
        mixed = jax.nn.dot_product_attention(self.to_q(places), self.to_k(places), self.to_v(places))
        return x + self.to_out_0(mixed.reshape(x.shape))


class Resample(nnx.Module):
    """To half the size by a convolution of stride 2, or to twice the size by repetition and a convolution."""

    def __init__(self, width: int, name: str):
        self.down = name.startswith("down")
        self.conv = Conv(width, width, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, y, x, width]` to `[B, y', x', width]`."""
        if self.down:  # the place of padding is on the far sides alone
            return self.conv(x, stride=2, padding=(0, 1))
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


class Conv(nnx.Module):
    """A convolution whose kernel has one size both ways."""

    def __init__(self, inputs: int, outputs: int, size: int):
        self.size = size
        self.kernel = param(jnp.zeros((size, size, inputs, outputs)), "window", "window", "inputs", "norm")
        self.bias = param(jnp.zeros(outputs), "norm")

    def __call__(self, x: jax.Array, stride: int = 1, padding: tuple[int, int] | None = None) -> jax.Array:
        """`[B, y, x, inputs]` to `[B, y', x', outputs]`."""
        around = padding or (self.size // 2, self.size // 2)
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...], (stride, stride), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.bias[...]


class Linear(nnx.Module):
    """A linear map of channels, with a bias."""

    def __init__(self, width: int):
        self.matrix = param(jnp.zeros((width, width)), "inputs", "norm")
        self.bias = param(jnp.zeros(width), "norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[…, width]` to the same."""
        return x @ self.matrix[...] + self.bias[...]


class GroupNorm(nnx.Module):
    """Group norm (arXiv 1803.08494)."""

    def __init__(self, groups: int, width: int):
        self.groups = groups
        self.scale = param(jnp.ones(width), "norm")
        self.bias = param(jnp.zeros(width), "norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, y, x, width]` to the same."""
        grouped = x.reshape(*x.shape[:3], self.groups, -1)
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 2, 4), keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + EPSILON)
        return normal.reshape(x.shape) * self.scale[...] + self.bias[...]


@functools.cache
def _structure(architecture: Architecture) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Modules(architecture)))
