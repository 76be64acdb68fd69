"""Compiles the GPU attention kernels, and a training step with them, for NVIDIA GPUs that are not here.

    pip install -r requirements/cuda.txt && pip install --no-deps -e .
    python benchmarks/gpu_compile.py

It shows that XLA's compiler takes the kernels, how far they fill a GPU's registers and shared memory, and how much
memory the training step of benchmarks/gpu.py needs. Nothing is run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gpu as benchmark
import harness
from training import make_batch, make_config
from transfusion_jax.kernels.attention.gpu import gpu_span_attention
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.step.state import RunContext
from transfusion_jax.training.step.step import train_step

ROWS = (4, 4096)  # rows and elements
HEADS = ((16, 16, 64), (16, 16, 128), (32, 8, 128))  # heads of queries, heads of keys, channels
DTYPES = ("bfloat16", "float32")
FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"  # for the step: tuning products needs a GPU


@dataclass(frozen=True)
class Gpu:
    """What XLA must know of a GPU, from NVIDIA's data sheets and its table of compute capabilities."""

    name: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    shared_bytes: int  # that one program can have
    cache_bytes: int
    memory_bytes: int
    bandwidth: int  # bytes per second

    def description(self) -> str:
        """As XLA's GpuTargetConfigProto, in text."""
        major, minor = self.capability
        return f"""
            platform_name: "CUDA" device_description_str: "{self.name}"
            runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}
            gpu_device_info {{
                cuda_compute_capability {{ major: {major} minor: {minor} }}
                core_count: {self.cores} fpus_per_core: 128 clock_rate_ghz: 1.5
                threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
                block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
                registers_per_core_limit: 65536 registers_per_block_limit: 65536
                shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_bytes}
                shared_memory_per_core: {self.shared_bytes + 1024}
                l2_cache_size: {self.cache_bytes} device_memory_size: {self.memory_bytes}
                memory_bandwidth: {self.bandwidth}
            }}"""


GPUS = (
    Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 163 << 10, 40 << 20, 80 << 30, 2_039 * 10**9),
    Gpu("NVIDIA L4", (8, 9), 58, 99 << 10, 48 << 20, 24 << 30, 300 * 10**9),
    Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 227 << 10, 50 << 20, 80 << 30, 3_350 * 10**9),
)


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel."""

    gpu: str
    heads: int
    keys: int  # heads of keys
    channels: int  # per head
    dtype: str
    name: str
    threads: int
    shared_bytes: int
    shared_limit: int
    registers: int  # per thread, of 255
    spilled_bytes: int  # per thread


@dataclass(frozen=True)
class Step:
    """The compiled training step of benchmarks/gpu.py."""

    gpu: str
    rows: int
    elements: int
    remat: str
    kernels: int  # of attention; each stands for all layers
    state_bytes: int  # and the batch
    temporary_bytes: int


def main() -> None:
    """Compiles and prints."""
    arguments = harness.parser(__doc__, timed=False).parse_args()
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it asks the driver, which comes with a GPU
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS} --xla_dump_to={folder}"
        kernels = [
            kernel
            for gpu in GPUS
            for heads in HEADS
            for dtype in DTYPES
            for kernel in compile_one(gpu, heads, dtype, Path(folder))
        ]
        steps = [compile_step(GPUS[-1], remat) for remat in ("none", "dots", "full")]
    result = {"kernels": [dataclasses.asdict(k) for k in kernels], "steps": [dataclasses.asdict(s) for s in steps]}
    text = "\n".join([*kernel_table(kernels), "", *step_table(steps), "", about()])
    harness.deliver({**result, "machine": harness.machine()}, text, arguments.json)


def compile_one(gpu: Gpu, heads: tuple[int, int, int], dtype: str, dump: Path) -> Iterator[Kernel]:
    """Attention and its gradients for one GPU."""
    mesh = Mesh(np.array(devices(gpu)), "chip", axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, P())
    q, k = (jax.ShapeDtypeStruct((*ROWS, n, heads[2]), dtype, sharding=whole) for n in heads[:2])
    span = jax.ShapeDtypeStruct(ROWS, jnp.int32, sharding=whole)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array, d_out: jax.Array) -> tuple:
        out, gradient = jax.vjp(lambda q, k, v: gpu_span_attention(q, k, v, start, end), q, k, v)
        return out, *gradient(d_out)

    for file in dump.iterdir():
        file.unlink()
    with jax.set_mesh(mesh):
        jax.jit(both).lower(q, k, k, span, span, q).compile()
    launches = "\n".join(file.read_text() for file in dump.glob("*thunk_sequence.txt"))
    for name in ("span_attention_forward", "span_attention_d_query", "span_attention_d_key"):
        pattern = rf" {name} grid: .* threads: \[(\d+), 1, 1\] +shared_memory: (\d+) bytes"
        launch = re.search(pattern, launches)
        [file] = (file for file in dump.glob("*.ptx") if f"entry {name}(" in file.read_text())
        assert launch, launches
        threads, shared = map(int, launch.groups())
        yield Kernel(gpu.name, *heads, dtype, name, threads, shared, gpu.shared_bytes, *assemble(file))


def assemble(file: Path) -> tuple[int, int]:
    """The registers and the spilled bytes that CUDA's assembler reports for a kernel."""
    target = re.search(r"^\.target (\w+)", file.read_text(), re.MULTILINE)
    assert target
    command = [assembler(), "-v", f"-arch={target[1]}", str(file), "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    numbers = re.search(r"(\d+) bytes spill stores.*Used (\d+) registers", said, re.DOTALL)
    assert numbers, said
    return int(numbers[2]), int(numbers[1])


def assembler() -> str:
    """The path of ptxas, from NVIDIA's package that JAX depends on."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = (nvidia.submodule_search_locations if nvidia else None) or []
    found = [path for folder in folders for path in Path(folder).glob("*/bin/ptxas")]
    if not found:
        raise SystemExit("no ptxas: pip install -r requirements/cuda.txt")
    return str(found[0])


def compile_step(gpu: Gpu, remat: str) -> Step:
    """The training step on one GPU."""
    setting = benchmark.full()
    config = make_config(dataclasses.replace(setting.model, remat=remat), *setting.step)
    task, mesh = TransfusionTask(config), make_mesh(config.mesh, devices(gpu))
    whole = batch_sharding(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), make_batch(config))
    step = jax.jit(lambda state, batch: train_step(task, config, state, batch), donate_argnums=0)
    with jax.set_mesh(mesh):
        lowered = step.lower(RunContext(task, config, mesh).abstract_state, batch)
    compiled = lowered.compile()
    memory, program = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert program is not None
    kernels = program.count('custom_call_target="__gpu$xla.gpu.triton"')
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Step(gpu.name, *setting.step, remat, kernels, *sizes)


def devices(gpu: Gpu) -> list[jax.Device]:
    """One GPU, to compile for."""
    return topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=gpu.description()).devices


def kernel_table(kernels: list[Kernel]) -> list[str]:
    """The kernels for reading."""
    lines = [["GPU", "heads", "channels", "dtype", "kernel", "threads", "shared memory", "registers", "spilled"]]
    for k in kernels:
        shared = f"{k.shared_bytes / 1024:.0f} of {k.shared_limit >> 10} KiB"
        cost = [str(k.threads), shared, str(k.registers), f"{k.spilled_bytes} bytes"]
        lines.append(
            [
                k.gpu,
                benchmark.named(k.heads, k.keys),
                str(k.channels),
                k.dtype,
                k.name.removeprefix("span_attention_"),
                *cost,
            ]
        )
    return harness.align(lines)


def step_table(steps: list[Step]) -> list[str]:
    """The steps for reading."""
    lines = [["GPU", "rows", "elements", "remat", "kernels", "state", "temporary"]]
    for s in steps:
        sizes = [f"{size / 2**30:.1f} GiB" for size in (s.state_bytes, s.temporary_bytes)]
        lines.append([s.gpu, str(s.rows), f"{s.elements:,}", s.remat, str(s.kernels), *sizes])
    return harness.align(lines)


def about() -> str:
    """The machine and the libraries."""
    return ", ".join(f"{name} {value}" for name, value in harness.machine().items())


if __name__ == "__main__":
    main()
