"""The mixed-modality model: four pure steps around one transformer.

model = Model(config).bind(params)  # once in a jitted function of the parameters
x, skips = model.embed(tokens, patch, media, timesteps)
hidden, present = model.trunk(x, spans, positions)
logits = model.text_logits(hidden)                     # where text is predicted
predicted = model.denoise(hidden, media, timesteps, skips)  # of patches
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import PATCH_CODERS, ModelConfig
from transfusion_jax.kernels.cross_entropy import cross_entropy
from transfusion_jax.kernels.platform import compute_dtype
from transfusion_jax.model.layers import declared_axes, dot, normal, param, take_elements
from transfusion_jax.model.media import Media
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

    def flops(
        self, elements: Any, text_losses: Any, images: Any, span_area: Any, patches: Any = None, pairs: Any = None
    ) -> Any:
        """Exact operations of a forward and a backward pass, padding and recomputation not counted.

        Args:
            elements: text tokens and patches, padding left out.
            text_losses: elements whose next token, or code, is predicted: the text head runs on these.
            images: images embedded and denoised.
            span_area: Σ over elements of the keys that each may attend to.
            patches: of those images; by default each has those of `latent_shape`.
            pairs: Σ over those images of the square of their patches; by default as `patches`.

        Numbers or arrays alike.
        """
        config = self.config
        attention = 4.0 * config.layers * config.query_width * span_area
        weights = self.text_weight_flops(elements, text_losses)
        return FORWARD_AND_BACKWARD * (weights + attention + self.coder_flops(images, patches, pairs))

    def text_weight_flops(self, elements: Any, text_losses: Any) -> Any:
        """Operations of one pass through the trunk's weights and the text head, or of these weights' gradients.

        Args:
            elements: those that go through the trunk's weights.
            text_losses: those that the text head runs on.
        """
        config = self.config
        per_layer = config.width * (2 * config.query_width + 2 * config.key_width + 3 * config.mlp_width)
        trunk = 2.0 * config.layers * per_layer * elements
        head = 2.0 * config.width * config.padded_vocabulary * text_losses
        return trunk + head

    def coder_flops(self, images: Any = 1, patches: Any = None, pairs: Any = None) -> Any:
        """Operations of the patch coder on images, embedded and denoised, forward; of codes there are none."""
        if self.config.images != "latents":
            return 0.0
        each = self.config.patches
        patches = images * each if patches is None else patches
        pairs = images * each**2 if pairs is None else pairs
        return PATCH_CODERS[self.config.patch_coder].flops(self.config, images, patches, pairs)

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
        if not config.tied_embeddings:
            self.text_head = param(
                normal(head, (config.width, config.padded_vocabulary), config), "width", "vocabulary"
            )
        if config.images == "latents":
            self.patch_coder = PATCH_CODERS[config.patch_coder](config, key=coder)

    def embed(
        self,
        tokens: Int[Any, "B T"],
        patch: Int[Any, "B T"] | None = None,
        media: Media | None = None,
        timesteps: Int[Any, "B N"] | None = None,
    ) -> tuple[Float[Array, "B T W"], Any]:
        """Elements as vectors.

        Args:
            tokens: ignored where there is a patch, unless images are codes: then these alone count.
            patch: which patch of the media an element is, −1 for text.
            media: noised images; None, or without patches: all is text.
            timesteps: of each image.

        Returns:
            The elements, and what `denoise` needs of the patch coder (None for a linear one).
        """
        text = split(self.embedding[...])[tokens]  # of the whole table
        if self.config.images != "latents" or media is None or media.patches.shape[1] == 0:
            return split(text, "batch", "elements"), None
        media = replace(media, patches=media.patches.astype(text.dtype))
        vectors, skips = self.patch_coder.encode(media, timesteps)
        index = jnp.asarray(patch)[..., None]
        placed = jnp.take_along_axis(split(vectors, "batch"), jnp.maximum(index, 0), axis=1)
        return split(jnp.where(index >= 0, placed, text), "batch", "elements"), skips

    def text_logits(self, hidden: Float[Array, "... W"]) -> Float[Array, "... V"]:
        """Logits in float32, V being the padded vocabulary; −∞ for entries that are padding."""
        logits = dot(hidden, self._text_head).astype(jnp.float32)
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
        self, hidden: Float[Array, "B T W"], media: Media, timesteps: Int[Any, "B N"], skips: Any
    ) -> Float[Array, "B M values"]:
        """The objective's prediction for each patch, float32, from the hidden states of all elements."""
        of_patches = take_elements(hidden, media.element)
        return self.patch_coder.decode(of_patches, media, timesteps, skips).astype(jnp.float32)

    @property
    def _text_head(self) -> Float[Array, "W V"]:
        return self.embedding[...].T if self.config.tied_embeddings else self.text_head[...]

    def _cross_entropy(
        self, hidden: Float[Array, "B T W"], targets: Int[Any, "B T"]
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        return cross_entropy(hidden, self._text_head, targets, self.config.entries)


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
