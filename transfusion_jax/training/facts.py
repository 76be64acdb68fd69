"""What a run's manifest says beside its history, and what that stands for: its codec, its data."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from transfusion_jax import config
from transfusion_jax.config import Config, Run
from transfusion_jax.data import datasets
from transfusion_jax.data.datasets import Codec, Data, read_codec
from transfusion_jax.data.packing.plan import REPLAYED
from transfusion_jax.parallel import flags
from transfusion_jax.tasks.base import Task
from transfusion_jax.training.run_dir import Workdir

PACKAGES = ("transfusion-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def facts_of(task: Task, new: Run, data: Any) -> dict[str, Any]:
    """What a manifest says of a run, its history apart; `data` is what it trains on, such as `Data`."""
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "flags": flags.in_force(),
        "identity_hash": config.identity_hash(new),
        "parameters": task.parameters,
        **data.facts(new),
    }


def codec_of(workdir: Workdir) -> Codec:
    """How a run coded texts and images; needs none of its data."""
    return read_codec(workdir.path, workdir.manifest()["codec"])


def data_of(workdir: Workdir, config: Config) -> Data:
    """The data that a config names, coded and planned as the run does."""
    return datasets.load_data(config, codec_of(workdir).statistics, row_plan_of(workdir.manifest()))


def trained_shapes(manifest: dict[str, Any]) -> dict[str, list[int]] | None:
    """The least and the greatest `height`, `width` and `area` of a run's images, in latent pixels.

    None of runs of one size, and of those whose manifest does not say it, as earlier versions' and converted ones.
    """
    found: dict[str, list[int]] | None = manifest.get("shapes")
    return found


def row_plan_of(manifest: dict[str, Any]) -> int:
    """The version of the row plan that a manifest names; manifests that name none are of version 2."""
    return int(manifest.get("row_plan", REPLAYED))
