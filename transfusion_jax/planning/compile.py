"""Compiles a training step and an evaluation for TPUs that this machine does not have, in a process of its own.

What was compiled is kept in `planned` of the cache, by the program before the compiler, so that it answers at once
the next time.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transfusion_jax import config as configs
from transfusion_jax.config import Config
from transfusion_jax.data.batch import abstract_batch
from transfusion_jax.errors import UserError
from transfusion_jax.evaluation.suites import loss
from transfusion_jax.parallel.children import end_with, lifeline
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.planning import libtpu
from transfusion_jax.planning.hlo import parse_hlo
from transfusion_jax.planning.hlo_cost import Counts, count_program
from transfusion_jax.planning.roofline import Collective, Work
from transfusion_jax.planning.topology import Topology
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.cache_dirs import cache_folder
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.step.state import RunContext
from transfusion_jax.training.step.step import step_program

TOO_LARGE = re.compile(r"Ran out of memory[^\n]*")
RESULT = "result: "


class CompilerFailed(UserError):
    """The compiler refused the program for another reason than its size."""


@dataclass(frozen=True)
class Compiled:
    """A step for one chip."""

    seconds: float  # that lowering and compiling took, maybe in an earlier process
    arguments: int  # bytes: state and batch
    temporary: int  # bytes beside them
    code: int  # bytes
    counts: Counts
    too_large: str = ""  # what the compiler says where it does not fit; then there are no counts
    evaluation: int = 0  # bytes that an evaluation takes beside the state: its batch, too; 0 where the run has none

    @property
    def bytes(self) -> int:
        """Bytes of memory at the peak of a step or an evaluation."""
        return self.arguments + max(self.temporary, self.evaluation) + self.code


def compile_for(config: Config, topology: Topology) -> Compiled:
    """The step of a config whose mesh covers the topology's chips.

    Raises:
        NoCompiler: libtpu cannot be had.
        CompilerFailed: it refused the program.
    """
    job = {"config": configs.to_dict(config), "shape": topology.shape, "slices": topology.slices}
    job["chip"] = topology.chip.name
    with lifeline() as descriptor:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(descriptor)],
            input=json.dumps(job),
            env=libtpu.environment(),
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CompilerFailed(f"libtpu {libtpu.VERSION} could not compile the step for {topology.name}: {last}")
    return _from_json(json.loads(lines[-1].removeprefix(RESULT)))


def compile_job() -> None:
    """Reads a job, compiles, writes the result."""
    end_with(int(sys.argv[1]))
    job = json.load(sys.stdin)
    config, chip = configs.parse(job["config"]), job["chip"]
    name = f"{chip}:{'x'.join(map(str, job['shape']))}"
    options: dict[str, Any] = {"num_slices": job["slices"]} if job["slices"] > 1 else {}
    if job["shape"] == [1, 1]:
        options["chips_per_host_bounds"] = (1, 1, 1)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    print(RESULT + json.dumps(asdict(compile_step(config, devices))))


def compile_step(config: Config, devices: Any) -> Compiled:
    """The step for these devices, which need not be there. What was compiled before is read again."""
    task, mesh = make_task(config), make_mesh(config.mesh, devices)
    context = RunContext(task, config, mesh)
    sharding = batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract_batch(config)
    )
    flags = jax.ShapeDtypeStruct((mesh.size,), jnp.bool_, sharding=NamedSharding(mesh, P(mesh.axis_names)))
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        state = context.abstract_state
        found = _kept(step_program(context).lower(state, batch, flags), devices, begin)
        if config.loop.evaluate_every and not found["too_large"]:
            begin = time.perf_counter()
            evaluation = _kept(loss.lower(task, state.params, mesh), devices, begin)
            found["evaluation"] = evaluation["temporary"] + loss.batch_bytes(config)
            found["seconds"] += evaluation["seconds"]
            if evaluation["too_large"]:
                found |= {"too_large": f"in an evaluation: {evaluation['too_large']}", "text": ""}
    text = found.pop("text")
    return Compiled(**found, counts=count_program(parse_hlo(text), dict(mesh.shape)) if text else Counts())


def _kept(lowered: jax.stages.Lowered, devices: Any, begin: float) -> dict[str, Any]:
    """What `_compile` says of a program that was lowered from `begin` on, now or when it was compiled before."""
    kept = program_place(lowered.as_text(), devices)
    try:
        found: dict[str, Any] = json.loads(gzip.decompress(kept.read_bytes()))
    except (FileNotFoundError, EOFError, zlib.error, gzip.BadGzipFile, ValueError):  # not there, or damaged
        _keep(kept, _compile(lowered, begin))
        found = json.loads(gzip.decompress(kept.read_bytes()))
    return {"too_large": ""} | found


def program_place(program: str, devices: Sequence[Any]) -> Path:
    """Where a program is kept once it is compiled for these devices, whose names alone do not say of which chip."""
    flags = os.environ.get("LIBTPU_INIT_ARGS")
    about = f"{libtpu.VERSION} {flags} {devices[0].device_kind} {[str(device) for device in devices]} {program}"
    return cache_folder() / "planned" / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.json.gz"


def _compile(lowered: jax.stages.Lowered, begin: float) -> dict[str, Any]:
    """The fields of `Compiled`, and the program's text in place of its counts."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (found := TOO_LARGE.search(str(error))):
            raise
        sizes = dict(arguments=0, temporary=0, code=0, too_large=found.group())
        return {**sizes, "seconds": time.perf_counter() - begin, "text": ""}
    memory: Any = program.memory_analysis()
    return {
        "seconds": time.perf_counter() - begin,
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "text": program.as_text(),
    }


def _keep(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, gzip.compress(json.dumps(values).encode()))


def _from_json(values: dict[str, Any]) -> Compiled:
    counts = values.pop("counts")
    return Compiled(
        **values,
        counts=Counts(
            [Work(**w) for w in counts["work"]],
            [Collective(**{**c, "axes": tuple(c["axes"])}) for c in counts["collectives"]],
            counts["kernels"],
            counts["open_loops"],
        ),
    )


if __name__ == "__main__":
    compile_job()
