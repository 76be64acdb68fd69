"""The cross-entropy of the elements that bear a loss: text for every family of models, codes of images for some."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transfusion_jax.data.batch import Batch
from transfusion_jax.model.transfusion import Model, Params


class TokenLosses(NamedTuple):
    """Of each element, `[B, T]` float32; zero where it bears none."""

    loss: jax.Array  # −log of the target's likelihood
    log_total: jax.Array  # log Z, the softmax's denominator
    weight: jax.Array


def token_losses(model: Model, params: Params, hidden: jax.Array, batch: Batch, capacity: int) -> TokenLosses:
    """Losses of hidden states `[B, T, width]`: the head runs on `capacity` elements of each row at most."""
    if capacity >= hidden.shape[1]:
        return TokenLosses(*model.text_losses(params, hidden, batch.targets), batch.token_weight)
    order = jnp.argsort(batch.token_weight <= 0, axis=1, stable=True)[:, :capacity]
    chosen = jnp.take_along_axis(hidden, order[..., None], axis=1)
    targets, weight = (jnp.take_along_axis(x, order, 1) for x in (batch.targets, batch.token_weight))
    row = jnp.arange(len(hidden))[:, None]
    zeros = jnp.zeros(batch.tokens.shape)
    values = *model.text_losses(params, chosen, targets), weight
    return TokenLosses(*(zeros.at[row, order].set(value) for value in values))
