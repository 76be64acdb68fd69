"""Compiles the TPU attention kernel, forward and backward, for TPUs that this machine does not have.

    pip install -r requirements/tpu.txt && pip install --no-deps -e .
    python benchmarks/tpu_compile.py

It shows that the kernel fits a TPU's memories and that its compiler takes it, and the flags that runs on TPU have.
Nothing is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import harness
from transfusion_jax.kernels.attention.tpu import Blocks, tpu_span_attention
from transfusion_jax.parallel import flags

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
SHAPES = (  # rows, elements, heads of queries, heads of keys, channels
    (4, 4096, 12, 12, 64),
    (4, 4096, 24, 24, 64),
    (4, 4096, 16, 16, 128),
    (4, 4096, 32, 32, 128),
    (4, 4096, 32, 8, 128),
    (1, 32768, 12, 12, 64),
    (1, 32768, 32, 32, 128),
)
PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Program:
    """One compiled program: attention and its gradients for q, k and v, in bfloat16, on one chip."""

    topology: str
    rows: int
    elements: int
    heads: int
    keys: int  # heads of keys
    channels: int
    seconds: float  # of lowering and compiling
    temporary_bytes: int  # of HBM, beside arguments and results
    bundles: dict[str, list[int]]  # instructions of one step of each pass, without and with a mask, if asked for


def main() -> None:
    """Compiles and prints."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("--blocks", type=int, nargs=2, metavar=("QUERIES", "KEYS"), help="(default: the kernel's)")
    parser.add_argument("--bundles", action="store_true", help="count the instructions of a step, too")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}  # no machine is to be asked
    with tempfile.TemporaryDirectory() as folder:
        if arguments.bundles:
            os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        flags.apply("tpu")
        programs = list(compile_all(arguments, Path(folder)))
    result = {"programs": [dataclasses.asdict(p) for p in programs], "machine": harness.machine()}
    harness.deliver(result, table(programs), arguments.json)


def compile_all(arguments: argparse.Namespace, dump: Path) -> Iterator[Program]:
    """Each shape for each topology."""
    blocks = Blocks(*arguments.blocks) if arguments.blocks else Blocks()
    for topology in TOPOLOGIES:
        device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
        mesh = Mesh(np.array([device]), "chip", axis_types=(AxisType.Auto,))
        for shape in SHAPES:
            yield compile_one(topology, mesh, shape, blocks, dump)


def compile_one(
    topology: str, mesh: Mesh, shape: tuple[int, int, int, int, int], blocks: Blocks, dump: Path
) -> Program:
    """Attention and its gradients."""
    whole = NamedSharding(mesh, P())
    *rows, heads, keys, channels = shape
    q, k = (jax.ShapeDtypeStruct((*rows, n, channels), jnp.bfloat16, sharding=whole) for n in (heads, keys))
    span = jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=whole)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, d_out: jax.Array) -> tuple:
        out, gradient = jax.vjp(lambda q, k, v: tpu_span_attention(q, k, v, start, end, blocks), q, k, v)
        return out, *gradient(d_out)

    for file in dump.iterdir():
        file.unlink()
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = jax.jit(both).lower(q, k, k, span, span, q).compile()
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    assert memory is not None
    files = {name: list(dump.glob(f"*{name}*-final_bundles.txt")) for name in PASSES}
    bundles = {name: step_bundles(found[0]) for name, found in files.items() if found}
    return Program(topology, *shape, seconds, memory.temp_size_in_bytes, bundles)


def step_bundles(file: Path) -> list[int]:
    """The lengths of the two longest stretches without a branch: a step's work, without and with a mask."""
    length, lengths = 0, []
    for line in file.read_text().splitlines():
        length += bool(re.match(r"\s*0x[0-9a-f]+ ", line))
        if "sbr.rel" in line:
            lengths.append(length)
            length = 0
    return sorted(lengths)[-2:]


def table(programs: list[Program]) -> str:
    """The programs for reading."""
    passes = [name for name in PASSES if name in programs[0].bundles]
    head = ["topology", "rows", "elements", "heads", "channels", "compiled", "temporary"]
    lines = [[*head, *(f"bundles {name}" for name in passes)]]
    for p in programs:
        heads = str(p.heads) if p.heads == p.keys else f"{p.heads} to {p.keys}"
        shape = [str(p.rows), f"{p.elements:,}", heads, str(p.channels)]
        cost = [f"{p.seconds:.1f} s", f"{p.temporary_bytes / 2**20:,.0f} MiB"]
        lines.append([p.topology, *shape, *cost, *(" to ".join(map(str, p.bundles[name])) for name in passes)])
    about = ", ".join(f"{name} {value}" for name, value in harness.machine().items())
    return "\n".join([*harness.align(lines), about])


if __name__ == "__main__":
    main()
