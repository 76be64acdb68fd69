"""The task of models that predict tokens alone: Chameleon's, whose images are codes, and models of text.

`L` is the mean cross-entropy over all elements of the global batch that bear a loss, text and codes alike, plus the
z-loss (arXiv 2405.09818). Packing, accumulation and sharding never change the value.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transfusion_jax.data.batch import Batch
from transfusion_jax.model.media import Media
from transfusion_jax.model.transfusion import Params, TokenLosses
from transfusion_jax.tasks.base import Metrics, accumulated_gradients
from transfusion_jax.tasks.transfusion import Parts, TransformerTask, patches_seen


class TokenTask(TransformerTask):
    """See the module's text."""

    def gradients(
        self, params: Params, batch: Batch, key: Key[Array, ""], step: Int[Any, ""] | int
    ) -> tuple[Params, Metrics]:
        """See `Task.gradients`; nothing here is random."""
        del key, step
        total = jnp.maximum(batch.token_weight.sum(), 1)
        return accumulated_gradients(
            lambda p, part: self.loss(p, part, total), params, batch, self.config.accumulation, self.label
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
        x, _ = model.embed(batch.tokens)
        hidden, _ = model.trunk(x, batch.spans, batch.positions)
        return model.text_losses(hidden, batch.targets, batch.token_weight, self.config.data.text_capacity)

    def held_out(self, params: Params, batch: Batch, key: Key[Array, ""]) -> Parts:
        """The losses of `evaluation.suites.loss`; of codes by their image's size, too."""
        del key
        tokens = self.element_losses(params, batch)
        return {"loss": (tokens.loss, tokens.weight)} | {
            name: part for name, part in self._split(batch, tokens) if "/" not in name or "/size_" in name
        }

    def _split(self, batch: Batch, tokens: TokenLosses) -> list[tuple[str, tuple[jax.Array, jax.Array]]]:
        """The losses apart, by source and by direction, and of codes by their image's size.

        `loss_text` is over the same elements as Transfusion's: the EOI that the last code predicts, which is no
        news, counts in the whole alone.
        """
        model = self.config.model
        is_code = (batch.targets >= model.first_code) & (batch.targets < model.first_side)
        before, total = patches_seen(batch)
        kinds: dict[str, tuple] = {"loss_text": (~is_code, {})}
        for name, modality in self.config.modalities.items():
            media = batch.media[name]
            item_first = _at_predictions(media, batch.patch, media.comes_first)
            directions = {"caption_first": (total > 0) & (before == 0), "image_first": before > 0}
            kinds["loss_text"] = (~is_code & (batch.patch < 0), directions)
            kinds[f"loss_{modality.singular}"] = (
                is_code,
                {"caption_first": ~item_first, "image_first": item_first}
                | {s: _at_predictions(media, batch.patch, i) for s, i in self.size_groups(media).items()},
            )
        sources = {f"source_{name}": batch.source == i for i, name in enumerate(self.config.data.source_names)}
        parts = []
        for name, (here, groups) in kinds.items():
            weight = tokens.weight * here
            parts.append((name, (tokens.loss, weight)))
            parts += [
                (f"{name}/{group}", (tokens.loss, weight * where)) for group, where in (groups | sources).items()
            ]
        return parts


def _at_predictions(media: Media, patch: Int[Any, "B T"], values: Bool[Any, "B N"]) -> Bool[Array, "B T"]:
    """Items' values at the elements that predict their codes; elsewhere they mean nothing."""
    predicted = jnp.maximum(jnp.roll(patch, -1, axis=1), 0)
    return jnp.take_along_axis(media.spread(values), predicted, axis=1)
