"""`transfusion scale`: scaling curves from the points of a ladder of runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from transfusion_jax.commands.flags.scale import PLOTS
from transfusion_jax.config import ConfigError, require
from transfusion_jax.scaling import tables
from transfusion_jax.scaling.options import IN_WORKDIR, PAPER, Options
from transfusion_jax.scaling.points import read_points
from transfusion_jax.scaling.study import Study, chosen, study, study_to_dict
from transfusion_jax.storage.outputs import check_output_folder
from transfusion_jax.storage.paths import Place, place

NEEDED = "transfusion scale plot needs matplotlib: pip install 'transfusion-jax[plot]'"


def print_table(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the scores; returns the exit code."""
    del overrides
    points = read_points(_source(arguments))
    metrics = chosen(points, tuple(arguments.metric or ()))
    require(bool(metrics), "no metric here is known: name one with its direction, as in --metric NAME:lower")
    found = tables.scores(points, metrics)
    whole = {"head": found.head, "rows": found.rows}
    print(json.dumps(whole) if arguments.json else "\n".join(tables.align(found)))
    return 0


def fit(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Fits and prints; returns the exit code."""
    del overrides
    found, _ = _study(arguments)
    print(json.dumps(study_to_dict(found)) if arguments.json else tables.study_text(found))
    return 0


def plot(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Fits, prints and draws; returns the exit code."""
    del overrides
    require(bool(arguments.workdir or arguments.output), "scale plot --points needs --output DIR")
    try:
        from transfusion_jax.scaling.report import write_report
    except ModuleNotFoundError as error:
        raise ConfigError(f"{NEEDED} ({error.name} is missing)") from error
    output = arguments.output or arguments.workdir / PLOTS
    check_output_folder(output)
    found, folder = _study(arguments)
    written = write_report(found, folder, output)
    if arguments.json:
        print(json.dumps({**study_to_dict(found), "written": [str(path) for path in written]}))
    else:
        print(tables.study_text(found))
        print("\n".join(f"written to {path}" for path in written))
    return 0


def _source(arguments: argparse.Namespace) -> str:
    return arguments.points or str(arguments.workdir / IN_WORKDIR)


def _study(arguments: argparse.Namespace) -> tuple[Study, Place]:
    """The fits, and the folder that paths of samples are seen from."""
    source = _source(arguments)
    options = Options(
        metrics=tuple(arguments.metric or ()),
        reference=arguments.reference,
        flops=arguments.flops,
        fit_on=arguments.fit_on,
        bootstrap=arguments.bootstrap,
        seed=arguments.seed,
    )
    folder = Path() if source == PAPER else place(source).parent
    return study(read_points(source), options, source), folder
