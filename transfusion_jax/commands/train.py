"""`transfusion train`: trains or resumes in a workdir."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

import jax

from transfusion_jax import config as configs
from transfusion_jax import flops
from transfusion_jax.commands.common.launch_args import context_of, log, make_ready, watching_of
from transfusion_jax.config import SUITES, Config, ConfigError, require
from transfusion_jax.data import datasets as data_loading
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.documents import Text
from transfusion_jax.errors import INTERRUPTED
from transfusion_jax.generation.guidance import untrained_branch
from transfusion_jax.generation.png import grid, write_png
from transfusion_jax.generation.single import draw
from transfusion_jax.parallel import flags, processes
from transfusion_jax.planning import plan_vs_actual
from transfusion_jax.tasks.registry import ModelTask, make_task
from transfusion_jax.training.checkpoint.partial_load import parse_mapping
from transfusion_jax.training.loop import Hook, Monitor, Outcome
from transfusion_jax.training.monitoring.telemetry import Watching
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.preemption import Interruption, watch_signals
from transfusion_jax.training.run import begun, train_run
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start, kept_plan, kept_statistics, source_config


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains, and returns the exit code."""
    if arguments.json and not arguments.dry_run:
        raise ConfigError("--json goes with --dry-run; a run's numbers are in its metrics.jsonl")
    start = _start(arguments)
    config = _config(arguments, start, overrides)
    if arguments.dry_run:
        _print_summary(config, arguments.json)
        for line in untrained_branch(config):
            print(line, file=sys.stderr)
        return 0
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
        data = data_loading.load(config, kept_statistics(start, workdir, config), kept_plan(start, workdir))
        missing = [s.name for s in data.held_out.sources if config.data.sources[s.name].weight and not len(s)]
        require(
            not config.loop.evaluate_every or not missing,
            f"nothing of source {', '.join(missing)} is held out to evaluate on: prepare it with a larger "
            "--held-out, name a folder in data.sources.NAME.held_out, or set loop.evaluate_every to 0",
        )
        for name in config.evaluation.during_training if config.loop.evaluate_every else ():
            SUITES[name].check(config, data)  # not only at the first evaluation
        rows = make_rows(data.train, config, data.codec.special, log, version=data.row_plan, run=workdir.path)
        task = make_task(config)
        context = context_of(task, config, data, mesh)
    beat = Beat()
    with begun(start, context, data, workdir, interruption, beat):  # now that config and data have proved to fit
        rows = replace(rows, skipped=workdir.skip_rows)
        parameters = flops.count_parameters(config.model).total
        log(f"{config.name}: {parameters / 1e6:.2f}M parameters, {config.elements_per_step:,} elements per step")
        for line in untrained_branch(config):
            log(line)
        hooks, settled = _hooks(task, data, workdir), plan_vs_actual.reporter(context)
        return train_run(context, workdir, rows, interruption, hooks, watching, beat, settled)


def _start(arguments: argparse.Namespace) -> Start:
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
    begin, _, end = text.partition(":")
    require(begin.isdigit() and end.isdigit(), f"--skip-rows {text} must be A:B, such as 456:464")
    require(int(begin) < int(end), f"--skip-rows {text} holds no row")
    return int(begin), int(end)


def _config(arguments: argparse.Namespace, start: Start, overrides: list[str]) -> Config:
    if arguments.config:
        return configs.load(arguments.config, overrides)
    workdir = Workdir(arguments.workdir) if arguments.workdir else None
    if start.source and not (workdir and workdir.exists()):
        return configs.override(source_config(start), overrides)
    if workdir is None:
        raise ConfigError("train needs --config FILE[:arg], such as --config configs/digits.py")
    return configs.override(workdir.config(), overrides)


def _hooks(task: ModelTask, data: Data, workdir: Workdir) -> tuple[Hook, ...]:
    config = task.config

    def evaluate(step: int, params: Any, monitor: Monitor) -> dict[str, float]:
        del step, monitor
        results: dict[str, float] = {}
        for name in config.evaluation.during_training:
            found = SUITES[name].run(task, params, data, jax.random.key(config.seed))
            prefix = "held_out" if name == "loss" else f"held_out/{name}"
            results |= {f"{prefix}/{metric}": value for metric, value in found.items()}
        return results

    def sample(step: int, params: Any, monitor: Monitor) -> dict[str, float]:
        prompts = _held_out_captions(data, count=10)
        if prompts:
            sheet = grid(draw(task, params, data.codec, prompts, seed=config.seed), columns=5)
            monitor.image(step, "samples", sheet)
            if processes.first():
                write_png(workdir.samples / f"{step:08d}.png", sheet)
        return {}

    return Hook(config.loop.evaluate_every, evaluate), Hook(config.loop.sample_every, sample)


def _held_out_captions(data: Data, count: int) -> list[str]:
    """Different captions of held-out pairs."""
    texts = dict.fromkeys(
        data.codec.tokenizer.decode(segment.tokens)
        for document in data.held_out.pairs(4 * count)
        for segment in document.segments
        if isinstance(segment, Text)
    )
    return list(texts)[:count]


def _print_summary(config: Config, as_json: bool) -> None:
    parameters = flops.count_parameters(config.model)
    elements = config.steps * config.elements_per_step
    summary = {
        "parameters": {
            "trunk": parameters.trunk,
            "patch_trunk": parameters.patch_trunk,
            "embedding": parameters.embedding,
            "text_head": parameters.text_head,
            "paper_count": parameters.paper,
            "patch_coder": parameters.patch_coder,
            "image_entries": parameters.image_entries,
            "vocabulary_padding": parameters.padding,
            "total": parameters.total,
        },
        "elements_per_step": config.elements_per_step,
        "steps": config.steps,
        "elements": elements,
        "flops_6nd": flops.six_nd(config.model, elements),
        "flags": flags.in_force(),
    }
    if as_json:
        print(json.dumps({"config": configs.to_dict(config), **summary}, indent=2))
        return
    print(json.dumps(configs.to_dict(config), indent=2))
    print(f"""
parameters
  trunk                 {parameters.trunk / 1e6:10,.1f}M
  trunk for patches     {parameters.patch_trunk / 1e6:10,.1f}M
  token embeddings      {parameters.embedding / 1e6:10,.1f}M  ({config.model.vocabulary:,} entries)
  text head             {parameters.text_head / 1e6:10,.1f}M
  as the paper counts   {parameters.paper / 1e6:10,.1f}M
  patch coder           {parameters.patch_coder / 1e6:10,.1f}M  ({parameters.patch_coder / parameters.paper:.1%})
  codes of images       {parameters.image_entries / 1e6:10,.1f}M  ({config.model.codebook:,} entries)
  vocabulary padding    {parameters.padding / 1e6:10,.1f}M  (to {config.model.padded_vocabulary:,} entries)
  total                 {parameters.total / 1e6:10,.1f}M
elements per step       {config.elements_per_step:11,}  ({config.batch_rows} rows of {config.data.context_length})
steps                   {config.steps:11,}
elements                {elements:11.3e}
training FLOPs, 6ND     {summary["flops_6nd"]:11.3e}""")
    for variable, words in flags.in_force().items():
        print(f"{variable}\n  " + "\n  ".join(words.split()))
