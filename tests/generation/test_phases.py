"""What XLA makes of a phase of decoding."""

import re

import jax
import jax.numpy as jnp

from helpers import tiny_codec, tiny_config
from transfusion_jax.data.documents import Document, Text
from transfusion_jax.generation import phases
from transfusion_jax.generation.prompt import rows_of
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.tasks.base import make_task


def test_tokens_are_added_to_the_cache_where_it_lies():
    task, codec = make_task(tiny_config()), tiny_codec()
    params = task.model.by_layer(task.init(jax.random.key(0)))
    rows, lengths = rows_of([Document((Text(jnp.arange(3)),))] * 2, task.config, codec)
    state = phases.prefill(task, 64, params, rows, jnp.asarray(lengths))
    limits = phases.Limits(*jnp.array([[8, 8], [60, 60], [0, 0], [6, 6]]))
    keys = jax.random.split(jax.random.key(0), 2)
    program = phases.write_tokens.lower(
        task, codec.special, 4, False, params, state, jnp.array([True, True]), limits, keys, Writing().chances()
    )
    text, held = program.compile().as_text(), ",".join(map(str, state.cache.past[0].keys.shape))
    assert f"f32[{held}]" in text
    assert not re.findall(rf"f32\[{held}\]\S* copy\(", text)
