"""How a run begins: from nothing, by resuming, from other weights, as a fork, or rewound.

Each of them leaves a workdir in which resuming goes on from the right place: its newest checkpoint. The same
command given again finds that done, and resumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from transfusion_jax import config as configs
from transfusion_jax.config import Config, Run, require
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.packing.plan import VERSION
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.errors import CheckpointError
from transfusion_jax.parallel.processes import each, on_first
from transfusion_jax.storage.jsonl import free_path, read_lines, write_lines
from transfusion_jax.storage.paths import Place, place, within
from transfusion_jax.tasks.base import Task
from transfusion_jax.training.checkpoint.manager import Checkpoints, DamagedCheckpoint, Manifest, is_checkpoint
from transfusion_jax.training.checkpoint.partial_load import Mapping, transplant
from transfusion_jax.training.run_dir import Workdir, accepted_changes, check_names, facts_of, row_plan_of
from transfusion_jax.training.step.optimizer import learning_rate
from transfusion_jax.training.step.state import State, abstract_state, create_state

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """What the user asked for; by default a run begins from nothing or resumes."""

    init_from: str | None = None  # RUN[:STEP] or the path of a checkpoint
    weights: str | None = None  # of init_from: "ema" or "raw"
    mapping: Mapping = ()  # of init_from: what becomes of leaves that do not fit
    fork_from: str | None = None  # RUN[:STEP] or the path of a checkpoint
    rewind_to: int | None = None
    skip_rows: tuple[int, int] | None = None  # of rewind_to
    accept_changes: tuple[str, ...] = ()

    @property
    def source(self) -> str | None:
        """What the run is made of, where that is another one."""
        return self.init_from or self.fork_from


def source_config(start: Start) -> Config:
    """The config of the run that a run is made of."""
    assert start.source is not None
    return configs.kept(configs.parse(read_checkpoint(start.source, Checkpoints.manifest)["config"]))


def kept_statistics(start: Start, workdir: Workdir, config: Config) -> LatentStatistics | None:
    """How the run, or the one that it is made of, normalises latents: weights go on seeing what they learnt from.

    None for a run from nothing, or one in another encoding: the data's own statistics hold there.
    """
    if workdir.exists():
        codec = workdir.manifest()["codec"]
    elif start.source:
        codec = read_checkpoint(start.source, Checkpoints.manifest)["codec"]
    else:
        return None
    same = codec["latents"] and codec["encoding"] == config.data.encoding
    return LatentStatistics.from_dict(codec["latents"]) if same else None


def kept_plan(start: Start, workdir: Workdir) -> int:
    """The version of the row plan: a run and its forks keep the stream that the run began with."""
    if workdir.exists():
        return workdir.row_plan
    if start.fork_from:
        checkpoints, step = find_checkpoint(start.fork_from)
        return row_plan_of(checkpoints.manifest(step))
    return VERSION


def begin(
    start: Start, task: Task, config: Run, data: Any, mesh: Mesh, workdir: Workdir, log: Callable[[str], None]
) -> None:
    """Brings the workdir to where training goes on.

    Raises:
        ConfigError: the recipe changed, or what was asked for cannot be had here.
        CheckpointError: a checkpoint that is asked for is not there, or damaged.
    """
    check_names(config, start.accept_changes)
    if not on_first(workdir.exists):
        require(start.rewind_to is None, f"no run in {workdir.path} to rewind")
        on_first(workdir.check_unbegun)
        _clear(workdir, log)
        if start.init_from:
            _initialise(start, task, config, data, mesh, workdir, log)
        elif start.fork_from:
            _fork(start, task, config, data, mesh, workdir, log)
        else:
            workdir.begin(config, data, "start")
        return
    checkpoints, abstract = Checkpoints(workdir.checkpoints), abstract_state(task, config, mesh)
    step = start.rewind_to if start.rewind_to is not None else on_first(lambda: max(checkpoints.steps, default=0))
    notes = rate_notes(workdir.run(), config, step)
    changes = each(lambda: workdir.check(config, data, start.accept_changes, notes))[0]
    if start.source:
        origin = workdir.manifest()["history"][0]
        require(
            (origin["event"], origin.get("source")) == ("init" if start.init_from else "fork", start.source),
            f"{workdir.path} already holds a run that began otherwise: leave the option out to resume it, or "
            "choose another --workdir",
        )
    rewound = on_first(lambda: _rewound_at(start, workdir))
    if start.rewind_to is not None and (changes or not rewound):
        _rewind(start, abstract, config, data, workdir, changes, log)
    else:
        each(lambda: _check_newest(checkpoints, abstract))  # before anything is written
        if rewound:
            log(f"rewound to step {start.rewind_to} already, at {rewound}: resuming")
        workdir.begin(config, data, "resume", accepted=changes)
    for line in [*(f"accepted: {name} {change}" for name, change in changes.items()), *notes]:
        log(line)


def rate_notes(old: Run, new: Run, step: int) -> list[str]:
    """How a change of recipe moves the learning rate of the step after `step`, and the alternatives."""
    before, after = (float(learning_rate(run.optimizer, run.steps)(jnp.int32(step))) for run in (old, new))
    if math.isclose(before, after, rel_tol=1e-5) or not 0 < step < new.steps:
        return []
    hold = (f"optimizer.{name}" for name in ("learning_rate", "final_learning_rate"))
    return [
        f"learning rate of step {step + 1:,}: {before:.3g} by the old recipe, {after:.3g} by the new one, which "
        f"falls until step {new.steps:,}",
        f"to keep the old one, accept these as well: {' '.join(f'--config.{name}={before:.3g}' for name in hold)}",
        "to warm up to a new one, train in a new --workdir with --init-from this run",
    ]


def read_checkpoint(spec: str, function: Callable[[Checkpoints, int], T]) -> T:
    """What a function reads of the checkpoint that `RUN`, `RUN:STEP` or a checkpoint's own path names.

    See `Checkpoints.read`: the run may train on, and delete it meanwhile.
    """
    checkpoints, word = _located(spec)
    return checkpoints.read(word, lambda step: function(checkpoints, step))


def find_checkpoint(spec: str) -> tuple[Checkpoints, int]:
    """The checkpoint that `RUN`, `RUN:STEP` (a number, latest or best) or a checkpoint's own path names."""
    checkpoints, word = _located(spec)
    return checkpoints, checkpoints.find(word)


def _located(spec: str) -> tuple[Checkpoints, str]:
    path = place(spec)
    if is_checkpoint(path):
        return Checkpoints(path.parent, folder=path), "latest"
    run, step = (spec, "latest") if path.is_dir() else spec.rpartition(":")[::2]
    workdir = Workdir(place(run))
    if not run or not workdir.exists():
        raise CheckpointError(f"{spec} is neither a run (RUN or RUN:STEP) nor a checkpoint's folder")
    return Checkpoints(workdir.checkpoints), step


def _initialise(
    start: Start, task: Task, config: Run, data: Any, mesh: Mesh, workdir: Workdir, log: Callable[[str], None]
) -> None:
    """Step 0 with the weights of another run; optimizer, schedule and stream are fresh."""
    assert start.init_from is not None
    state, model = create_state(task, config, mesh), configs.as_model(config).model

    def take(checkpoints: Checkpoints, step: int) -> tuple[int, str, Any, list[str]]:
        leaves = each(lambda: checkpoints.manifest(step))[0]["leaves"]
        has_average = any(name.startswith("ema/") for name in leaves)
        weights = start.weights or ("ema" if has_average else "raw")
        require(
            weights == "raw" or has_average,
            f"{start.init_from} keeps no average of its weights: use --weights raw",
        )
        return step, weights, *transplant(checkpoints, step, weights, state.params, model, start.mapping)

    step, weights, params, notes = read_checkpoint(start.init_from, take)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    log(f"{weights} weights of {start.init_from}, step {step}" + "".join(f"\n  {note}" for note in notes))
    state = replace(state, params=params, ema=ema)
    event = dict(event="init", source=start.init_from, step=step, weights=weights, mapping=notes)
    parent = Workdir(_located(start.init_from)[0].directory.parent)
    if parent.exists():
        event["longest_context"] = parent.longest_context()
        for line in _departures(parent, configs.as_model(config), data):
            log(line)
    place = {"next_row": 0, "skip_rows": [], "metrics": None, "concluded": True}
    _save_first(state, place, config, data, workdir, event)


def _departures(parent: Workdir, config: Config, data: Any) -> Iterator[str]:
    """Lines where a run's context or special tokens differ from those of its first weights."""
    longest, context = parent.longest_context(), config.data.context_length
    if longest and context > longest:
        yield f"{parent.path} was trained on at most {longest} elements, and data.context_length is {context}"
    kept, ours = parent.manifest()["codec"], data.codec.tokenizer
    if kept["tokenizer_hash"] == tokenizers.hash_of(ours):
        return
    theirs = tokenizers.load_saved(parent.path, kept["tokenizer"])
    if theirs.size == ours.size and (theirs.bos, theirs.eos, theirs.stops) != (ours.bos, ours.eos, ours.stops):
        yield (
            f"{parent.path}: {tokenizers.describe_marks(theirs)}; in this data {tokenizers.describe_marks(ours)}: "
            "prepare data with the tokenizer that the run keeps"
        )


def _fork(
    start: Start, task: Task, config: Run, data: Any, mesh: Mesh, workdir: Workdir, log: Callable[[str], None]
) -> None:
    """The whole state of another run, its place in the stream, and its metrics so far."""
    assert start.fork_from is not None
    source = start.fork_from

    def take(
        checkpoints: Checkpoints, step: int
    ) -> tuple[Workdir, int, Manifest, dict[str, str], list[str], State]:
        manifest = each(lambda: checkpoints.manifest(step))[0]
        old = configs.parse_run(manifest["config"])
        notes, facts = rate_notes(old, config, step), facts_of(config, data)
        changes = accepted_changes(old, manifest, config, facts, start.accept_changes, source, notes)
        state, _ = checkpoints.restore(step, abstract_state(task, config, mesh))
        return Workdir(checkpoints.directory.parent), step, manifest, changes, notes, state

    parent, step, manifest, changes, notes, state = read_checkpoint(source, take)

    def copy_records() -> None:
        for old, new in ((parent.metrics, workdir.metrics), (parent.bad_steps, workdir.bad_steps)):
            if records := read_lines(old):
                write_lines(new, [r | {"forked_from": start.fork_from} for r in records if r["step"] <= step])

    on_first(copy_records)
    log(f"forked from {start.fork_from}, step {step}" + "".join(f"\n  {n}: {c}" for n, c in changes.items()))
    for line in notes:
        log(line)
    event = dict(event="fork", source=start.fork_from, step=step, accepted=changes)
    event["longest_context"] = parent.longest_context() if parent.exists() else None
    _save_first(state, manifest, config, data, workdir, event)


def _save_first(
    state: State, place: Manifest, config: Run, data: Any, workdir: Workdir, event: dict[str, Any]
) -> None:
    """Saves what a run goes on from, at the place that a manifest says."""
    skip_rows = place["skip_rows"]
    about = facts_of(config, data) | {"skip_rows": skip_rows, "config": configs.to_dict(configs.kept(config))}
    with Checkpoints(workdir.checkpoints, about=about) as checkpoints:
        totals = place.get("totals")
        checkpoints.save(state, place["next_row"], place["metrics"], place["concluded"], totals)
    workdir.begin(config, data, skip_rows=skip_rows, **event)


def _check_newest(checkpoints: Checkpoints, abstract: State) -> None:
    for step in reversed(checkpoints.steps):
        try:
            checkpoints.check(step, abstract)
        except DamagedCheckpoint:
            continue  # it will be set aside
        return


def _rewind(
    start: Start,
    abstract: State,
    config: Run,
    data: Any,
    workdir: Workdir,
    changes: dict[str, str],
    log: Callable[[str], None],
) -> None:
    """Goes back to a step; later checkpoints and records are kept under `aside`.

    Killed midway, it leaves a run that resumes from the newest checkpoint that is still in place.
    """
    to = start.rewind_to
    assert to is not None
    checkpoints = Checkpoints(workdir.checkpoints)
    next_row = 0
    if to != 0 or not workdir.began_from_nothing():
        _, manifest = checkpoints.restore(checkpoints.find(str(to)), abstract)  # it must be whole
        next_row = manifest["next_row"]
    if start.skip_rows:
        require(
            start.skip_rows[0] >= next_row,
            f"--skip-rows begins at {start.skip_rows[0]}, and step {to} has trained on every row before "
            f"{next_row}: rewind further, or skip later rows",
        )

    def keep_records() -> Place:
        kept = free_path(workdir.aside, "rewind")
        for path in (workdir.metrics, workdir.bad_steps):  # training cuts them back
            if records := read_lines(path):
                write_lines(kept / path.name, records)
        return kept

    kept = on_first(keep_records)
    for step in on_first(lambda: checkpoints.steps[::-1]):
        if step > to:
            checkpoints.set_aside(step, kept)
    log(f"rewound to step {to}; what came after it is kept in {kept}")
    kept_in = within(kept, workdir.path)
    event = dict(to=to, rows_skipped=start.skip_rows, accepted=changes, kept_in=kept_in)
    workdir.begin(config, data, "rewind", [start.skip_rows] if start.skip_rows else [], **event)


def _rewound_at(start: Start, workdir: Workdir) -> str | None:
    """When the run's last rewind was done, if it is the one asked for: the same command was given before."""
    rewinds = [entry for entry in workdir.manifest()["history"] if entry["event"] == "rewind"]
    asked = (start.rewind_to, list(start.skip_rows) if start.skip_rows else None)
    if not rewinds or (rewinds[-1]["to"], rewinds[-1].get("rows_skipped")) != asked:
        return None
    return str(rewinds[-1]["time"])


def _clear(workdir: Workdir, log: Callable[[str], None]) -> None:
    """Checkpoints of a run that was never begun, or whose config is gone, are set aside."""
    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.clean()
    for step in on_first(lambda: checkpoints.steps):
        log(f"checkpoint {step} belongs to no run; moved to {checkpoints.set_aside(step, workdir.aside)}")
