"""The trunk: a Llama transformer (RMSNorm, SwiGLU, rotary embeddings), its layers stacked and scanned.

Two switches make it Chameleon's (arXiv 2405.09818, section 2.3): `model.query_key_norm` and `model.norm="post"`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import checkpoint_policies as policies

from transfusion_jax.config import ModelConfig
from transfusion_jax.kernels.softmax import OUTPUTS
from transfusion_jax.model.attention import attention
from transfusion_jax.model.kv_cache import Cache, Past, attend_with_past
from transfusion_jax.model.spans import Spans
from transfusion_jax.parallel.sharding import is_split, split

PATCHES = "patches"  # the part of a layer's parameters that patches alone go through, where they are untied

REMAT_POLICIES = {
    "none": None,
    "full": policies.nothing_saveable,
    "dots": policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(OUTPUTS)
    ),
}


class Trunk(nnx.Module):
    """Everything between the embeddings and the two heads."""

    def __init__(self, config: ModelConfig, *, key: jax.Array):
        self.config = config
        keys = jax.random.split(key, config.layers)
        structure = nnx.graphdef(nnx.eval_shape(lambda: Layer(config, key=jax.random.key(0))))
        stacked = jax.vmap(lambda k: nnx.state(Layer(config, key=k)))(keys)
        self.layers: Layer | nnx.List[Layer] = nnx.merge(structure, stacked)
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)

    def __call__(
        self,
        x: jax.Array,
        spans: Spans,
        positions: jax.Array,
        cache: Cache | None = None,
        patch_places: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Past, ...]]:
        """Hidden states after the final norm, and, where there is a cache, each layer's keys and values of x.

        Stacked layers are scanned where nothing is held. Else layers follow one another in the program: a scan
        copies each one's weights and cache before it reads them, which takes a token a third of its time.

        Args:
            x: `[B, T, width]`, embedded elements.
            spans: `[B, T]`, in places of the row, where x begins at 0, or behind what the cache holds.
            positions: `[B, T]`, each element's place in its document.
            cache: earlier elements' keys and values, which x continues; `Cache.append` adds to them.
            patch_places: `[B, M]`, where the patches stand among the T elements, T where there is none; only untied
                modality weights ask for it.

        Raises:
            ValueError: the weights are untied, and patch_places is missing.
        """
        untied = self.config.modality_weights == "untied"
        if untied and patch_places is None:
            raise ValueError("untied modality weights need to know which elements are patches: give patch_places")
        places = patch_places if untied else None
        rotation = rotary(positions, self.config.head_dim, self.config.rope_theta)

        def through(layer: Layer, x: jax.Array, held: Cache | None) -> tuple[jax.Array, Past]:
            x, present = layer(x, spans, rotation, held, places)
            return split(x, "batch", "elements"), present

        pasts: list[Past] = []
        if cache is None and isinstance(self.layers, Layer):
            x = self._scan(self.layers, lambda layer, x: through(layer, x, None)[0], x)
        else:
            for number, layer in enumerate(self._each()):
                x, present = through(layer, x, cache.of_layer(number) if cache else None)
                pasts.append(present)
        return split(self.final_norm(x), "batch", "elements"), tuple(pasts) if cache else ()

    def _scan(self, layers: Layer, through: Callable[[Layer, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        structure, stacked = nnx.split(layers)

        def body(x: jax.Array, params: nnx.State) -> tuple[jax.Array, None]:
            return through(nnx.merge(structure, params), x), None

        policy = REMAT_POLICIES[self.config.remat]
        if policy is not None:
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return jax.lax.scan(body, x, stacked)[0]

    def _each(self) -> Sequence[Layer]:
        if not isinstance(self.layers, Layer):
            return self.layers
        structure, stacked = nnx.split(self.layers)
        each = (jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(self.config.layers))
        return [nnx.merge(structure, params) for params in each]


class Block(nnx.Module):
    """The weights of one transformer block, each norm before its part, or after it and inside the residual.

    The latter is Swin's order (arXiv 2111.09883), which Chameleon takes.
    """

    def __init__(self, config: ModelConfig, *, key: jax.Array):
        self.config = config
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, key=attention_key)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = MLP(config, key=mlp_key)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of `[B, T, width]`; see `Attention.project`."""
        return self.attention.project(self.attention_norm(x) if self.config.norm == "pre" else x)

    def attended(self, mixed: jax.Array) -> jax.Array:
        """What attention adds to the residual, from what it gave `[B, T, width]`."""
        result = dot(mixed, self.attention.output)
        return self.attention_norm(result) if self.config.norm == "post" else result

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """What the SwiGLU adds to the residual."""
        return self.mlp(self.mlp_norm(x)) if self.config.norm == "pre" else self.mlp_norm(self.mlp(x))


class Layer(Block):
    """One transformer block; with untied modality weights, another block's weights stand beside it for patches.

    Only what mixes elements, attention itself, is common to both (arXiv 2411.04996).
    """

    def __init__(self, config: ModelConfig, *, key: jax.Array):
        super().__init__(config, key=key)
        if config.modality_weights == "untied":
            setattr(self, PATCHES, Block(config, key=jax.random.fold_in(key, 1)))

    def __call__(
        self,
        x: jax.Array,
        spans: Spans,
        rotation: tuple[jax.Array, jax.Array],
        cache: Cache | None,
        patch_places: jax.Array | None = None,
    ) -> tuple[jax.Array, Past]:
        """`[B, T, width]` to the same, and the keys and values that a cache of this layer would add."""

        def each(function: Callable[[Block, jax.Array], Any], x: jax.Array) -> Any:
            """Of every element, by its own weights; those of text run on all."""
            result = function(self, x)
            if patch_places is None:
                return result
            patches = function(getattr(self, PATCHES), take_elements(x, patch_places))
            return jax.tree.map(lambda all_, some: put_elements(all_, some, patch_places), result, patches)

        q, k, v = each(Block.project, x)
        mixed, present = attend(self.config, rotate(q, rotation), rotate(k, rotation), v, spans, cache)
        x = x + each(Block.attended, mixed)
        return x + each(Block.feed_forward, x), present


class Attention(nnx.Module):
    """The weights of multi-head attention; they are `[in, out]` matrices."""

    def __init__(self, config: ModelConfig, *, key: jax.Array):
        self.config = config
        width = config.width
        q, k, v, o = jax.random.split(key, 4)
        self.query = nnx.Param(normal(q, (width, width), config))
        self.key = nnx.Param(normal(k, (width, width), config))
        self.value = nnx.Param(normal(v, (width, width), config))
        self.output = nnx.Param(normal(o, (width, width), config, depth=config.layers))
        if config.query_key_norm:
            self.query_norm = HeadNorm(config)
            self.key_norm = HeadNorm(config)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values `[B, T, heads, head_dim]` of `[B, T, width]`, not yet rotated."""
        config = self.config

        def heads(weight: nnx.Param) -> jax.Array:
            each = dot(x, weight).reshape(*x.shape[:-1], config.heads, config.head_dim)
            return split(each, "batch", "elements", "heads")

        q, k, v = heads(self.query), heads(self.key), heads(self.value)
        return (self.query_norm(q), self.key_norm(k), v) if config.query_key_norm else (q, k, v)


def attend(
    config: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, spans: Spans, cache: Cache | None
) -> tuple[jax.Array, Past]:
    """What attention gives each element, `[B, T, width]`, and the keys and values as a cache has them."""
    present = Past.of(k, v)
    if cache is None or cache.size == 0:
        mixed = attention(q, k, v, spans, config.attention)
    else:
        mixed = attend_with_past(q, present, spans, cache)
    return mixed.reshape(*mixed.shape[:2], config.width), present


def take_elements(x: jax.Array, places: jax.Array) -> jax.Array:
    """The elements `[B, M, …]` of `[B, T, …]` that stand at places `[B, M]`; a place of T or more means nothing."""
    index = jnp.minimum(places, x.shape[1] - 1).reshape(*places.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(split(x, "batch"), index, axis=1)


def put_elements(x: jax.Array, elements: jax.Array, places: jax.Array) -> jax.Array:
    """`[B, T, …]` with elements `[B, M, …]` put at places `[B, M]`; those at T or beyond are dropped."""
    row = jnp.arange(len(x))[:, None]
    return x.at[row, places].set(elements.astype(x.dtype), mode="drop")


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, *, key: jax.Array):
        g, u, d = jax.random.split(key, 3)
        self.gate = nnx.Param(normal(g, (config.width, config.mlp_width), config))
        self.up = nnx.Param(normal(u, (config.width, config.mlp_width), config))
        self.down = nnx.Param(normal(d, (config.mlp_width, config.width), config, depth=config.layers))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[…, width]` to the same."""
        gate, up = (split(dot(x, weight), "batch", "elements", "mlp") for weight in (self.gate, self.up))
        return dot(jax.nn.silu(gate) * up, self.down)


class HeadNorm(nnx.Module):
    """LayerNorm over the channels of each head, with a scale and a bias of its own for every head.

    As Chameleon's weights have it. Computed in float32.
    """

    def __init__(self, config: ModelConfig):
        self.epsilon = config.norm_epsilon
        self.head_scale = nnx.Param(jnp.ones((config.heads, config.head_dim)))
        self.head_bias = nnx.Param(jnp.zeros((config.heads, config.head_dim)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[…, heads, head_dim]` to the same."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, -1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + self.epsilon)
        return (centred * inverse).astype(x.dtype) * self.head_scale[...] + self.head_bias[...]


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[…, width]` to the same."""
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.epsilon)
        return (wide * inverse).astype(x.dtype) * self.scale[...]


def dot(x: jax.Array, weight: nnx.Param | jax.Array) -> jax.Array:
    """`x @ weight`, as one two-dimensional product where it can be: XLA on CPU runs that several times faster."""
    matrix = weight[...]
    if is_split("elements"):  # rows and elements that are both split do not make one axis
        return jnp.dot(x, matrix)
    return jnp.dot(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def normal(key: jax.Array, shape: tuple[int, ...], config: ModelConfig, depth: int | None = None) -> jax.Array:
    """Llama's initialisation; an output projection of a network `depth` layers deep is scaled by 1/√(2 depth)."""
    scale = 1.0 if depth is None else 1 / math.sqrt(2 * depth)
    return config.init_std * scale * jax.random.normal(key, shape)


def rotary(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines `[B, T, 1, head_dim / 2]` of rotary embeddings (arXiv 2104.09864)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (i, i + head_dim / 2) of `[B, T, heads, head_dim]`, Hugging Face Llama's layout."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
