"""How a run begins: from nothing, by resuming, from other weights, as a fork, or rewound.

Each of them leaves a workdir in which resuming goes on from the right place: its newest checkpoint. The same
command given again finds that done, and resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from transfusion_jax import config as configs
from transfusion_jax.config import IMPORTERS, Config, require
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.datasets import check_codec
from transfusion_jax.data.packing.plan import VERSION
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.errors import CheckpointError
from transfusion_jax.parallel.processes import each, on_first
from transfusion_jax.storage.jsonl import free_path, read_lines, write_lines
from transfusion_jax.storage.paths import place, remove, within
from transfusion_jax.training.changes import accepted_changes, check_names, rate_notes
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.checkpoint.partial_load import Mapping, other_functions, transplant
from transfusion_jax.training.checkpoint.reader import CheckpointReader, Manifest, is_checkpoint
from transfusion_jax.training.facts import row_plan_of
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext, State, create_state

IMPORTED_RUN = "imported"  # in a workdir, while it begins: a run of weights that are in none

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """What the user asked for; by default a run begins from nothing or resumes."""

    init_from: str | None = None  # RUN[:STEP], the path of a checkpoint, or what `IMPORTERS` read
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
    """The config of the run, or of other weights, that a run is made of."""
    assert start.source is not None
    if found := _imported(start, None):
        return configs.kept(found.config)
    return configs.kept(configs.parse(read_checkpoint(start.source, CheckpointReader.manifest)["config"]))


def kept_statistics(start: Start, workdir: Workdir, config: Config) -> LatentStatistics | None:
    """How the run, or the one that it is made of, normalises latents: weights go on seeing what they learnt from.

    None for a run from nothing, or one in another encoding: the data's own statistics hold there.
    """
    if workdir.exists():
        codec = workdir.manifest()["codec"]
        check_codec(workdir.path, codec)
    elif found := _imported(start, config):
        same_encoding = found.config.data.encoding == config.data.encoding
        return found.codec.statistics if same_encoding else None
    elif start.source:
        codec = read_checkpoint(start.source, CheckpointReader.manifest)["codec"]
    else:
        return None
    same = codec["latents"] and codec["encoding"] == config.data.encoding
    return LatentStatistics.from_dict(codec["latents"]) if same else None


def kept_plan(start: Start, workdir: Workdir) -> int:
    """The version of the row plan: a run and its forks keep the stream that the run began with."""
    if workdir.exists():
        return row_plan_of(workdir.manifest())
    if start.fork_from:
        checkpoints, step = find_checkpoint(start.fork_from)
        return row_plan_of(checkpoints.manifest(step))
    return VERSION


def begin_or_resume(start: Start, context: RunContext, data: Any, workdir: Workdir) -> None:
    """Brings the workdir to where training goes on.

    Raises:
        ConfigError: the recipe changed, or what was asked for cannot be had here.
        CheckpointError: a checkpoint that is asked for is not there, or damaged.
    """
    config, log = context.config, context.log
    check_names(config, start.accept_changes)
    on_first(lambda: _drop_imported(workdir))
    if not on_first(workdir.exists):
        require(start.rewind_to is None, f"no run in {workdir.path} to rewind")
        on_first(workdir.check_unbegun)
        _clear(workdir, log)
        if start.init_from:
            _initialise(start, context, data, workdir)
        elif start.fork_from:
            _fork(start, context, data, workdir)
        else:
            workdir.begin(context.config, context.facts, data, "start")
        return
    checkpoints = Checkpoints(workdir.checkpoints)
    step = start.rewind_to if start.rewind_to is not None else on_first(lambda: max(checkpoints.steps, default=0))
    old, path = workdir.run(), str(workdir.path)
    notes = rate_notes(old, config, step)
    changes = each(lambda: accepted_changes(old, workdir.manifest(), context, start.accept_changes, path, notes))[0]
    if start.source:
        origin = workdir.manifest()["history"][0]
        require(
            (origin["event"], origin.get("source")) == ("init" if start.init_from else "fork", start.source),
            f"{workdir.path} already holds a run that began otherwise: leave the option out to resume it, or "
            "choose another --workdir",
        )
    rewound = on_first(lambda: _rewound_at(start, workdir))
    if start.rewind_to is not None and (changes or not rewound):
        _rewind(start, context, data, workdir, changes)
    else:
        each(lambda: _check_newest(checkpoints, context.abstract_state))  # before anything is written
        if rewound:
            log(f"rewound to step {start.rewind_to} already, at {rewound}: resuming")
        workdir.begin(context.config, context.facts, data, "resume", accepted=changes)
    for line in [*(f"accepted: {name} {change}" for name, change in changes.items()), *notes]:
        log(line)


def read_checkpoint(spec: str, function: Callable[[CheckpointReader, int], T]) -> T:
    """What a function reads of the checkpoint that `RUN`, `RUN:STEP` or a checkpoint's own path names.

    See `CheckpointReader.read`: the run may train on, and delete it meanwhile.
    """
    checkpoints, word = _located(spec)
    return checkpoints.read(word, lambda step: function(checkpoints, step))


def find_checkpoint(spec: str) -> tuple[CheckpointReader, int]:
    """The checkpoint that `RUN`, `RUN:STEP` (a number, latest or best) or a checkpoint's own path names."""
    checkpoints, word = _located(spec)
    return checkpoints, checkpoints.find(word)


def _located(spec: str) -> tuple[CheckpointReader, str]:
    path = place(spec)
    if is_checkpoint(path):
        return CheckpointReader(path.parent, folder=path), "latest"
    run, step = (spec, "latest") if path.is_dir() else spec.rpartition(":")[::2]
    workdir = Workdir(place(run))
    if not run or not workdir.exists() or not (workdir.checkpoints.exists() or workdir.attempts.exists()):
        raise CheckpointError(
            f"{spec} is neither a run (RUN or RUN:STEP) nor a checkpoint's folder; --init-from also takes a folder "
            "of to-safetensors, or a language model's folder or GGUF file"
        )
    return CheckpointReader(workdir.checkpoints), step


def _initialise(start: Start, context: RunContext, data: Any, workdir: Workdir) -> None:
    """Step 0 with the weights of another run, or of a run made of others; the rest is fresh."""
    assert start.init_from is not None
    source, made = start.init_from, workdir.path / IMPORTED_RUN
    config, log = configs.as_model(context.config), context.log
    if found := _imported(start, config, log):
        on_first(lambda: found.write(made))
        source = str(made)
        for line in found.notes:
            log(line)
    state, model = create_state(context), config.model

    def take(checkpoints: CheckpointReader, step: int) -> tuple[int, str, Any, list[str]]:
        leaves = each(lambda: checkpoints.manifest(step))[0]["leaves"]
        has_average = any(name.startswith("ema/") for name in leaves)
        weights = start.weights or ("ema" if has_average else "raw")
        require(
            weights == "raw" or has_average,
            f"{start.init_from} keeps no average of its weights: use --weights raw",
        )
        axes = context.task.axes()
        params, notes = transplant(checkpoints, step, weights, state.params, axes, model, start.mapping)
        old = configs.parse(each(lambda: checkpoints.manifest(step))[0]["config"]).model
        for line in other_functions(old, model):
            log(f"{start.init_from}: {line}")
        return step, weights, params, notes

    step, weights, params, notes = read_checkpoint(source, take)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    log(f"{weights} weights of {start.init_from}, step {step}" + "".join(f"\n  {note}" for note in notes))
    state = replace(state, params=params, ema=ema)
    event: dict[str, Any] = dict(event="init", source=start.init_from, step=step, weights=weights, mapping=notes)
    parent = Workdir(_located(source)[0].directory.parent)
    if parent.exists():
        event |= parent.imported()
        for line in _departures(parent, start.init_from if found else str(parent.path), config, data):
            log(line)
    at_start = {"next_row": 0, "skip_rows": [], "metrics": None, "concluded": True}
    _save_first(state, at_start, context, data, workdir, event)
    on_first(lambda: _drop_imported(workdir))


def _drop_imported(workdir: Workdir) -> None:
    """Deletes the run of a start that has ended, failed or been killed: another one may be of other weights."""
    if (made := workdir.path / IMPORTED_RUN).is_dir():
        remove(made)


def _imported(start: Start, config: Config | None, log: Callable[[str], None] = lambda line: None) -> Any:
    """Weights that are in no run, a `conversion.runs.Imported`; None where they are in one."""
    path = place(start.init_from) if start.init_from else None
    if not isinstance(path, Path):  # none, or in a bucket
        return None
    found = (IMPORTERS[name](path, config, log) for name in IMPORTERS)
    return next((weights for weights in found if weights is not None), None)


def _departures(parent: Workdir, name: str, config: Config, data: Any) -> Iterator[str]:
    """Lines where a run's context or special tokens differ from those of its first weights, which `name` names."""
    longest, context = parent.longest_context(), config.data.context_length
    if longest and context > longest:
        yield f"{name} was trained on at most {longest} elements, and data.context_length is {context}"
    kept, ours = parent.manifest()["codec"], data.codec.tokenizer
    if kept["tokenizer_hash"] == tokenizers.hash_of(ours):
        return
    theirs = tokenizers.load_saved_tokenizer(parent.path, kept["tokenizer"])
    if theirs.size == ours.size and (theirs.bos, theirs.eos, theirs.stops) != (ours.bos, ours.eos, ours.stops):
        yield (
            f"{name}: {tokenizers.describe_marks(theirs)}; in this data {tokenizers.describe_marks(ours)}: "
            "prepare data with the tokenizer that it keeps"
        )


def _fork(start: Start, context: RunContext, data: Any, workdir: Workdir) -> None:
    """The whole state of another run, its place in the stream, and its metrics so far."""
    assert start.fork_from is not None
    source = start.fork_from

    def take(
        checkpoints: CheckpointReader, step: int
    ) -> tuple[Workdir, int, Manifest, dict[str, str], list[str], State]:
        manifest = each(lambda: checkpoints.manifest(step))[0]
        old = configs.parse_run(manifest["config"])
        notes = rate_notes(old, context.config, step)
        changes = accepted_changes(old, manifest, context, start.accept_changes, source, notes)
        state, _ = checkpoints.restore(step, context.abstract_state)
        return Workdir(checkpoints.directory.parent), step, manifest, changes, notes, state

    parent, step, manifest, changes, notes, state = read_checkpoint(source, take)

    def copy_records() -> None:
        for old, new in ((parent.metrics, workdir.metrics), (parent.bad_steps, workdir.bad_steps)):
            if records := read_lines(old):
                write_lines(new, [r | {"forked_from": start.fork_from} for r in records if r["step"] <= step])

    on_first(copy_records)
    context.log(
        f"forked from {start.fork_from}, step {step}" + "".join(f"\n  {n}: {c}" for n, c in changes.items())
    )
    for line in notes:
        context.log(line)
    event: dict[str, Any] = dict(event="fork", source=start.fork_from, step=step, accepted=changes)
    event |= parent.imported() if parent.exists() else {}
    _save_first(state, manifest, context, data, workdir, event)


def _save_first(
    state: State, place: Manifest, context: RunContext, data: Any, workdir: Workdir, event: dict[str, Any]
) -> None:
    """Saves what a run goes on from, at the place that a manifest says."""
    skip_rows = place["skip_rows"]
    config = configs.kept_values(context.config)
    about = {**context.facts, "skip_rows": skip_rows, "config": config}
    with Checkpoints(workdir.checkpoints, about=about) as checkpoints:
        totals = place.get("totals")
        checkpoints.save(state, place["next_row"], place["metrics"], place["concluded"], totals)
    workdir.begin(context.config, context.facts, data, skip_rows=skip_rows, **event)


def _check_newest(checkpoints: CheckpointReader, abstract: State) -> None:
    for step in reversed(checkpoints.steps):
        try:
            checkpoints.check(step, abstract)
        except DamagedCheckpoint:
            continue  # it will be set aside
        return


def _rewind(start: Start, context: RunContext, data: Any, workdir: Workdir, changes: dict[str, str]) -> None:
    """Goes back to a step; later checkpoints and records are kept under `aside`.

    Killed midway, it leaves a run that resumes from the newest checkpoint that is still in place.
    """
    to = start.rewind_to
    assert to is not None
    checkpoints = Checkpoints(workdir.checkpoints)
    next_row = 0
    if to != 0 or not workdir.began_from_nothing():
        _, manifest = checkpoints.restore(checkpoints.find(str(to)), context.abstract_state)  # it must be whole
        next_row = manifest["next_row"]
    if start.skip_rows:
        require(
            start.skip_rows[0] >= next_row,
            f"--skip-rows begins at {start.skip_rows[0]}, and step {to} has trained on every row before "
            f"{next_row}: rewind further, or skip later rows",
        )

    def keep_records() -> str:
        kept = free_path(workdir.aside, "rewind")
        for path in (workdir.metrics, workdir.bad_steps):  # training cuts them back
            if records := read_lines(path):
                write_lines(kept / path.name, records)
        return str(kept)

    kept = place(on_first(keep_records))
    for step in on_first(lambda: checkpoints.steps[::-1]):
        if step > to:
            checkpoints.set_aside(step, kept)
    context.log(f"rewound to step {to}; what came after it is kept in {kept}")
    kept_in = within(kept, workdir.path)
    event = dict(to=to, rows_skipped=start.skip_rows, accepted=changes, kept_in=kept_in)
    workdir.begin(
        context.config, context.facts, data, "rewind", [start.skip_rows] if start.skip_rows else [], **event
    )


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
