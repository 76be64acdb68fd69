"""Weights & Biases, for those who ask for it: one run of theirs for one workdir, however often it restarts.

The package is the extra `wandb`. It sends from a process of its own: the loop does not wait for the network.
Steps that are made again after a kill are sent again, with the same values: what is there cannot be taken back, and
whether it arrived is not known.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError, Run, require
from transfusion_jax.errors import UserError
from transfusion_jax.parallel.processes import first
from transfusion_jax.storage.atomic import read_json, write_json
from transfusion_jax.training.run_dir import Workdir

RUN_FILE = "wandb.json"  # in the workdir: the project, and the run's id there
PATIENCE = 30.0  # seconds for the server to answer, before this attempt is kept on this machine


class Tracker:
    """A run in Weights & Biases; opened by `open_tracker`."""

    def __init__(self, run: Any, wandb: Any, had: bool):
        """`had`: whether earlier attempts sent anything to the run."""
        self._run, self._wandb, self._had = run, wandb, had
        self._sent: dict[str, float] = {}

    def goes_on_after(self, record: dict[str, float]) -> None:
        """The newest record of the earlier attempts, which a resumed run may add an evaluation to."""
        self._sent = dict(record) if self._had else {}

    def record(self, step: int, values: dict[str, float]) -> None:
        """A step's numbers; those that were sent for it before are left out."""
        record = {"step": step, **values}
        if record["step"] != self._sent.get("step"):
            self._sent = {}
        new = {name: value for name, value in record.items() if name not in self._sent}
        self._sent |= record
        self._run.log(new | {"step": step})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image `[H, W, 3]` uint8."""
        self._run.log({"step": step, name: self._wandb.Image(image)})


def parse_tracked(text: str) -> tuple[str, str | None]:
    """Project and name of the run that `PROJECT` or `PROJECT/RUN` asks for.

    Raises:
        ConfigError: it is neither, or the package is not installed.
    """
    project, slash, name = text.partition("/")
    require(bool(project) and bool(name) == bool(slash), f"--wandb {text} must be PROJECT or PROJECT/RUN")
    require("/" not in name, f"--wandb {text}: the entity is named by WANDB_ENTITY, so PROJECT/RUN has one slash")
    _package()
    return project, name or None


@contextmanager
def open_tracker(
    tracked: tuple[str, str | None] | None, workdir: Workdir, config: Run, log: Callable[[str], None]
) -> Iterator[Tracker | None]:
    """The run that belongs to a workdir, begun or gone on with, on the first process; None where none is asked for.

    Where the server does not answer, this attempt is kept on this machine, as with WANDB_MODE=offline.

    Raises:
        ConfigError: the workdir's run is in another project, or Weights & Biases refuses.
    """
    if tracked is None or not first():
        yield None
        return
    wandb = _package()
    project, name = tracked
    had = (workdir.path / RUN_FILE).exists()
    run_id = _id_of(workdir, project)
    folder = os.environ.get("WANDB_DIR") or (str(workdir.path) if isinstance(workdir.path, Path) else None)

    def begin(**settings: Any) -> Any:
        options = wandb.Settings(console="off", silent=True, init_timeout=PATIENCE, **settings)
        about = configs.to_dict(config)
        return wandb.init(
            project=project, name=name, id=run_id, resume="allow", dir=folder, config=about, settings=options
        )

    try:
        run = begin()
    except wandb.errors.CommError as error:
        reason = str(error).splitlines()[0]
        log(f"Weights & Biases does not answer ({reason}): this attempt is kept on this machine")
        wandb.teardown()  # its process still holds the run
        run = begin(mode="offline")
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--wandb: {reason} Or set WANDB_MODE=offline, which needs no account.") from error
    if run.offline:
        log(f"Weights & Biases, offline; to send it later: wandb sync {run.settings.sync_dir}")
    else:
        log(f"Weights & Biases: {run.url}")
    run.define_metric("*", step_metric="step")
    code = 1
    try:
        yield Tracker(run, wandb, had)
        code = 0
    except UserError as error:
        code = error.exit_code
        raise
    finally:
        run.finish(exit_code=code)


def _id_of(workdir: Workdir, project: str) -> str:
    path = workdir.path / RUN_FILE
    if path.exists():
        kept = read_json(path, "delete it, and a new run in Weights & Biases is begun", {"project": str, "id": str})
        require(
            kept["project"] == project,
            f"{workdir.path} is tracked in project {kept['project']}, not {project}: keep to it, or delete {path}",
        )
        return str(kept["id"])
    run_id = uuid.uuid4().hex[:12]
    write_json(path, {"project": project, "id": run_id})
    return run_id


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("--wandb needs the package wandb: pip install 'transfusion-jax[wandb]'") from error
    return wandb
