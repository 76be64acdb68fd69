"""`transfusion scale`: scaling curves from the points of a ladder of runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_json
from transfusion_jax.scaling.options import ALL, BASELINE, FLOPS, FRONTIER, IN_WORKDIR, PAPER, Options
from transfusion_jax.storage.paths import place

MANY = between(1, 10_000)  # processes
PLOTS = "plots"  # in a workdir
RUN = """Trains a ladder's models, each in a workdir of its own, and gathers their numbers.

The same command goes on after whatever ended it: runs whose scores are there are passed over, others resume.
"""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares what the command can do."""
    parts = parser.add_subparsers(metavar="WHAT", required=True)
    for name, (declare_part, run, text, description) in PARTS.items():
        part = parts.add_parser(name, help=text, description=description or text)
        declare_part(part)
        part.set_defaults(run=run, takes_overrides=name == "reference")


def _table(parser: argparse.ArgumentParser) -> None:
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
    add_json(parser)


def _fit(parser: argparse.ArgumentParser) -> None:
    defaults = Options()
    _table(parser)
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
        "--bootstrap",
        type=between(0, 1_000_000),
        default=defaults.bootstrap,
        metavar="N",
        help="draws (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=between(0), default=defaults.seed, help="of the draws (default: %(default)s)"
    )


def _plot(parser: argparse.ArgumentParser) -> None:
    _fit(parser)
    parser.add_argument(
        "--output", type=place, metavar="DIR", help=f"where to write (default: {PLOTS} in the workdir)"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ladder", type=Path, required=True, metavar="FILE", help="such as configs/ladders/cpu.py")
    parser.add_argument("--workdir", type=place, help="where the runs and their numbers are kept")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="of what they print (default: the workdir)")
    parser.add_argument(
        "--jobs", type=MANY, default=1, metavar="N", help="runs at a time on this machine (default: 1)"
    )
    parser.add_argument(
        "--launch", metavar="WORDS", help="a launcher's job for each run, as --launch 'slurm --nodes 4'"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what every run takes, and stop")
    parser.add_argument("--topology", metavar="NAME", help="of --dry-run: the machine (default: the ladder's)")
    parser.add_argument("--json", action="store_true", help="of --dry-run: print one JSON object")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", dest="workdir", type=place, required=True, metavar="DIR", help="a run, done or under way"
    )
    parser.add_argument(
        "--reference", required=True, metavar="NAME", help="debug, digits, … or a file that `scale reference` made"
    )
    add_json(parser)


def _reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE[:arg]", help="the recipe")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--workdir", type=place, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=between(3, 1000), default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="train and compare no further (default: to the end)"
    )
    parser.add_argument("--jobs", type=MANY, default=1, metavar="N", help="runs at a time (default: 1)")


PARTS: dict[str, tuple[Callable, str, str, str]] = {  # by name: options, function, help, and what --help says
    "table": (_table, "scale.study:print_table", "every family's scores at every size, seeds averaged", ""),
    "fit": (_fit, "scale.study:fit", "lines through a ladder's points, and parity FLOP ratios with intervals", ""),
    "plot": (_plot, "scale.study:plot", "the same as figures, one page with everything, and LaTeX tables", ""),
    "run": (_run, "scale.run:run", "train a ladder's models", RUN),
    "compare": (
        _compare,
        "scale.compare:run_compare",
        "hold a run's losses to those of runs that are known to be right",
        "",
    ),
    "reference": (
        _reference,
        "scale.compare:make_reference",
        "train runs that are right, and keep their losses for `scale compare`",
        "",
    ),
}
