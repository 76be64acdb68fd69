"""`transfusion plan`: what a run takes on a machine, before the machine is booked. It needs no accelerator.

For TPUs the real training step is compiled by libtpu, which is installed in a folder of its own the first time; for
GPUs, and with --analytic, a model of formulas answers.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax

from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError, MeshConfig, require
from transfusion_jax.planning import report
from transfusion_jax.planning import topology as topologies
from transfusion_jax.planning.contents import expected
from transfusion_jax.planning.plan import make_plan
from transfusion_jax.planning.search import choose_mesh, search


def add_parser(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "plan",
        help="bytes, operations, traffic and time of a run on a machine that is not there",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE[:arg]", required=True, help="a config file")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:16x16, v5p:4x4x4, 2xv5e:16x16 (slices), v5p-128 (a booking), h100:8x4 (GPUs per node × nodes)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--analytic", action="store_true", help="formulas alone, for TPUs too: seconds, not minutes"
    )
    parser.add_argument(
        "--search", action="store_true", help="rank meshes, parts of a batch and policies of rematerialisation"
    )
    parser.add_argument(
        "--best", type=int, default=2, metavar="N", help="of --search: plan the best N (default: %(default)s)"
    )
    parser.add_argument(
        "--host-rate", type=float, default=0.5, metavar="GB/S", help="what one host writes (default: %(default)s)"
    )
    parser.set_defaults(run=run, takes_overrides=True)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plans, prints, and returns the exit code: 2 where nothing fits."""
    jax.config.update("jax_platforms", "cpu")  # no accelerator is to be taken for this
    topology = topologies.parse(arguments.topology)
    require(arguments.host_rate > 0, "--host-rate must be above 0")
    require(arguments.best > 0, "--best must be above 0")
    config = configs.load(arguments.config, overrides)
    contents, rate = expected(config), arguments.host_rate * 1e9
    if arguments.search:
        found = search(config, topology, contents, arguments.best, arguments.analytic, rate)
        print(json.dumps(found.to_dict(), indent=2) if arguments.json else report.ranking(found))
        return 0 if found.ranked else ConfigError.exit_code
    if config.mesh == MeshConfig():
        config = choose_mesh(config, topology, contents)
    plan = make_plan(config, topology, contents, arguments.analytic, rate)
    print(json.dumps(plan.to_dict(), indent=2) if arguments.json else report.table(plan))
    return 0 if plan.fits else ConfigError.exit_code
