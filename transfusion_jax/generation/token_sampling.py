"""Choosing the next token: the likeliest, or a draw from the likelier ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from transfusion_jax.config import require

SMALLEST = 1e-6  # of what divides logits, or is compared with chances, in 32 bits


@dataclass(frozen=True)
class Writing:
    """How texts are written.

    Raises:
        ConfigError: a value is out of range.
    """

    max_tokens: int = 256  # of all that one sample writes
    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # the likeliest tokens that make up so much
    min_p: float = 0.0  # of the likeliest token's probability
    stop: tuple[str, ...] = ()  # text ends before the first of these

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}")
        require(
            self.temperature == 0 or SMALLEST <= self.temperature < math.inf,
            f"temperature must be 0, for the likeliest token, or at least {SMALLEST}, not {self.temperature}",
        )
        require(self.top_k >= 0, f"top_k must not be negative, not {self.top_k}")
        require(SMALLEST <= self.top_p <= 1, f"top_p must lie between {SMALLEST} and 1, not {self.top_p}")
        require(0 <= self.min_p <= 1, f"min_p must lie between 0 and 1, not {self.min_p}")
        require(all(self.stop), "a stop string must not be empty")
        require(self.temperature > 0 or not self.filters, "top_k, top_p and min_p go with a temperature above 0")

    @property
    def filters(self) -> bool:
        """Whether some tokens are left out."""
        return (self.top_k, self.top_p, self.min_p) != (0, 1, 0)

    def chances(self) -> Chances:
        """What `choose_tokens` reads."""
        return Chances(self.temperature, self.top_k, self.top_p, self.min_p)


class Chances(NamedTuple):
    """The numbers of a `Writing`: scalars, so that none of them is compiled for."""

    temperature: Shaped[Any, ""] | float
    top_k: Int[Any, ""] | int
    top_p: Shaped[Any, ""] | float
    min_p: Shaped[Any, ""] | float


def choose_tokens(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], chances: Chances, filters: bool
) -> Int[Array, " B"]:
    """A token of each row from softmax(logits / temperature), or the likeliest where that is 0.

    Args:
        keys: random keys, one for each draw.
        chances: how.
        filters: whether tokens are left out: without, nothing is sorted.
    """

    def drawn() -> Int[Array, " B"]:
        scaled = logits / chances.temperature
        kept = likelier(scaled, chances) if filters else scaled
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(kept + noise, -1)

    return jax.lax.cond(jnp.asarray(chances.temperature) > 0, drawn, lambda: jnp.argmax(logits, -1))


def likelier(scaled: Float[Array, "B V"], chances: Chances) -> Float[Array, "B V"]:
    """Logits, with −∞ for the entries that top-k leaves out, then top-p, then min-p."""
    falling = -jnp.sort(-scaled, axis=-1)
    count = jnp.where(chances.top_k > 0, chances.top_k, scaled.shape[-1])
    lowest = jnp.take_along_axis(falling, jnp.full((len(scaled), 1), jnp.minimum(count, scaled.shape[-1]) - 1), -1)
    probability = jax.nn.softmax(jnp.where(falling >= lowest, falling, -jnp.inf), axis=-1)
    above = jnp.cumsum(probability, axis=-1) - probability
    within = jnp.where((above < chances.top_p) & (falling >= lowest), falling, jnp.inf)
    lowest = jnp.maximum(jnp.min(within, -1, keepdims=True), falling[:, :1] + jnp.log(chances.min_p))
    return jnp.where(scaled >= lowest, scaled, -jnp.inf)
