"""The loss of held-out images, by how noisy they are."""

from __future__ import annotations

import jax
import numpy as np

from transfusion_jax.config import Config, require
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.evaluation.suites.loss import add_up, means, measured
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`loss_image` on the rows and with the noise of the suite `loss`, by size where images have any shape.

    Of latents by noise, too.

    Raises:
        ConfigError: the model sees no images.
    """
    check(task.config, data)
    sums: dict[str, np.ndarray] = {}
    rows = make_rows(data.held_out, task.config, data.codec.special, version=data.row_plan)
    for _, losses in measured(task, params, rows, task.config.evaluation.rows, key):
        add_up(sums, {name: part for name, part in losses.items() if name.startswith("loss_image")})
    return means(sums)


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where the model sees no images."""
    del data
    require(config.model.images != "none", "the suite 'images' needs images, and this is a model of text alone")


SUITE = Suite(run, check=check, version=2, native_version=3)
