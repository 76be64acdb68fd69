"""`evaluation.json`: what was measured, one entry for each set of weights, suite and settings.

    {"evaluations": [{"step": 2400, "weights": "ema", "checkpoint": "5c0f…", "suite": "loss",
                      "settings": {"rows": 128, "data": "91ab…", "version": 2}, "metrics": {"loss": 1.75, …}}, …]}

Everything but the metrics is the entry's key. What was measured under one key is not measured again, and numbers
of different settings stand in different entries.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from transfusion_jax.config import OF_LATENTS, Config
from transfusion_jax.data.datasets import Data
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.parallel.processes import on_first
from transfusion_jax.storage.atomic import locked, read_json, write_json
from transfusion_jax.training.run_dir import Workdir

Entry = dict[str, Any]

EVALUATIONS, METRICS = "evaluations", "metrics"
SPACING = "trailing"  # of the visited timesteps; numbers of earlier versions, "leading", say none
UNUSED = {"latents": ("temperature",), "codes": OF_LATENTS, "none": ()}  # fields of `sampling`, by model.images


def settings(suite: Suite, config: Config, data: Data, protocol: str | None) -> dict[str, Any]:
    """What a suite's numbers depend on beside the weights; of one that draws, how, and a hash of its prompts."""
    found: dict[str, Any] = {suite.size: getattr(config.evaluation, suite.size), "data": data.held_out.hash}
    version = (suite.native_version if config.model.max_side else 0) or suite.version
    if version > 1:
        found["version"] = version
    if suite.prompts:
        prompts = "\n".join(suite.prompts(config, data.codec))
        found["prompts"] = hashlib.sha256(prompts.encode()).hexdigest()[:16]
    if suite.draws:
        found |= {"protocol": protocol, "sampling": sampling_of(config)}
    return found


def sampling_of(config: Config) -> dict[str, Any]:
    """How the config draws: the fields that its kind of images has a use for, as JSON reads them back."""
    fields = dataclasses.asdict(config.sampling)
    how = {name: value for name, value in fields.items() if name not in UNUSED[config.model.images]}
    if config.model.images == "latents":
        how["spacing"] = "shifted" if config.diffusion.timestep_base and how["spacing"] == "auto" else SPACING
    read_back: dict[str, Any] = json.loads(json.dumps(how))
    return read_back


def read_entries(workdir: Workdir) -> list[Entry]:
    """Every entry of a run; none where nothing was evaluated."""
    if not workdir.evaluation.exists():
        return []
    remedy = "move it away and evaluate again"
    form = {f"{EVALUATIONS}?": [{"step": int, METRICS: dict}]}
    entries: list[Entry] = read_json(workdir.evaluation, remedy, form).get(EVALUATIONS, [])
    return entries


def find(workdir: Workdir, key: Entry) -> Entry | None:
    """The entry of a key, on every process."""
    return on_first(lambda: next((entry for entry in read_entries(workdir) if _key(entry) == key), None))


def write_entry(workdir: Workdir, new: Entry) -> None:
    """Adds an entry, in the place of the one with the same key; those of other processes of the machine stay."""

    def put() -> None:
        with locked(workdir.path):
            others = [entry for entry in read_entries(workdir) if _key(entry) != _key(new)]
            entries = sorted([*others, new], key=lambda entry: entry["step"])
            write_json(workdir.evaluation, {EVALUATIONS: entries}, indent=2)

    on_first(put)


def as_text(entries: list[Entry], indent: int | None = 2) -> str:
    """Entries as the file holds them."""
    return json.dumps({EVALUATIONS: entries}, indent=indent) + "\n"


def _key(entry: Entry) -> Entry:
    return {name: value for name, value in entry.items() if name != METRICS}
