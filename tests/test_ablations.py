"""Every row of docs/ablations.md is a config that trains: made small, each takes a step."""

import itertools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from transfusion_jax import config as configs
from transfusion_jax.data.batch import stack
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.step.state import new_state
from transfusion_jax.training.step.step import train_step

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/ablations.md").read_text()
ROW = re.compile(r"^\| [^|]+ \| `--config (\S+)((?: --config\.\S+)*)` \|", re.MULTILINE)
LINES = {3: 2, 4: 4, 5: 4, 6: 7, 7: 10, 8: 4}  # of each of the paper's tables


def commands():
    """The configs of each table: `{table: [(spec, (override, …))]}`."""
    parts = re.split(r"^## Table (\d):", PAGE, flags=re.MULTILINE)[1:]
    return {
        int(number): [(spec, tuple(words.replace("--config.", "").split())) for spec, words in ROW.findall(part)]
        for number, part in zip(parts[::2], parts[1::2], strict=True)
    }


def small(spec, overrides):
    """The row's config with everything that is large made small, and nothing else changed."""
    config = configs.load(str(ROOT / spec), overrides)
    values = configs.to_dict(config)
    model, data = values["model"], values["data"]
    patch = model["patch_size"]
    side = 4 if model["images"] == "codes" else max(8, 2 * patch)
    model |= dict(width=16, layers=1, heads=2, mlp_width=16, vocabulary=256, latent_shape=[side, side, 2])
    model |= dict(remat="none", codebook=16 if model["images"] == "codes" else 0)
    if model["patch_coder"] == "unet":
        model["unet_blocks"] = 1
        model["unet_channels"] = [8] * len(config.model.coder_channels)
    data |= dict(context_length=96, max_images=2, sources="synthetic")
    values |= dict(name="small", batch_rows=2)
    return configs.parse(values)


SMALL = {json.dumps(configs.to_dict(c)): c for rows in commands().values() for c in (small(*row) for row in rows)}


def test_every_row_of_the_tables_has_its_command():
    assert {number: len(rows) for number, rows in commands().items()} == LINES
    for row in itertools.chain(*commands().values()):
        configs.load(str(ROOT / row[0]), row[1])


def cases():
    """Each row; the first of each kind of model is quick enough to be tried every time."""
    seen = set()
    for config in SMALL.values():
        kind = config.model.images, config.model.patch_coder
        yield pytest.param(config, id="-".join(kind), marks=[pytest.mark.slow] if kind in seen else [])
        seen.add(kind)


@pytest.mark.parametrize("config", list(cases()))
def test_every_row_takes_a_step(config):
    task, data = make_task(config), load_data(config)
    rows = make_rows(data.train, config, data.codec.special)
    state = new_state(task, config)
    after, report = jax.jit(lambda s, b: train_step(task, config, s, b))(state, stack([rows[0], rows[1]]))
    assert np.isfinite(report.values["loss"])
    pairs = zip(*map(jax.tree.leaves, (state.params, after.params)), strict=True)
    assert any(not np.array_equal(old, new) for old, new in pairs)
