"""What checkpoints cost: how long a save holds the loop up, how long it writes, and loading's time and memory.

    python benchmarks/checkpoint.py

The stall is to be no more than 100 ms and one copy of the state off the devices, which is measured beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import harness
from training import config_of, make_batch, our_step, shape_flags, title_of
from transfusion_jax.config import Config
from transfusion_jax.parallel.children import end_with_parent
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.checkpoint.checksums import checksums
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.step.state import RunContext, State, create_state

ALLOWED = 0.1  # seconds, beside the copy


@dataclass(frozen=True)
class Result:
    """Medians of seconds, and bytes."""

    title: str
    rounds: int
    state_bytes: int
    copy: float  # of the state off its devices, into new memory
    checksums: float  # part of the stall
    stall: float  # that the loop waits for a save
    write: float  # from there until the checkpoint lies on disk
    step: float
    load: float  # checksums held against the manifest
    load_bytes: int  # of this host's memory at most, the state itself included
    share: float  # of the run's time that saves take, at the default interval
    machine: dict[str, object]


def main() -> None:
    """Measures and prints."""
    parser = harness.parser(__doc__)
    shape_flags(parser)
    arguments = parser.parse_args()
    result = measure(config_of(arguments), arguments)
    harness.deliver(dataclasses.asdict(result), table(result), arguments.json)


def measure(config: Config, arguments: argparse.Namespace) -> Result:
    """Saves and loads the state of a run on one device."""
    state = new_state(config)
    leaves = jax.tree.leaves(state)
    step, _ = our_step(config, make_batch(config))
    checksums(state)  # compiles it
    times: dict[str, list[float]] = {name: [] for name in ("copy", "checksums", "stall", "write", "step", "load")}
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder), keep=1) as checkpoints:
        for number in range(arguments.rounds + 1):  # the first one warms up
            state = dataclasses.replace(state, step=jax.numpy.int32(number))
            jax.block_until_ready(state)
            taken = {
                "step": timed(step),
                "copy": timed(lambda: [np.array(leaf) for leaf in leaves]),
                "checksums": timed(checksums, state),
                "stall": timed(checkpoints.save, state, 0),
                "write": timed(checkpoints.wait),
            }
            for name, seconds in taken.items():
                times[name] += [seconds] if number else []
        context = multiprocessing.get_context("spawn")
        for _ in range(min(arguments.rounds, 3)):
            with context.Pool(1, end_with_parent) as pool:
                seconds, memory = pool.apply(load, (config, folder))
            times["load"].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    interval = config.loop.save_every * medians["step"]
    return Result(
        title=title_of(config).replace("train step", "checkpoint"),
        rounds=arguments.rounds,
        state_bytes=sum(leaf.nbytes for leaf in leaves),
        load_bytes=memory,
        share=medians["stall"] / (interval + medians["stall"]),
        machine=harness.machine(),
        **medians,
    )


def new_state(config: Config) -> State:
    """The state before the first step, on one device."""
    return create_state(RunContext(TransfusionTask(config), config, make_mesh(config.mesh, jax.devices()[:1])))


def load(config: Config, folder: str) -> tuple[float, int]:
    """Seconds of loading the newest checkpoint, and the bytes that the process grew by meanwhile, at most."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    abstract = RunContext(TransfusionTask(config), config, mesh).abstract_state
    checkpoints = Checkpoints(Path(folder))
    before = most_memory()
    seconds = timed(lambda: jax.block_until_ready(checkpoints.restore(checkpoints.steps[-1], abstract)[0]))
    return seconds, most_memory() - before


def most_memory() -> int:
    """The bytes that this process has held at most; `getrusage` would count those of its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def table(result: Result) -> str:
    """The result for reading."""
    size, over = result.state_bytes / 2**20, result.stall - result.copy
    verdict = "within" if over <= ALLOWED else "beyond"
    lines = [
        ["state", f"{size:,.0f} MiB", ""],
        ["copy off the device", f"{result.copy:.3f} s", ""],
        ["checksums", f"{result.checksums:.3f} s", ""],
        ["stall of the loop", f"{result.stall:.3f} s", f"{over:+.3f} s beside the copy, {verdict} {ALLOWED} s"],
        [
            "written in the background",
            f"{result.write:.3f} s",
            f"{size / result.write:,.0f} MiB/s",
        ],
        ["share of a run's time", f"{result.share:.2%}", f"a step takes {result.step:.2f} s"],
        [
            "load, verified",
            f"{result.load:.3f} s",
            f"{result.load_bytes / 2**20:,.0f} MiB more memory",
        ],
    ]
    about = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    return "\n".join([f"{result.title} ({result.rounds} rounds)", *harness.align(lines), about])


if __name__ == "__main__":
    main()
