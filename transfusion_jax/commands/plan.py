"""`transfusion plan`: what a run takes on a machine, before the machine is booked. It needs no accelerator.

For TPUs the real training step is compiled by libtpu, which is installed in a folder of its own the first time; for
GPUs, and with --analytic, a model of formulas answers.
"""

from __future__ import annotations

import argparse
import json

import jax

from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError, MeshConfig, require
from transfusion_jax.planning import report
from transfusion_jax.planning import topology as topologies
from transfusion_jax.planning.expected_batch import expected
from transfusion_jax.planning.plan import make_plan
from transfusion_jax.planning.search import choose_mesh, search


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plans, prints, and returns the exit code: 2 where nothing fits."""
    jax.config.update("jax_platforms", "cpu")  # no accelerator is to be taken for this
    topology = topologies.parse_topology(arguments.topology)
    require(arguments.host_rate > 0, "--host-rate must be above 0")
    config = configs.load(arguments.config, overrides)
    contents, rate = expected(config), arguments.host_rate * 1e9
    if arguments.search:
        found = search(config, topology, contents, arguments.best, arguments.analytic, rate)
        print(json.dumps(found.to_dict(), indent=2) if arguments.json else report.ranking(found))
        return 0 if found.ranked else ConfigError.exit_code
    if config.mesh == MeshConfig():
        config = choose_mesh(config, topology, contents)
    plan = make_plan(config, topology, contents, arguments.analytic, rate)
    print(json.dumps(plan.to_dict(), indent=2) if arguments.json else report.plan_table(plan))
    return 0 if plan.fits else ConfigError.exit_code
