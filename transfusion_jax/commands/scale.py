"""`transfusion scale`: scaling curves from the points of a ladder of runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfusion_jax.commands import scale_compare, scale_run
from transfusion_jax.config import ConfigError, require
from transfusion_jax.scaling import tables
from transfusion_jax.scaling.points import ALL, FLOPS, FRONTIER, IN_WORKDIR, PAPER, read
from transfusion_jax.scaling.study import BASELINE, Options, Study, chosen, study, to_dict
from transfusion_jax.storage import Place, place

NEEDED = "transfusion scale plot needs matplotlib: pip install 'transfusion-jax[plot]'"
PLOTS = "plots"  # in a workdir


def add_parser(commands: Any) -> None:
    """Declares the command and its parts."""
    parser = commands.add_parser("scale", help="scaling curves and what they say", description=__doc__)
    parts = parser.add_subparsers(metavar="WHAT", required=True)
    for name, (declare, run, text) in PARTS.items():
        part = parts.add_parser(name, help=text, description=text)
        declare(part)
        part.set_defaults(run=run, takes_overrides=False)
    scale_run.add_parser(parts)
    scale_compare.add_parsers(parts)


def _declare_table(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=place, metavar="DIR", help=f"a ladder's folder, with its {IN_WORKDIR}")
    source.add_argument("--points", metavar="FILE", help=f"points as .jsonl or .csv; {PAPER}: those of its tables")
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME",
        help="a metric (default: all that are known); NAME:lower or NAME:higher says which way is better of one "
        "that is not, and NAME:higher:4 from which score on it counts",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _table(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    points = read(_source(arguments))
    metrics = chosen(points, tuple(arguments.metric or ()))
    require(bool(metrics), "no metric here is known: name one with its direction, as in --metric NAME:lower")
    found = tables.scores(points, metrics)
    whole = {"head": found.head, "rows": found.rows}
    print(json.dumps(whole) if arguments.json else "\n".join(tables.align(found)))
    return 0


def _declare_fit(parser: argparse.ArgumentParser) -> None:
    defaults = Options()
    _declare_table(parser)
    parser.add_argument(
        "--reference", metavar="FAMILY", help=f"whose largest run is to be matched (default: {BASELINE}, if there)"
    )
    parser.add_argument(
        "--flops",
        choices=list(FLOPS),
        help="how to count: exact, or the paper's 6nd, which leaves patch coders out (default: exact; 6nd where no "
        "point has exact ones)",
    )
    parser.add_argument(
        "--fit-on",
        choices=(FRONTIER, ALL),
        default=defaults.fit_on,
        help="points that no other of the family beats with as few FLOPs, or all (default: %(default)s)",
    )
    parser.add_argument(
        "--bootstrap", type=int, default=defaults.bootstrap, metavar="N", help="draws (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the draws (default: %(default)s)")


def _fit(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    found, _ = _study(arguments)
    print(json.dumps(to_dict(found)) if arguments.json else tables.text(found))
    return 0


def _declare_plot(parser: argparse.ArgumentParser) -> None:
    _declare_fit(parser)
    parser.add_argument(
        "--output", type=place, metavar="DIR", help=f"where to write (default: {PLOTS} in the workdir)"
    )


def _plot(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    require(bool(arguments.workdir or arguments.output), "scale plot --points needs --output DIR")
    try:
        from transfusion_jax.scaling.report import write
    except ModuleNotFoundError as error:
        raise ConfigError(f"{NEEDED} ({error.name} is missing)") from error
    found, folder = _study(arguments)
    output = arguments.output or arguments.workdir / PLOTS
    written = write(found, folder, output)
    if arguments.json:
        print(json.dumps({**to_dict(found), "written": [str(path) for path in written]}))
    else:
        print(tables.text(found))
        print("\n".join(f"written to {path}" for path in written))
    return 0


PARTS: dict[str, tuple[Callable, Callable, str]] = {
    "table": (_declare_table, _table, "every family's scores at every size, seeds averaged"),
    "fit": (_declare_fit, _fit, "lines through a ladder's points, and parity FLOP ratios with intervals"),
    "plot": (_declare_plot, _plot, "the same as figures, one page with everything, and LaTeX tables"),
}


def _source(arguments: argparse.Namespace) -> str:
    return arguments.points or str(arguments.workdir / IN_WORKDIR)


def _study(arguments: argparse.Namespace) -> tuple[Study, Place]:
    """The fits, and the folder that paths of samples are seen from."""
    require(arguments.bootstrap >= 0, f"--bootstrap must not be negative, not {arguments.bootstrap}")
    require(arguments.seed >= 0, f"--seed must not be negative, not {arguments.seed}")
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
    return study(read(source), options, source), folder
