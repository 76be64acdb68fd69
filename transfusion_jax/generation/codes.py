"""Drawing images that are codes: token by token with a cache of keys and values, guidance on the logits.

Prompts are padded in front, so that all images of a batch begin at the same column: the cache has one length.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.config import Config
from transfusion_jax.data.load import Codec
from transfusion_jax.generation.prompt import ROUND_TO, check_length
from transfusion_jax.model.spans import Spans
from transfusion_jax.model.transfusion import Params
from transfusion_jax.model.trunk import Cache, compute_dtype
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.training.tokens import TokenTask

BATCH = 100  # images drawn at a time, at the most
CACHE = 2**33  # bytes of keys and values, at the most


def draw_codes(
    task: TokenTask,
    params: Params,
    codec: Codec,
    prompts: list[str],
    seed: int,
    guidance: float,
    temperature: float,
) -> np.ndarray:
    """Codes `[len(prompts), h, w]` of one image for each prompt; see `images.draw`.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts.
        prompts: texts that the images follow.
        seed: image i depends on (seed, i, its prompt) alone.
        guidance: scale of classifier-free guidance (1: none).
        temperature: divides the logits; 0 takes the likeliest code.

    Raises:
        ConfigError: a prompt does not fit the context.
    """
    config = task.config
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(prompts)))
    drawn, size = [], batch_size(config)
    for begin in range(0, len(prompts), size):
        part = prompts[begin : begin + size]
        tokens, start = prompt_rows(part + [""] * len(part) if guidance != 1 else part, config, codec)
        codes = _draw(task, guidance != 1, params, tokens, start, keys[begin : begin + size], guidance, temperature)
        drawn.append(to_host(codes))
    return np.concatenate(drawn).reshape(-1, *config.model.patch_grid)


def batch_size(config: Config) -> int:
    """Images whose caches, two with guidance, are held at a time."""
    model = config.model
    element = 2 * model.layers * model.width * compute_dtype(model).itemsize
    return max(1, min(BATCH, CACHE // (2 * element * config.data.context_length)))


def prompt_rows(prompts: list[str], config: Config, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """`BOS prompt BOI` at the end of each row `[S, L]`, padding in front, and where each BOS stands `[S]`."""
    texts = [[codec.special.bos, *codec.tokenizer.encode(p), codec.special.boi] for p in prompts]
    longest, patches = max(map(len, texts)), config.model.patches
    check_length(longest + patches + 1, config)
    length = min(-(-longest // ROUND_TO) * ROUND_TO, config.data.context_length - patches - 1)
    tokens = np.full((len(texts), length), codec.special.pad, np.int32)
    start = length - np.array([len(text) for text in texts])
    for row, text in enumerate(texts):
        tokens[row, start[row] :] = text
    return tokens, start


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(
    task: TokenTask,
    guided: bool,
    params: Params,
    tokens: jax.Array,
    start: jax.Array,
    keys: jax.Array,
    guidance: float,
    temperature: float,
) -> jax.Array:
    """Codes `[S, patches]`; with guidance, the second half of the rows is its other branch."""
    model, config = task.model, task.config.model
    rows, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length + config.patches), (rows, length + config.patches))
    spans = Spans(jnp.where(index < start[:, None], index, start[:, None]), index + 1)  # padding attends itself
    positions = jnp.maximum(index - start[:, None], 0)

    def choose(hidden: jax.Array, number: jax.Array) -> jax.Array:
        """Code `number` of each image `[S]` from the hidden states `[rows, width]` before it."""
        logits = model.text_logits(params, hidden)[:, config.first_code : config.entries]
        if guided:
            conditional, other = jnp.split(logits, 2)
            logits = other + guidance * (conditional - other)
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, number), logits.shape[1:]))(keys)
        return jnp.argmax(logits + temperature * noise, -1)  # a draw from softmax(logits / temperature)

    def forward(tokens: jax.Array, begin: jax.Array | int, cache: Cache) -> tuple[jax.Array, Cache]:
        text = jnp.full(tokens.shape, -1)
        x, _ = model.embed(params, tokens, text, text, jnp.zeros((rows, 0)), jnp.zeros((rows, 0)))
        place = jax.lax.dynamic_slice_in_dim(positions, begin, tokens.shape[1], 1)
        hidden, grown = model.trunk(params, x, spans, place, cache)
        assert grown is not None
        return hidden[:, -1], grown

    def one(carry: tuple[jax.Array, Cache], number: jax.Array) -> tuple[tuple[jax.Array, Cache], jax.Array]:
        code, cache = carry
        both = jnp.concatenate([code, code]) if guided else code
        hidden, cache = forward(config.first_code + both[:, None], length + number - 1, cache)
        code = choose(hidden, number)
        return (code, cache), code

    hidden, cache = forward(tokens, 0, Cache.empty(config, rows, length + config.patches))
    first = choose(hidden, jnp.int32(0))
    _, rest = jax.lax.scan(one, (first, cache), jnp.arange(1, config.patches))
    return jnp.concatenate([first[None], rest]).T
