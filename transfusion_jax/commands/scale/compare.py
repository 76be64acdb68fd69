"""`transfusion scale compare` and `scale reference`: is a run's loss right?"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from transfusion_jax import config as configs
from transfusion_jax.config import require
from transfusion_jax.errors import INTERRUPTED
from transfusion_jax.scaling import reference
from transfusion_jax.scaling.ladder import training
from transfusion_jax.scaling.reference import Reference, Verdict
from transfusion_jax.scaling.running import FAILED, Training, run_trainings
from transfusion_jax.storage.outputs import check_output_file, check_output_folder

DIFFERENT = 1  # exit code: a loss is outside
WAYS = ("model.compute_dtype=bfloat16", "accumulation=2")  # of the first seed, which must not matter


def run_compare(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Compares a run with a reference; returns the exit code."""
    del overrides
    verdict = reference.hold_to_bands(arguments.workdir, reference.load_reference(arguments.reference))
    print(json.dumps(asdict(verdict) | {"passes": verdict.passes}) if arguments.json else _sentences(verdict))
    return 0 if verdict.passes else DIFFERENT


def _sentences(verdict: Verdict) -> str:
    if verdict.passes:
        bands = " and ".join(reference.BANDS[band] for band in verdict.held_to)
        losses = ", ".join(verdict.losses)
        lines = [f"up to step {verdict.step:,} {losses} stay within the bands of {verdict.reference}: {bands}"]
    else:
        lines = [f"this is not how {verdict.reference} trains; where each loss first leaves a band:"]
        lines += [
            f"  step {d.step:,}: {d.loss} {d.value:.4f}, {reference.BANDS[d.band]} {d.low:.4f} to {d.high:.4f}"
            for d in verdict.departures
        ]
    if verdict.other_data:
        lines.append(f"its documents are not those of {verdict.reference}, so only the seeds' band applies")
    if verdict.other_rows:
        planned = f"its rows come from another version of the row plan than those of {verdict.reference}"
        lines.append(f"{planned}, so only the seeds' band applies")
    return "\n".join(lines)


def make_reference(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains a reference's runs and writes it; returns the exit code."""
    output, root = arguments.output, arguments.workdir
    require(
        output.suffix == ".json" and output.parent.is_dir(),
        f"--output {output} must end in .json, in a folder that exists",
    )
    require(isinstance(root, Path), f"--workdir {root} must be a folder here: the trainings run on this machine")
    check_output_file(output)
    check_output_folder(root)
    config = configs.load(arguments.config, overrides)
    until = config.steps if arguments.until is None else arguments.until
    low = reference.WINDOWS * config.loop.log_every
    require(
        low <= until <= config.steps,
        f"--until {until} must lie between {low:,}, so that every {reference.WINDOWS}th of it has a record "
        f"(loop.log_every), and {config.steps:,}, the run's steps",
    )
    runs = {f"seed{seed}": ("", [f"seed={seed}"]) for seed in range(arguments.seeds)}
    runs |= {f"seed0-way{i}": (way, [way]) for i, way in enumerate(WAYS)}
    trainings = [
        training(name, root, root, arguments.config, [*overrides, *more, f"loop.stop_at={until}"])
        for name, (_, more) in runs.items()
    ]
    codes: list[int] = []

    def end(ended: Training, code: int) -> None:
        print(f"{ended.name}: {'done' if code == 0 else f'exit code {code}, see {ended.log}'}", file=sys.stderr)
        codes.append(code)

    if run_trainings(trainings, arguments.jobs, (), lambda begun: None, end):
        return INTERRUPTED
    if any(codes):
        return FAILED
    windows = reference.windows_of(until)
    curves = tuple(reference.curve(root / name, windows, way) for name, (way, _) in runs.items())
    words = ["transfusion", "train", "--config", arguments.config, *(f"--config.{o}" for o in overrides)]
    name = output.stem
    reference.store_reference(
        Reference(name, shlex.join(words), reference.recipe_of(config), windows, curves), output
    )
    print(f"written to {output}")
    return 0
