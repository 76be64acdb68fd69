"""The U-Net patch coder: the way down makes patch vectors, the way up gives the prediction (paper, section 3.1).

Residual blocks of two 3×3 convolutions with layer norms (paper, footnote 7: no AdaLayerNorm); the timestep's
embedding is added between the two. log₂ k times the image is halved, so that the trunk sees h/k × w/k vectors; each
stage's result is kept and joined on the way up (arXiv 2102.09672). On the last level, the trunk's grid, blocks
attend over the whole image, both ways.

The paper gives no widths. Ours have the share of its table 7 at 7B (3.8 %) with k = 2, and about as many parameters
with every other k; they are multiples of 256, so that up to 256 devices of `fsdp` hold equal parts.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import REMAT_POLICIES, ModelConfig
from transfusion_jax.model.coders.linear import TIMESTEP_FEATURES, sinusoids
from transfusion_jax.model.coders.places import ImagePlaces, PatchPlaces, places_of
from transfusion_jax.model.layers import LayerNorm, param
from transfusion_jax.model.layers import dot as product
from transfusion_jax.model.media import Media
from transfusion_jax.parallel.sharding import split

Places = ImagePlaces | PatchPlaces


@dataclass(frozen=True)
class Stage:
    """A step on the way down or up."""

    kind: str  # "block", "shrink" (to half the size) or "grow" (to twice the size)
    place: int  # among those of its level
    level: int  # of its result; 0 has the latents' size, each further one half of it
    inputs: int  # channels
    outputs: int

    @property
    def name(self) -> str:
        """Of its parameters."""
        return f"{self.kind}_{self.level}_{self.place}"


def stages(config: ModelConfig) -> tuple[list[Stage], list[Stage]]:
    """The way down and the way up. A block on the way up takes, besides, the last skip that is not yet taken."""
    widths, down, up = config.coder_channels, [], []
    last = widths[0]
    skips = [last]
    for level, width in enumerate(widths):
        if level:
            down.append(Stage("shrink", 0, level, last, last))
            skips.append(last)
        for place in range(config.unet_blocks):
            down.append(Stage("block", place, level, last, width))
            skips.append(width)
            last = width
    for level, width in reversed(list(enumerate(widths))):
        for place in range(config.unet_blocks + 1):
            up.append(Stage("block", place, level, last + skips.pop(), width))
            last = width
        if level:
            up.append(Stage("grow", 0, level - 1, last, last))
    return down, up


class PatchCoder(nnx.Module):
    """See the module's text."""

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        below, above = stages(config)
        first, second, third = jax.random.split(key, 3)
        self.config = config
        self.down = Side(config, below, key=first)
        self.up = Side(config, above, key=second)
        widths, latent, width = config.coder_channels, config.latent_shape[2], config.width
        into, to_trunk, from_trunk = scaled(
            third, (3, 3, latent, widths[0]), (widths[-1], width), (width, widths[-1])
        )
        self.latents_in = param(into, "window", "window", "patch", "width")
        self.latents_in_bias = param(jnp.zeros(widths[0]), "norm")
        self.trunk_norm = LayerNorm(widths[-1], config.norm_epsilon)
        self.to_trunk = param(to_trunk, "inputs", "width")
        self.to_trunk_bias = param(jnp.zeros(config.width), "norm")
        self.from_trunk = param(from_trunk, "width", "inputs")
        self.from_trunk_bias = param(jnp.zeros(widths[-1]), "norm")
        self.latents_norm = LayerNorm(widths[0], config.norm_epsilon)
        self.latents_out = param(jnp.zeros((3, 3, widths[0], latent)), "window", "window", "width", "patch")
        self.latents_out_bias = param(jnp.zeros(latent), "patch")

    def encode(
        self, media: Media, timesteps: Int[Any, "B N"]
    ) -> tuple[Float[Array, "B M W"], tuple[Float[Array, " ..."], ...]]:
        """Patch vectors, and each stage's result for the way up.

        Args:
            media: noised.
            timesteps: of each item.
        """
        places = places_of(media, self.config)
        x = places.split(places.unpack(media.patches, self.config.patch_size))
        embedding = places.split(self.down.embed(places.of_items(timesteps), x.dtype))
        x = places.convolve(x, self.latents_in) + self.latents_in_bias[...]
        skips = [x]
        for stage in self.down.stages:
            x = places.split(self.down.apply(stage, x, embedding, places))
            skips.append(x)
        vectors = whole_dot(self.trunk_norm(x), self.to_trunk) + self.to_trunk_bias[...]
        return places.pack(places.split(vectors)), tuple(skips)

    def decode(
        self,
        hidden: Float[Array, "B M W"],
        media: Media,
        timesteps: Int[Any, "B N"],
        skips: tuple[Float[Array, " ..."], ...],
    ) -> Float[Array, "B M values"]:
        """The model's prediction from hidden states of the patches."""
        places = places_of(media, self.config)
        x = places.split(places.unpack(hidden, 1))
        embedding = places.split(self.up.embed(places.of_items(timesteps), x.dtype))
        x = whole_dot(x, self.from_trunk) + self.from_trunk_bias[...]
        left = list(skips)
        for stage in self.up.stages:
            x = jnp.concatenate([x, left.pop()], -1) if stage.kind == "block" else x
            x = places.split(self.up.apply(stage, x, embedding, places))
        x = places.convolve(jax.nn.silu(self.latents_norm(x)), self.latents_out)
        return places.pack(places.split(x + self.latents_out_bias[...]))

    @staticmethod
    def flops(config: ModelConfig, images: Any, patches: Any, pairs: Any) -> Any:
        """Operations down and up, forward; see `Model.flops`. Those of a convolution on its padding are counted."""
        widths, latent = config.coder_channels, config.latent_shape[2]
        embedding, last = widths[-1], len(widths) - 1

        def of(stage: Stage) -> Any:
            i, o, places = stage.inputs, stage.outputs, patches * 4 ** (last - stage.level)
            if stage.kind != "block":
                return 2.0 * 9 * i * o * places
            total = 2.0 * 9 * (i + o) * o * places + 2.0 * embedding * o * images + 2.0 * i * o * places * (i != o)
            attends = stage.level == last
            return total + attends * (2.0 * 4 * o * o * places + 4.0 * o * pairs)

        ends = 2.0 * 2 * 9 * latent * widths[0] * patches * 4**last + 2.0 * 2 * widths[-1] * config.width * patches
        timesteps = 2.0 * 2 * (TIMESTEP_FEATURES + embedding) * embedding
        return ends + timesteps * images + sum(of(stage) for side in stages(config) for stage in side)


class Side(nnx.Module):
    """The way down, or the way up: its stages, and its embedding of the timestep."""

    def __init__(self, config: ModelConfig, each: list[Stage], *, key: Key[Array, ""]):
        width, last = config.coder_channels[-1], len(config.coder_channels) - 1
        first, *keys = jax.random.split(key, len(each) + 1)
        into, out = scaled(first, (TIMESTEP_FEATURES, width), (width, width))
        self.config = config
        self.stages = tuple(each)
        self.timestep_in = param(into, "features", "width")
        self.timestep_in_bias = param(jnp.zeros(width), "norm")
        self.timestep_out = param(out, "features", "width")
        self.timestep_out_bias = param(jnp.zeros(width), "norm")
        self.parts = nnx.Dict(
            {stage.name: make(config, stage, last, k) for stage, k in zip(each, keys, strict=True)}
        )

    def embed(self, timesteps: Int[Any, " *items"], dtype: Any) -> Float[Array, "*items E"]:
        """Of each item's timestep."""
        features = sinusoids(timesteps, TIMESTEP_FEATURES).astype(dtype)
        hidden = jax.nn.silu(whole_dot(features, self.timestep_in) + self.timestep_in_bias[...])
        return jax.nn.silu(whole_dot(hidden, self.timestep_out) + self.timestep_out_bias[...])

    def apply(
        self, stage: Stage, x: Float[Array, "*places _"], embedding: Float[Array, "*items E"], places: Places
    ) -> Float[Array, "*_ _"]:
        """One stage's result; what the backward pass computes again is the trunk's choice."""
        part = functools.partial(self.parts[stage.name], places=places)
        policy = REMAT_POLICIES[self.config.remat]()
        run: Callable = part if policy is None else jax.checkpoint(part, policy=policy)
        return run(x, embedding)


def make(config: ModelConfig, stage: Stage, last: int, key: Key[Array, ""]) -> nnx.Module:
    """A stage's module; `last` is the level whose blocks attend."""
    if stage.kind == "block":
        return UNetBlock(config, stage, stage.level == last, key=key)
    return Resize(stage, key=key)


class UNetBlock(nnx.Module):
    """A residual block, with attention after it on the last level. At first it passes its input on."""

    def __init__(self, config: ModelConfig, stage: Stage, attends: bool, *, key: Key[Array, ""]):
        first, attention = jax.random.split(key)
        i, o, embedding = stage.inputs, stage.outputs, config.coder_channels[-1]
        conv, timestep, *shortcut = scaled(first, (3, 3, i, o), (embedding, o), *([(i, o)] if i != o else []))
        self.norm_in = LayerNorm(i, config.norm_epsilon)
        self.conv_in = param(conv, "window", "window", "inputs", "width")
        self.conv_in_bias = param(jnp.zeros(o), "norm")
        self.timestep = param(timestep, "features", "width")
        self.norm_out = LayerNorm(o, config.norm_epsilon)
        self.conv_out = param(jnp.zeros((3, 3, o, o)), "window", "window", "inputs", "width")
        self.conv_out_bias = param(jnp.zeros(o), "norm")
        self.shortcut = param(shortcut[0], "inputs", "width") if shortcut else None
        self.attention = ImageAttention(o, config.norm_epsilon, key=attention) if attends else None

    def __call__(
        self, x: Float[Array, "*places _"], embedding: Float[Array, "*items E"], places: Places
    ) -> Float[Array, "*places _"]:
        """The stage's result, given the timesteps' embedding."""
        y = places.convolve(jax.nn.silu(self.norm_in(x)), self.conv_in) + self.conv_in_bias[...]
        y = y + places.spread(whole_dot(embedding, self.timestep), y)
        y = places.convolve(jax.nn.silu(self.norm_out(y)), self.conv_out) + self.conv_out_bias[...]
        y = y + (x if self.shortcut is None else whole_dot(x, self.shortcut))
        return y if self.attention is None else self.attention(y, places)


class ImageAttention(nnx.Module):
    """Self-attention of an image's places, every one to every one; at first it passes its input on."""

    def __init__(self, width: int, epsilon: float, *, key: Key[Array, ""]):
        q, k, v = scaled(key, *[(width, width)] * 3)
        self.norm = LayerNorm(width, epsilon)
        self.query = param(q, "width", "heads")
        self.key = param(k, "width", "heads")
        self.value = param(v, "width", "heads")
        self.output = param(jnp.zeros((width, width)), "heads", "width")

    def __call__(self, x: Float[Array, "*places c"], places: Places) -> Float[Array, "*places c"]:
        """The same with what every place heard from every other."""
        normed = self.norm(x)
        q, k, v = (whole_dot(normed, weight) for weight in (self.query, self.key, self.value))
        return x + whole_dot(places.attend(q, k, v), self.output)


class Resize(nnx.Module):
    """To half the size by a convolution of stride 2, or to twice the size by repetition and a convolution."""

    def __init__(self, stage: Stage, *, key: Key[Array, ""]):
        self.kind = stage.kind
        (resize,) = scaled(key, (3, 3, stage.inputs, stage.outputs))
        self.resize = param(resize, "window", "window", "inputs", "width")
        self.resize_bias = param(jnp.zeros(stage.outputs), "norm")

    def __call__(
        self, x: Float[Array, "*places c"], embedding: Float[Array, "*items E"], places: Places
    ) -> Float[Array, "*others c"]:
        """The same items at the other size."""
        del embedding
        x = places.repeat(x) if self.kind == "grow" else x
        return places.convolve(x, self.resize, stride=2 if self.kind == "shrink" else 1) + self.resize_bias[...]


def whole_dot(x: Float[Array, "... n"], weight: nnx.Param) -> Float[Array, "... m"]:
    """`x @ weight`, of the whole weight: images are split over devices, and their channels are not."""
    return product(x, split(weight[...]))


def scaled(key: Key[Array, ""], *shapes: tuple[int, ...]) -> list[Float[Array, " ..."]]:
    """Normal weights, each 1/√inputs, so that the output's scale is the input's.

    They are drawn together: XLA compiles each draw for itself, which on CPU took longer than all the rest.
    """
    sizes = [math.prod(shape) for shape in shapes]
    drawn = jnp.split(jax.random.normal(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    return [
        part.reshape(shape) / math.sqrt(math.prod(shape[:-1])) for part, shape in zip(drawn, shapes, strict=True)
    ]
