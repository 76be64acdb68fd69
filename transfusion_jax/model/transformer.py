"""The trunk: a Llama transformer (RMSNorm, SwiGLU, rotary embeddings), its layers stacked and scanned.

Two switches make it Chameleon's (arXiv 2405.09818, section 2.3): `model.query_key_norm` and `model.norm="post"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.config import PATCHES, REMAT_POLICIES, ModelConfig
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.attention import Attention, attend
from transfusion_jax.model.kv_cache import Cache, Past
from transfusion_jax.model.layers import (
    MLP,
    RMSNorm,
    dot,
    frequencies,
    param,
    put_elements,
    rotary,
    rotate,
    take_elements,
)
from transfusion_jax.parallel.sharding import split


class Trunk(nnx.Module):
    """Everything between the embeddings and the two heads."""

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        self.config = config
        keys = jax.random.split(key, config.layers)
        structure = nnx.graphdef(nnx.eval_shape(lambda: Layer(config, key=jax.random.key(0))))
        stacked = jax.vmap(lambda k: nnx.state(Layer(config, key=k)))(keys)
        named = jax.tree.map(_with_layers, stacked, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
        self.layers: Layer | nnx.List[Layer] = nnx.merge(structure, named)
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)

    def __call__(
        self,
        x: Float[Array, "B T W"],
        spans: Spans,
        positions: Int[Any, "B T *axes"],
        cache: Cache | None = None,
        patch_places: Int[Array, "B M"] | None = None,
    ) -> tuple[Float[Array, "B T W"], tuple[Past, ...]]:
        """Hidden states after the final norm, and, where there is a cache, each layer's keys and values of x.

        Without a cache, stacked layers are scanned. With one, layers follow one another in the program: a scan
        copies each one's weights and cache before it reads them, which takes a token a third of its time.

        Args:
            x: embedded elements.
            spans: in places of the row, where x begins at 0, or behind what the cache holds.
            positions: each element's place in its document, on three axes with rotary sections.
            cache: earlier elements' keys and values, which x continues; `Cache.append` adds to them.
            patch_places: where the patches stand among the T elements, T where there is none; only untied
                modality weights ask for it.

        Raises:
            ValueError: the weights are untied, and patch_places is missing.
        """
        untied = self.config.modality_weights == "untied"
        if untied and patch_places is None:
            raise ValueError("untied modality weights need to know which elements are patches: give patch_places")
        places = patch_places if untied else None
        rotation = rotary(positions, frequencies(self.config), self.config.rope_sections)

        def through(
            layer: Layer, x: Float[Array, "B T W"], held: Cache | None
        ) -> tuple[Float[Array, "B T W"], Past]:
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

    def _scan(
        self, layers: Layer, through: Callable[[Layer, jax.Array], jax.Array], x: Float[Array, "B T W"]
    ) -> Float[Array, "B T W"]:
        structure, stacked = nnx.split(layers)

        def body(x: Float[Array, "B T W"], params: nnx.State) -> tuple[Float[Array, "B T W"], None]:
            return through(nnx.merge(structure, params), x), None

        policy = REMAT_POLICIES[self.config.remat]()
        if policy is not None:
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return jax.lax.scan(body, x, stacked)[0]

    def _each(self) -> Sequence[Layer]:
        if not isinstance(self.layers, Layer):
            return self.layers
        structure, stacked = nnx.split(self.layers)
        each = (jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(self.config.layers))
        return [nnx.merge(structure, params) for params in each]


def _with_layers(stacked: nnx.Param) -> nnx.Param:
    return param(stacked[...], "layers", *stacked.axes)


class Block(nnx.Module):
    """The weights of one transformer block, each norm before its part, or after it and inside the residual.

    The latter is Swin's order (arXiv 2111.09883), which Chameleon takes.
    """

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        self.config = config
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, key=attention_key)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = MLP(config, key=mlp_key)

    def project(
        self, x: Float[Array, "B T W"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B T K D"], Float[Array, "B T K D"]]:
        """Queries, keys and values; see `Attention.project`."""
        return self.attention.project(self.attention_norm(x) if self.config.norm == "pre" else x)

    def attended(self, mixed: Float[Array, "B T HD"]) -> Float[Array, "B T W"]:
        """What attention adds to the residual, from what it gave."""
        result = dot(mixed, self.attention.output)
        return self.attention_norm(result) if self.config.norm == "post" else result

    def feed_forward(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        """What the SwiGLU adds to the residual."""
        return self.mlp(self.mlp_norm(x)) if self.config.norm == "pre" else self.mlp_norm(self.mlp(x))


class Layer(Block):
    """One transformer block; with untied modality weights, another block's weights stand beside it for patches.

    Only what mixes elements, attention itself, is common to both (arXiv 2411.04996).
    """

    def __init__(self, config: ModelConfig, *, key: Key[Array, ""]):
        super().__init__(config, key=key)
        if config.modality_weights == "untied":
            setattr(self, PATCHES, Block(config, key=jax.random.fold_in(key, 1)))

    def __call__(
        self,
        x: Float[Array, "B T W"],
        spans: Spans,
        rotation: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]],
        cache: Cache | None,
        patch_places: Int[Array, "B M"] | None = None,
    ) -> tuple[Float[Array, "B T W"], Past]:
        """Elements one layer on, and the keys and values that a cache of this layer would add."""

        def each(function: Callable[[Block, jax.Array], Any], x: Float[Array, "B T W"]) -> Any:
            """The function of every element: with the text's weights, then again for patches with their own."""
            result = function(self, x)
            if patch_places is None:
                return result
            patches = function(getattr(self, PATCHES), take_elements(x, patch_places))
            return jax.tree.map(lambda all_, some: put_elements(all_, some, patch_places), result, patches)

        q, k, v = each(Block.project, x)
        mixed, present = attend(self.config, rotate(q, rotation), rotate(k, rotation), v, spans, cache)
        x = x + each(Block.attended, mixed)
        return x + each(Block.feed_forward, x), present
