"""Suites give the same numbers however many devices share the work."""

import jax
import pytest

from helpers import code_codec, code_corpus, tiny_codec, tiny_config, tiny_corpus, token_config
from transfusion_jax.config import SUITES, MeshConfig
from transfusion_jax.data.datasets import Data
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import state_shardings
from transfusion_jax.tasks.base import make_task

SIZE = dict(batch_rows=8, evaluation__rows=16, evaluation__images=40)
LATENTS = Data(tiny_corpus(), tiny_corpus(1), tiny_codec())
CODES = Data(code_corpus(), code_corpus(1), code_codec())


@pytest.mark.parametrize(
    ("config", "data", "axes"),
    [
        pytest.param(tiny_config(**SIZE, accumulation=2), LATENTS, (1, 4, 1, 2), id="latents in parts"),
        pytest.param(token_config(**SIZE, accumulation=4), CODES, (2, 2, 1, 2), id="codes", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_measure_what_one_does(config, data, axes):
    task = make_task(config)
    params = jax.tree.map(lambda p: 5 * p, task.init(jax.random.key(0)))
    mesh = make_mesh(MeshConfig(*axes))
    spread = jax.device_put(params, state_shardings(params, mesh, task.axes()))
    for name in ("loss", "text", "images", "captions"):
        alone = SUITES[name].run(task, params, data, jax.random.key(1))
        with jax.set_mesh(mesh):
            together = SUITES[name].run(task, spread, data, jax.random.key(1))
        assert together == pytest.approx(alone, rel=1e-4)
