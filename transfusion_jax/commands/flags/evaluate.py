"""`transfusion evaluate`: runs suites on a checkpoint, prints their numbers, adds them to evaluation.json."""

from __future__ import annotations

import argparse

from transfusion_jax.commands.flags.shared import add_extend, add_weights, table
from transfusion_jax.config import SUITES
from transfusion_jax.evaluation.protocols import PROTOCOLS


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.epilog, parser.formatter_class = f"suites:\n{table(SUITES)}", argparse.RawDescriptionHelpFormatter
    add_weights(parser)
    parser.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help="see below; may be given again (default: the config's)",
    )
    add_extend(parser)
    parser.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), help="draw as a section of the paper does; of suites that draw"
    )
    parser.add_argument(
        "--follow", action="store_true", help="evaluate every checkpoint of a run that trains, until its last step"
    )
    parser.add_argument("--again", action="store_true", help="measure again what evaluation.json already holds")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each checkpoint instead")
    parser.set_defaults(run="evaluate:run", takes_overrides=False)
