"""The mixed-modality model: four pure steps around one transformer.

x, skips = model.embed(params, tokens, image_slot, patch_index, latents, timesteps)
hidden, present = model.trunk(params, x, spans, positions)
logits = model.text_logits(params, hidden)                      # where text is predicted
predicted = model.denoise(params, patch_hidden, timesteps, skips)  # where images are
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion_jax.config import PATCH_CODERS, ModelConfig
from transfusion_jax.kernels.cross_entropy import cross_entropy
from transfusion_jax.kernels.platform import compute_dtype
from transfusion_jax.model.kv_cache import Cache, Past
from transfusion_jax.model.layers import dot, normal
from transfusion_jax.model.spans import Spans
from transfusion_jax.model.transformer import Layer, Trunk
from transfusion_jax.parallel.sharding import split

Params = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """Pure functions of (params, inputs). Parameters are a nested dict of arrays."""

    config: ModelConfig

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters."""
        params: Params = nnx.to_pure_dict(nnx.state(Transfusion(self.config, key=key), nnx.Param))
        return params

    def embed(
        self,
        params: Params,
        tokens: jax.Array,
        image_slot: jax.Array,
        patch_index: jax.Array,
        latents: jax.Array,
        timesteps: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Elements as vectors.

        Args:
            params: from `init`.
            tokens: `[B, T]` int; ignored where `image_slot ≥ 0`, unless images are codes: then these alone count.
            image_slot: `[B, T]`, which of the row's images an element belongs to, −1 for text.
            patch_index: `[B, T]`, which patch of that image.
            latents: `[B, N, h, w, c]`, noised; with N = 0 all is text.
            timesteps: `[B, N]`.

        Returns:
            `[B, T, width]`, and what `denoise` needs of the patch coder (None for a linear one).
        """
        return self._bind(params).embed(tokens, image_slot, patch_index, latents, timesteps)

    def trunk(
        self,
        params: Params,
        x: jax.Array,
        spans: Spans,
        positions: jax.Array,
        cache: Cache | None = None,
        patch_places: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Past, ...]]:
        """Hidden states `[B, T, width]`, and with a cache, what these elements add to it; see `Trunk`."""
        return self._bind(params).trunk(x, spans, positions, cache, patch_places)

    def text_logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Logits `[…, padded_vocabulary]` in float32 from `[…, width]`; −∞ for entries that are padding."""
        return self._bind(params).text_logits(hidden)

    def text_losses(self, params: Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy `[B, T]` of the logits of `[B, T, width]` at the targets `[B, T]`, and log Z `[B, T]`.

        No logits are held. Z is the softmax's denominator.
        """
        head = self._bind(params).text_head[...]
        return cross_entropy(hidden, head, targets, self.config.entries)

    def denoise(self, params: Params, hidden: jax.Array, timesteps: jax.Array, skips: Any) -> jax.Array:
        """The objective's prediction `[B, N, h, w, c]`, float32, from hidden states `[B, N, patches, width]`."""
        return self._bind(params).patch_coder.decode(hidden, timesteps, skips).astype(jnp.float32)

    def abstract_params(self) -> Params:
        """Shapes and dtypes of `init`'s result, allocating nothing."""
        params: Params = jax.eval_shape(self.init, jax.random.key(0))
        return params

    def by_layer(self, params: Params) -> Params:
        """The same in the compute dtype, each layer's apart in a tuple: decoding reads them fastest so."""
        return params if isinstance(params["trunk"]["layers"], tuple) else _by_layer(self.config, params)

    def _bind(self, params: Params) -> Transfusion:
        params = _cast(self.config, params)
        layers, trunk = params["trunk"]["layers"], params["trunk"]
        if not isinstance(layers, tuple):
            return _merged(_structure(self.config), params)
        bound: Transfusion = _merged(_structure(self.config), params | {"trunk": trunk | {"layers": {}}})
        bound.trunk.layers = nnx.List(_merged(_layer_structure(self.config), layer) for layer in layers)
        return bound


class Transfusion(nnx.Module):
    """Parameters and structure; used through `Model`, which keeps them apart."""

    def __init__(self, config: ModelConfig, *, key: jax.Array):
        embedding, trunk, head, coder = jax.random.split(key, 4)
        self.config = config
        self.embedding = nnx.Param(normal(embedding, (config.padded_vocabulary, config.width), config))
        self.trunk = Trunk(config, key=trunk)
        self.text_head = nnx.Param(normal(head, (config.width, config.padded_vocabulary), config))
        if config.images == "latents":
            self.patch_coder = PATCH_CODERS[config.patch_coder](config, key=coder)

    def embed(
        self,
        tokens: jax.Array,
        image_slot: jax.Array,
        patch_index: jax.Array,
        latents: jax.Array,
        timesteps: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """See `Model.embed`."""
        text = split(self.embedding[...])[tokens]  # of the whole table
        if self.config.images != "latents" or latents.shape[1] == 0:
            return split(text, "batch", "elements"), None
        patches, skips = self.patch_coder.encode(latents.astype(text.dtype), timesteps)  # [B, N, P, width]
        flat = split(patches, "batch").reshape(len(tokens), -1, patches.shape[-1])
        index = jnp.maximum(image_slot, 0) * self.config.patches + patch_index
        placed = jnp.take_along_axis(flat, index[..., None], axis=1)
        return split(jnp.where((image_slot >= 0)[..., None], placed, text), "batch", "elements"), skips

    def text_logits(self, hidden: jax.Array) -> jax.Array:
        """See `Model.text_logits`."""
        logits = dot(hidden, self.text_head).astype(jnp.float32)
        entry = jnp.arange(self.config.padded_vocabulary)
        return jnp.where(entry < self.config.entries, logits, -jnp.inf)


@functools.partial(jax.jit, static_argnums=0)
def _by_layer(config: ModelConfig, params: Params) -> Params:
    params = _cast(config, params)
    trunk = params["trunk"]
    layers = tuple(jax.tree.map(lambda x, n=n: x[n], trunk["layers"]) for n in range(config.layers))
    return params | {"trunk": trunk | {"layers": layers}}


def _cast(config: ModelConfig, params: Params) -> Params:
    dtype = compute_dtype(config)
    return jax.tree.map(lambda p: p.astype(dtype), params)


@functools.cache
def _structure(config: ModelConfig) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Transfusion(config, key=jax.random.key(0))))


@functools.cache
def _layer_structure(config: ModelConfig) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Layer(config, key=jax.random.key(0))))


def _merged(structure: tuple[Any, Any], params: Params) -> Any:
    graph, abstract = structure
    state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the cached one must never hold a tracer
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
