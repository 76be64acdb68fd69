"""Converted weights as a run: a directory that `train --init-from`, `sample` and `evaluate` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from transfusion_jax import config as configs
from transfusion_jax.config import Config, require
from transfusion_jax.data.datasets import Codec, Data
from transfusion_jax.data.documents import Corpus
from transfusion_jax.storage.paths import Place
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.checkpoint.chunks import Leaf
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.facts import facts_of
from transfusion_jax.training.run_dir import Workdir


@dataclass(frozen=True)
class Imported:
    """Weights from elsewhere, with all that a run of them needs; see `write_run`."""

    config: Config
    codec: Codec
    leaves: Mapping[str, Leaf]
    origin: str
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # lines for the user

    def write(self, path: Place) -> None:
        """Writes the run."""
        write_run(path, self.config, self.codec, self.leaves, self.origin, self.about)


def write_run(
    path: Place,
    config: Config,
    codec: Codec,
    leaves: Mapping[str, Leaf],
    origin: str,
    imported: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """A run whose checkpoint 0 holds these parameters, and nothing else.

    Args:
        path: the run's directory; no run may be there.
        config: of the model.
        codec: what its vocabulary and its latents mean; without statistics, those of the data that it is trained on
            hold.
        leaves: by name.
        origin: where they are from, for the history.
        imported: what is known of them, by `run_dir.IMPORTED`.

    Raises:
        ConfigError: there is a run already.
    """
    workdir = Workdir(path)
    data = Data(Corpus(()), Corpus(()), codec)
    facts = facts_of(make_task(config), config, data)
    about = facts | {"skip_rows": [], "config": configs.kept_values(config)}
    with workdir.locked():
        require(not workdir.exists(), f"{path} already holds a run: choose another --output")
        workdir.check_unbegun()
        checkpoints = Checkpoints(workdir.checkpoints, about=about)
        for step in checkpoints.steps:  # of a conversion that was killed before its run existed
            checkpoints.set_aside(step, workdir.aside)
        checkpoints.save_weights(leaves)
        workdir.begin(config, facts, data, "convert", source=origin, **imported)
