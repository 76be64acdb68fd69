"""What models are built from: norms, the SwiGLU, products, rotary embeddings, and elements taken and put."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from transfusion_jax.config import ROPE_SCALINGS, ModelConfig
from transfusion_jax.parallel.sharding import AXES, AxisNames, is_split, split


def param(value: Shaped[Array, " ..."], *axes: str) -> nnx.Param:
    """A parameter that names its axes, each a field of `Rules`.

    Raises:
        ValueError: another number of names than of axes, or a name that `Rules` lacks.
    """
    if len(axes) != value.ndim or not AXES.issuperset(axes):
        raise ValueError(f"a parameter of shape {value.shape} needs as many names of axes from Rules, not {axes}")
    return nnx.Param(value, axes=axes)


def declared_axes(state: nnx.State) -> AxisNames:
    """The axes that each parameter of a module's state was made with, by its name.

    Raises:
        ValueError: a parameter was not made by `param`.
    """
    named = {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    if bare := [name for name, variable in named.items() if "axes" not in variable.get_metadata()]:
        raise ValueError(f"parameters without named axes: {', '.join(bare)}; make them by `param`")
    return {name: variable.axes for name, variable in named.items()}


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        g, u, d = jax.random.split(key, 3)
        self.gate = param(normal(g, (config.width, config.mlp_width), config), "width", "mlp")
        self.up = param(normal(u, (config.width, config.mlp_width), config), "width", "mlp")
        self.down = param(normal(d, (config.mlp_width, config.width), config, depth=config.layers), "mlp", "width")

    def __call__(self, x: Float[Array, "... W"]) -> Float[Array, "... W"]:
        """`[…, width]` to the same."""
        gate, up = (split(dot(x, weight), "batch", "elements", "mlp") for weight in (self.gate, self.up))
        return dot(jax.nn.silu(gate) * up, self.down)


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = param(jnp.ones(width), "norm")

    def __call__(self, x: Float[Array, "... W"]) -> Float[Array, "... W"]:
        """`[…, width]` to the same."""
        return standardise(x, self.epsilon) * self.scale[...]


class LayerNorm(nnx.Module):
    """Layer norm over channels (arXiv 1607.06450), computed in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = param(jnp.ones(width), "norm")
        self.bias = param(jnp.zeros(width), "norm")

    def __call__(self, x: Float[Array, "... W"]) -> Float[Array, "... W"]:
        """`[…, width]` to the same."""
        return standardise(x, self.epsilon, centred=True) * self.scale[...] + self.bias[...]


class HeadNorm(nnx.Module):
    """LayerNorm over the channels of each head, with a scale and a bias of its own for every head.

    As Chameleon's weights have it. Computed in float32.
    """

    def __init__(self, config: ModelConfig, heads: int):
        self.epsilon = config.norm_epsilon
        axes = ("heads" if heads == config.heads else "norm", "norm")  # key-value heads need not divide by a mesh
        self.head_scale = param(jnp.ones((heads, config.head_channels)), *axes)
        self.head_bias = param(jnp.zeros((heads, config.head_channels)), *axes)

    def __call__(self, x: Float[Array, "... H D"]) -> Float[Array, "... H D"]:
        """`[…, heads, head_dim]` to the same."""
        return standardise(x, self.epsilon, centred=True) * self.head_scale[...] + self.head_bias[...]


def head_norm(config: ModelConfig, heads: int) -> HeadNorm | RMSNorm:
    """The norm of queries or of keys, `[…, heads, channels]`, that `query_key_norm_kind` names."""
    if config.query_key_norm_kind == "rms":
        return RMSNorm(config.head_channels, config.norm_epsilon)
    return HeadNorm(config, heads)


def standardise(x: Float[Array, "*shape"], epsilon: float, centred: bool = False) -> Float[Array, "*shape"]:
    """x over the root mean square of its last axis, computed in float32; `centred` takes the mean off first."""
    wide = x.astype(jnp.float32)
    if centred:
        wide = wide - jnp.mean(wide, -1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon)
    return (wide * inverse).astype(x.dtype)


def dot(x: Float[Array, "... n"], weight: nnx.Param | Float[Array, "n m"]) -> Float[Array, "... m"]:
    """`x @ weight`, as one two-dimensional product where it can be: XLA on CPU runs that several times faster."""
    matrix = weight[...]
    if is_split("elements"):  # rows and elements that are both split do not make one axis
        return jnp.dot(x, matrix)
    return jnp.dot(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def normal(
    key: Key[Array, ""], shape: tuple[int, ...], config: ModelConfig, depth: int | None = None
) -> Float[Array, " ..."]:
    """Llama's initialisation; an output projection of a network `depth` layers deep is scaled by 1/√(2 depth)."""
    scale = 1.0 if depth is None else 1 / math.sqrt(2 * depth)
    return config.init_std * scale * jax.random.normal(key, shape)


def frequencies(config: ModelConfig) -> Float[Array, " half"]:
    """Radians per element that rotary embeddings turn each pair of a head's channels by, from the fastest on."""
    channels = config.head_channels
    frequency = config.rope_theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    scaled: Float[Array, " half"] = ROPE_SCALINGS[config.rope_scaling](frequency, config)
    return scaled


def rotary(
    positions: Int[Any, "B T *axes"], frequency: Float[Array, " half"], sections: tuple[int, ...] = ()
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosines and sines of rotary embeddings (arXiv 2104.09864).

    Args:
        positions: `[B, T]`, or `[B, T, 3]` on the axes time, height and width.
        frequency: radians per element of each pair of channels; see `frequencies`.
        sections: pairs of channels that each axis turns, dealt out by turns from the fastest on until an axis has
            its number, as in Qwen3-VL (arXiv 2511.21631); () for one axis.
    """
    if sections:
        axis = np.array(
            [axis for _, axis in sorted((k, axis) for axis, n in enumerate(sections) for k in range(n))]
        )
        angle = jnp.asarray(positions)[:, :, None, axis].astype(jnp.float32) * frequency
    else:
        angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B T H D"], rotation: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
) -> Float[Array, "B T H D"]:
    """Turns the pairs (i, i + head_dim / 2) of each head's channels, Hugging Face Llama's layout."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def take_elements(x: Shaped[Array, "B T ..."], places: Int[Array, "B M"]) -> Shaped[Array, "B M ..."]:
    """The elements that stand at some places; a place of T or more means nothing."""
    index = jnp.minimum(places, x.shape[1] - 1).reshape(*places.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(split(x, "batch"), index, axis=1)


def put_elements(
    x: Float[Array, "B T ..."], elements: Float[Array, "B M ..."], places: Int[Array, "B M"]
) -> Float[Array, "B T ..."]:
    """x with other elements put at some places; those at T or beyond are dropped."""
    row = jnp.arange(len(x))[:, None]
    return x.at[row, places].set(elements.astype(x.dtype), mode="drop")
