"""`transfusion train`: trains or resumes in a workdir."""

from __future__ import annotations

import argparse
from dataclasses import replace

from transfusion_jax import config as configs
from transfusion_jax.commands.common.launch_args import context_of, log, make_ready, watching_of
from transfusion_jax.config import HOOKS, Config, ConfigError, require
from transfusion_jax.data import datasets as data_loading
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.errors import INTERRUPTED, whole_range
from transfusion_jax.generation.guidance import untrained_branch
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.checkpoint.partial_load import parse_mapping
from transfusion_jax.training.loop import Outcome
from transfusion_jax.training.monitoring.telemetry import Watching
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.preemption import Interruption, watch_signals
from transfusion_jax.training.run import begun, train_run
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start, kept_plan, kept_statistics, source_config


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains, and returns the exit code."""
    if arguments.json:
        raise ConfigError("--json goes with --dry-run; a run's numbers are in its metrics.jsonl")
    start = start_of(arguments)
    config = config_of(arguments, start, overrides)
    if arguments.workdir is None:
        raise ConfigError("train needs --workdir DIR, where the run is kept (or --dry-run to look only)")
    watching = watching_of(arguments, config)
    with watch_signals(log) as interruption:
        outcome = _train(arguments, start, config, interruption, watching)
    return INTERRUPTED if outcome.interrupted else 0


def _train(
    arguments: argparse.Namespace, start: Start, config: Config, interruption: Interruption, watching: Watching
) -> Outcome:
    with interruption.may_leave():
        mesh, workdir = make_ready(arguments, config)
        data = data_loading.load_data(config, kept_statistics(start, workdir, config), kept_plan(start, workdir))
        rows = make_rows(data.train, config, data.codec.special, log, version=data.row_plan, run=workdir.path)
        context = context_of(make_task(config), config, data, mesh)
        hooks = tuple(make(context, data, workdir) for make in HOOKS.values())
    beat = Beat()
    with begun(start, context, data, workdir, interruption, beat):  # now that config and data have proved to fit
        rows = replace(rows, skipped=workdir.skip_rows)
        size, elements = context.facts["parameters"] / 1e6, config.elements_per_step
        log(f"{config.name}: {size:.2f}M parameters, {elements:,} elements per step")
        sources = (f"{source.name} ({len(source.documents.images):,} documents)" for source in data.train.sources)
        plan = rows.planner.find(0).plan.about
        padding = f"{plan['padding']:.2%} of the first {plan['rows']:,} rows is padding"
        log(f"trains on {', '.join(sources)}; {padding}")
        for line in untrained_branch(config):
            log(line)
        return train_run(context, workdir, rows, interruption, hooks, watching, beat)


def start_of(arguments: argparse.Namespace) -> Start:
    """How the run is to begin."""
    for option, of in (("weights", "init_from"), ("init_map", "init_from"), ("skip_rows", "rewind_to")):
        if getattr(arguments, option) is not None and getattr(arguments, of) is None:
            raise ConfigError(f"--{option} goes with --{of}".replace("_", "-"))
    return Start(
        init_from=arguments.init_from,
        weights=arguments.weights,
        mapping=parse_mapping(arguments.init_map or []),
        fork_from=arguments.fork_from,
        rewind_to=arguments.rewind_to,
        skip_rows=_stretch(arguments.skip_rows),
        accept_changes=tuple((arguments.accept_changes or "").replace(",", " ").split()),
    )


def _stretch(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows = whole_range(text, ":")
    if rows is None:
        raise ConfigError(f"--skip-rows {text} must be A:B, such as 456:464")
    require(rows[0] < rows[1], f"--skip-rows {text} holds no row")
    return rows


def config_of(arguments: argparse.Namespace, start: Start, overrides: list[str]) -> Config:
    """The config that the command line names: of a file, of the workdir, or of the run that this one is made of."""
    if arguments.config:
        return configs.load(arguments.config, overrides)
    workdir = Workdir(arguments.workdir) if arguments.workdir else None
    if start.source and not (workdir and workdir.exists()):
        return configs.override(source_config(start), overrides)
    if workdir is None:
        raise ConfigError("train needs --config FILE[:arg], such as --config configs/digits.py")
    return configs.override(workdir.config(), overrides)
