"""Converted weights as a run: a directory that `train --init-from`, `sample` and `evaluate` read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax import config as configs
from transfusion_jax.config import Config, require
from transfusion_jax.data.documents import Corpus
from transfusion_jax.data.load import Codec, Data
from transfusion_jax.storage import Place
from transfusion_jax.training.checkpoint import Checkpoints
from transfusion_jax.training.workdir import Workdir, facts_of


def write_run(
    path: Place,
    config: Config,
    codec: Codec,
    leaves: Iterable[tuple[str, Callable[[], np.ndarray]]],
    origin: str,
) -> None:
    """A run whose checkpoint 0 holds these parameters, and nothing else.

    Leaves are made one at a time, into files that are mapped to memory.

    Args:
        path: the run's directory; no run may be there.
        config: of the model.
        codec: what its vocabulary and its latents mean; without statistics, those of the data that it is trained on
            hold.
        leaves: names, and what makes each.
        origin: where they are from, for the history.

    Raises:
        ConfigError: there is a run already.
    """
    workdir = Workdir(path)
    require(not workdir.exists(), f"{path} already holds a run: choose another --output")
    data = Data(Corpus(()), Corpus(()), codec)
    path.mkdir(parents=True, exist_ok=True)
    about = facts_of(config, data) | {"skip_rows": [], "config": configs.to_dict(config)}
    with tempfile.TemporaryDirectory(dir=path if isinstance(path, Path) else None) as folder:
        params: dict[str, Any] = {}
        for number, (name, make) in enumerate(leaves):
            _put(params, name, _mapped(Path(folder) / f"{number}.npy", make()))
        with Checkpoints(workdir.checkpoints, about=about) as checkpoints:
            checkpoints.save_weights(params)
    workdir.begin(config, data, "convert", source=origin, skip_rows=[])


def _mapped(path: Path, value: np.ndarray) -> np.ndarray:
    np.save(path, value)
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def _put(tree: dict[str, Any], name: str, value: np.ndarray) -> None:
    *parents, leaf = name.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
