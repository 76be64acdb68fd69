"""`transfusion plan`: memory, step time and cost of a run on a given topology, without the hardware.

For TPUs the real training step is compiled by libtpu, which is installed in a folder of its own the first time; for
GPUs, and with --analytic, a model of formulas answers.
"""

from __future__ import annotations

import argparse

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_json


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", metavar="FILE[:arg]", required=True, help="a config file")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:16x16, v5p:4x4x4, 2xv5e:16x16 (slices), v5p-128 (a booking), h100:8x4 (GPUs per node × nodes)",
    )
    add_json(parser)
    parser.add_argument(
        "--analytic", action="store_true", help="formulas alone, for TPUs too: seconds, not minutes"
    )
    parser.add_argument(
        "--search", action="store_true", help="rank meshes, parts of a batch and policies of rematerialisation"
    )
    parser.add_argument(
        "--best",
        type=between(1),
        default=2,
        metavar="N",
        help="of --search: plan the best N (default: %(default)s)",
    )
    parser.add_argument(
        "--host-rate", type=float, default=0.5, metavar="GB/S", help="what one host writes (default: %(default)s)"
    )
    parser.set_defaults(run="plan:run", takes_overrides=True)
