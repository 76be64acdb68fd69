"""The mixed-modality model: four pure steps around one transformer.

model = Model(config).bind(params)  # once in a jitted function of the parameters
x, skips = model.embed(tokens, image_slot, patch_index, latents, timesteps)
hidden, present = model.trunk(x, spans, positions)
logits = model.text_logits(hidden)                         # where text is predicted
predicted = model.denoise(patch_hidden, timesteps, skips)  # where images are
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import PATCH_CODERS, ModelConfig
from transfusion_jax.kernels.cross_entropy import cross_entropy
from transfusion_jax.kernels.platform import compute_dtype
from transfusion_jax.model.layers import declared_axes, dot, normal, param
from transfusion_jax.model.transformer import Layer, Trunk
from transfusion_jax.parallel.sharding import AxisNames, split

Params = dict[str, Any]
FORWARD_AND_BACKWARD = 3  # the backward pass costs two forward passes


@dataclass(frozen=True)
class Model:
    """What makes and takes parameters, a nested dict of arrays; `bind` gives the pure functions of inputs."""

    config: ModelConfig

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters."""
        params: Params = nnx.to_pure_dict(nnx.state(Transfusion(self.config, key=key), nnx.Param))
        return params

    def abstract_params(self) -> Params:
        """Shapes and dtypes of `init`'s result, allocating nothing."""
        params: Params = jax.eval_shape(self.init, jax.random.key(0))
        return params

    def axes(self) -> AxisNames:
        """Named axes of each parameter."""
        return declared_axes(_structure(self.config)[1])

    def bind(self, params: Params) -> Transfusion:
        """The network with these parameters, cast to the compute dtype, which may be `by_layer`'s."""
        params = _cast(self.config, params)
        layers, trunk = params["trunk"]["layers"], params["trunk"]
        if not isinstance(layers, tuple):
            return _merged(_structure(self.config), params)
        bound: Transfusion = _merged(_structure(self.config), params | {"trunk": trunk | {"layers": {}}})
        bound.trunk.layers = nnx.List(_merged(_layer_structure(self.config), layer) for layer in layers)
        return bound

    def flops(self, elements: Any, text_losses: Any, images: Any, span_area: Any) -> Any:
        """Exact operations of a forward and a backward pass, padding and recomputation not counted.

        Args:
            elements: text tokens and patches, padding left out.
            text_losses: elements whose next token, or code, is predicted: the text head runs on these.
            images: images embedded and denoised.
            span_area: Σ over elements of the keys that each may attend to.

        Numbers or arrays alike.
        """
        config = self.config
        per_layer = 4 * config.width**2 + 3 * config.width * config.mlp_width
        trunk = 2.0 * config.layers * per_layer * elements
        attention = 4.0 * config.layers * config.width * span_area
        head = 2.0 * config.width * config.padded_vocabulary * text_losses
        return FORWARD_AND_BACKWARD * (trunk + attention + head + self.coder_flops * images)

    @property
    def coder_flops(self) -> float:
        """Operations of the patch coder on one image, embedded and denoised, forward; of codes there is none."""
        if self.config.images != "latents":
            return 0.0
        flops: float = PATCH_CODERS[self.config.patch_coder].flops(self.config)
        return flops

    def by_layer(self, params: Params) -> Params:
        """The same in the compute dtype, each layer's apart in a tuple: decoding reads them fastest so."""
        return params if isinstance(params["trunk"]["layers"], tuple) else _by_layer(self.config, params)


class TokenLosses(NamedTuple):
    """Of each element; zero where it bears none."""

    loss: Float[Array, "B T"]  # −log of the target's likelihood
    log_total: Float[Array, "B T"]  # log Z, the softmax's denominator
    weight: Float[Array, "B T"]

    @property
    def squares(self) -> Float[Array, "B T"]:
        """The weighted squares of log Z, which a z-loss holds down."""
        return jnp.square(self.log_total) * self.weight


class Transfusion(nnx.Module):
    """The network as four pure steps; `trunk` is the second one. `Model.bind` makes it, and nothing changes it."""

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        embedding, trunk, head, coder = jax.random.split(key, 4)
        self.config = config
        self.embedding = param(
            normal(embedding, (config.padded_vocabulary, config.width), config), "vocabulary", "width"
        )
        self.trunk = Trunk(config, key=trunk)
        self.text_head = param(
            normal(head, (config.width, config.padded_vocabulary), config), "width", "vocabulary"
        )
        if config.images == "latents":
            self.patch_coder = PATCH_CODERS[config.patch_coder](config, key=coder)

    def embed(
        self,
        tokens: Int[Any, "B T"],
        image_slot: Int[Any, "B T"],
        patch_index: Int[Any, "B T"],
        latents: Float[Any, "B N h w c"],
        timesteps: Int[Any, "B N"],
    ) -> tuple[Float[Array, "B T W"], Any]:
        """Elements as vectors.

        Args:
            tokens: ignored where `image_slot ≥ 0`, unless images are codes: then these alone count.
            image_slot: which of the row's images an element belongs to, −1 for text.
            patch_index: which patch of that image.
            latents: noised; with N = 0 all is text.

        Returns:
            The elements, and what `denoise` needs of the patch coder (None for a linear one).
        """
        text = split(self.embedding[...])[tokens]  # of the whole table
        if self.config.images != "latents" or latents.shape[1] == 0:
            return split(text, "batch", "elements"), None
        patches, skips = self.patch_coder.encode(latents.astype(text.dtype), timesteps)
        flat = split(patches, "batch").reshape(len(tokens), -1, patches.shape[-1])
        index = jnp.maximum(image_slot, 0) * self.config.patches + patch_index
        placed = jnp.take_along_axis(flat, index[..., None], axis=1)
        return split(jnp.where((image_slot >= 0)[..., None], placed, text), "batch", "elements"), skips

    def text_logits(self, hidden: Float[Array, "... W"]) -> Float[Array, "... V"]:
        """Logits in float32, V being the padded vocabulary; −∞ for entries that are padding."""
        logits = dot(hidden, self.text_head).astype(jnp.float32)
        entry = jnp.arange(self.config.padded_vocabulary)
        return jnp.where(entry < self.config.entries, logits, -jnp.inf)

    def text_losses(
        self, hidden: Float[Array, "B T W"], targets: Int[Any, "B T"], weight: Float[Any, "B T"], capacity: int
    ) -> TokenLosses:
        """Cross-entropy with the targets, of the elements that bear a loss; no logits are held.

        Args:
            weight: 0 where an element bears none.
            capacity: on how many elements of each row the head runs at most; no row has more that bear a loss.
        """
        if capacity >= hidden.shape[1]:
            return TokenLosses(*self._cross_entropy(hidden, targets), weight)
        order = jnp.argsort(weight <= 0, axis=1, stable=True)[:, :capacity]
        chosen = jnp.take_along_axis(hidden, order[..., None], axis=1)
        targets, weight = (jnp.take_along_axis(x, order, 1) for x in (targets, weight))
        row = jnp.arange(len(hidden))[:, None]
        zeros = jnp.zeros(hidden.shape[:2])
        values = *self._cross_entropy(chosen, targets), weight
        return TokenLosses(*(zeros.at[row, order].set(value) for value in values))

    def denoise(
        self, hidden: Float[Array, "B N P W"], timesteps: Int[Any, "B N"], skips: Any
    ) -> Float[Array, "B N h w c"]:
        """The objective's prediction, float32, from hidden states of each image's patches."""
        return self.patch_coder.decode(hidden, timesteps, skips).astype(jnp.float32)

    def _cross_entropy(
        self, hidden: Float[Array, "B T W"], targets: Int[Any, "B T"]
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        return cross_entropy(hidden, self.text_head[...], targets, self.config.entries)


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
