import jax.numpy as jnp
import numpy as np

from helpers import tiny_config
from transfusion_jax.model.kv_cache import Cache, Past


def test_new_elements_stand_behind_those_of_their_row_even_where_the_trunk_has_overflowed():
    config = tiny_config().model
    cache = Cache.empty(config, 2, 8)._replace(length=jnp.array([3, 5]))
    keys = jnp.arange(2 * config.heads * 2 * config.head_channels, dtype=jnp.float32)
    present = (Past(*[1 + keys.reshape(2, config.heads, 2, config.head_channels)] * 2),) * config.layers
    for hidden in (jnp.zeros((2, 2, config.width)), jnp.full((2, 2, config.width), jnp.nan)):
        after = cache.append(present, jnp.array([2, 1]), hidden)
        assert after.length.tolist() == [5, 6]
        for row, begin in enumerate([3, 5]):
            held = np.asarray(after.past[0].keys[row])
            assert np.array_equal(held[:, begin : begin + 2], present[0].keys[row])
            assert not held[:, :begin].any()
