"""What the formulas of `transfusion plan` say of a training step on this machine, beside what it measures.

    python benchmarks/planned.py

On a CPU the formulas know its peak alone, which is measured: time is that of all operations at the peak.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import jax

import harness
from training import make_batch, make_config, of_size, with_remat
from transfusion_jax.parallel.devices import peak_flops
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.planning.plan_vs_actual import Beside, beside_plan
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.loop import Pace
from transfusion_jax.training.step.state import RunContext, create_state
from transfusion_jax.training.step.step import make_step

SHAPES = (  # width, layers, rows, elements of a row, remat
    (256, 6, 2, 2304, "none"),
    (512, 8, 2, 768, "none"),
    (512, 8, 2, 768, "full"),
    (768, 4, 1, 1536, "none"),
)


def main() -> None:
    """Measures and prints."""
    parser = harness.parser(__doc__)
    arguments = parser.parse_args()
    found = {shape: measure(*shape, arguments.rounds) for shape in SHAPES}
    result = {"shapes": [dict(shape=shape, **dataclasses.asdict(beside)) for shape, beside in found.items()]}
    harness.deliver(result, table(found), arguments.json)


def measure(width: int, layers: int, rows: int, context: int, remat: str, rounds: int) -> Beside:
    """One shape; the peak is taken beside it, for other processes change it."""
    config = with_remat(make_config(of_size(width, layers), rows, context), remat)
    task, mesh = TransfusionTask(config), make_mesh(config.mesh, jax.devices()[:1])
    run = RunContext(task, config, mesh)
    step, batch = make_step(run), jax.device_put(make_batch(config), batch_sharding(mesh))
    state, report = step(create_state(run), batch)
    times = []
    for _ in range(1 + rounds):
        jax.block_until_ready((state, report))
        begin = time.perf_counter()
        state, report = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - begin)
    seconds, peak = statistics.median(times[1:]), peak_flops(jax.devices()[0])[0]
    record = {name: float(value) for name, value in report.values.items()}
    record["mfu"] = task.flops(record) / seconds / peak
    return beside_plan(run, Pace(peak, record, seconds, step.bytes_used(state, batch)))


def table(found: dict[tuple, Beside]) -> str:
    """For reading."""
    head = [
        "",
        "MiB planned",
        "measured",
        "error",
        "seconds at least",
        "measured",
        "times",
        "MFU at most",
        "measured",
    ]
    rows = [head]
    for (width, layers, count, context, remat), b in found.items():
        name = f"width {width}, {layers} layers, {count} rows of {context}, remat {remat}"
        memory = [f"{size / 2**20:,.0f}" for size in b.bytes] + [f"{b.bytes[0] / b.bytes[1] - 1:+.0%}"]
        times = [f"{s:.3f}" for s in b.seconds] + [f"{b.seconds[1] / b.seconds[0]:.2f}x"]
        rows.append([name, *memory, *times, *(f"{share:.0%}" for share in b.mfu)])
    about = ", ".join(f"{name} {value}" for name, value in harness.machine().items())
    return "\n".join([*harness.align(rows), about])


if __name__ == "__main__":
    main()
