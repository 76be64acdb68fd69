"""`transfusion train`: trains or resumes in a workdir."""

from __future__ import annotations

import argparse

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_accept_changes, add_training


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_training(parser, dry_run="dry_run:run")
    starts = parser.add_argument_group(
        "how to begin", "By default a new workdir begins from nothing, and one with a run in it resumes."
    )
    one = starts.add_mutually_exclusive_group()
    run_or_path = "RUN[:STEP]|PATH"
    one.add_argument(
        "--init-from", metavar=run_or_path, help="a new run with the weights of another, and they alone"
    )
    one.add_argument("--fork-from", metavar=run_or_path, help="a new run with the whole state of another")
    one.add_argument("--rewind-to", metavar="STEP", type=between(0), help="go back to a checkpoint of this run")
    starts.add_argument(
        "--weights", choices=("ema", "raw"), help="of --init-from (default: ema where there are any)"
    )
    starts.add_argument(
        "--init-map",
        metavar="PATTERN=ACTION",
        action="append",
        help="of --init-from: for parameters whose shapes differ: grow, fresh (reinitialise), text (copy those of "
        "text) or drop",
    )
    starts.add_argument("--skip-rows", metavar="A:B", help="of --rewind-to: leave rows A to B-1 of the stream out")
    add_accept_changes(starts)
    parser.set_defaults(run="train:run", takes_overrides=True)
