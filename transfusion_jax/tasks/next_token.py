"""The task of models that predict tokens alone: Chameleon's, whose images are codes, and models of text.

`L` is the mean cross-entropy over all elements of the global batch that bear a loss, text and codes alike, plus the
z-loss (arXiv 2405.09818). Packing, accumulation and sharding never change the value.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.data.batch import Batch
from transfusion_jax.model.transfusion import Params, TokenLosses
from transfusion_jax.tasks.base import Metrics, accumulated_gradients
from transfusion_jax.tasks.transfusion import Parts, TransformerTask, images_seen


class TokenTask(TransformerTask):
    """See the module's text."""

    def gradients(
        self, params: Params, batch: Batch, key: Key[Array, ""], step: Int[Any, ""] | int
    ) -> tuple[Params, Metrics]:
        """See `Task.gradients`; nothing here is random."""
        del key, step
        total = jnp.maximum(batch.token_weight.sum(), 1)
        return accumulated_gradients(
            lambda p, part: self.loss(p, part, total), params, batch, self.config.accumulation
        )

    def loss(self, params: Params, batch: Batch, total: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The loss of some rows of a batch that bears `total` losses, and its parts for the log."""
        tokens = self.element_losses(params, batch)
        row_loss = jnp.sum(tokens.loss * tokens.weight + self.config.z_loss * tokens.squares, axis=1) / total
        sums = {
            name: (jnp.sum(loss * weight), jnp.sum(weight)) for name, (loss, weight) in self._split(batch, tokens)
        }
        return self.report(batch, tokens, row_loss, sums)

    def element_losses(self, params: Params, batch: Batch) -> TokenLosses:
        """Each element's losses and weight."""
        model = self.model.bind(params)
        no_times = jnp.zeros(batch.latents.shape[:2], jnp.int32)
        x, _ = model.embed(batch.tokens, batch.image_slot, batch.patch_index, batch.latents, no_times)
        hidden, _ = model.trunk(x, batch.spans, batch.positions)
        return model.text_losses(hidden, batch.targets, batch.token_weight, self.config.data.text_capacity)

    def held_out(self, params: Params, batch: Batch, key: Key[Array, ""]) -> Parts:
        """The losses of `evaluation.suites.loss`."""
        del key
        tokens = self.element_losses(params, batch)
        return {"loss": (tokens.loss, tokens.weight)} | {
            name: part for name, part in self._split(batch, tokens) if "/" not in name
        }

    def _split(self, batch: Batch, tokens: TokenLosses) -> list[tuple[str, tuple[jax.Array, jax.Array]]]:
        """The losses apart, by source and by direction.

        `loss_text` is over the same elements as Transfusion's: the EOI that the last code predicts, which is no
        news, counts in the whole alone.
        """
        is_code = batch.targets >= self.config.model.first_code
        before, total = images_seen(batch)
        slot = jnp.maximum(jnp.roll(batch.image_slot, -1, axis=1), 0)  # of the target
        image_first = jnp.take_along_axis(batch.image_first, slot, axis=1)
        kinds = {
            "loss_text": (
                ~is_code & (batch.image_slot < 0),
                {"caption_first": (total > 0) & (before == 0), "image_first": before > 0},
            ),
            "loss_image": (is_code, {"caption_first": ~image_first, "image_first": image_first}),
        }
        if self.config.model.images == "none":
            kinds = {"loss_text": (~is_code, {})}
        sources = {f"source_{name}": batch.source == i for i, name in enumerate(self.config.data.source_names)}
        parts = []
        for name, (here, directions) in kinds.items():
            weight = tokens.weight * here
            parts.append((name, (tokens.loss, weight)))
            parts += [
                (f"{name}/{group}", (tokens.loss, weight * where))
                for group, where in (directions | sources).items()
            ]
        return parts
