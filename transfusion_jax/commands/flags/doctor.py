"""`transfusion doctor`: what prepared data holds, how a run is, what is wrong, or what a row is made of."""

from __future__ import annotations

import argparse

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_json
from transfusion_jax.storage.paths import place


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("place", nargs="?", type=place, help="a folder that prepare wrote, or a run's workdir")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every file and compare hashes; of data also this machine's cached row plans",
    )
    parser.add_argument("--workdir", type=place, help="a run's directory, too")
    parser.add_argument("--row", type=between(0), help="a row of the run's stream: its documents and a picture")
    parser.add_argument("--output", type=place, help="PNG for the pictures (default: doctor.png, or row-N.png)")
    add_json(parser)
    parser.set_defaults(run="doctor:run", takes_overrides=False)
