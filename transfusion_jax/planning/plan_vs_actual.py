"""What formulas said of a run beside what it measures: bytes, time of a step, MFU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from transfusion_jax.config import as_model
from transfusion_jax.kernels.platform import compute_dtype
from transfusion_jax.planning import roofline
from transfusion_jax.planning.estimate import Contents, estimate
from transfusion_jax.planning.memory import state_shapes, state_sizes
from transfusion_jax.planning.topology import CHIPS, Chip, Topology
from transfusion_jax.training.loop import Pace
from transfusion_jax.training.step.state import RunContext

SMALL = 2**28  # bytes per device; of smaller steps buffers and calls are the most


@dataclass(frozen=True)
class Beside:
    """Planned and measured."""

    bytes: tuple[float, float]  # per device, at a step's peak
    seconds: tuple[float, float]  # of a step; planned, at the least
    mfu: tuple[float, float]  # planned, at most

    def lines(self) -> list[str]:
        """For the log; nothing of a step so small that most of it is what formulas leave out."""
        b, s, m = self.bytes, self.seconds, self.mfu
        if b[0] < SMALL:
            return []
        error = f"{b[0] / b[1] - 1:+.0%}" if b[1] else "not measured"
        return [
            f"plan   per device {b[0] / 2**20:,.0f} MiB by formulas, {b[1] / 2**20:,.0f} measured ({error})",
            f"plan   step at least {s[0]:.4g} s, {s[1]:.4g} measured ({s[1] / s[0]:.2f}x); "
            f"MFU at most {m[0]:.1%}, {m[1]:.1%} measured",
        ]


def beside_plan(context: RunContext, pace: Pace) -> Beside:
    """Formulas for the rows that a step had, beside its measurements.

    Args:
        context: the run.
        pace: its steps, measured; the record has counts of a step's rows, and `mfu`.
    """
    task, config, mesh, record = context.task, as_model(context.config), context.mesh, pace.record
    topology = machine(mesh, pace.peak)
    rows = config.batch_rows
    area = record["span_area"] / rows
    elements, text_losses, images = (record[name] / rows for name in ("elements", "text_losses", "images"))
    sizes = (record[name] / rows if name in record else None for name in ("patches", "patch_pairs"))
    contents = Contents(elements, text_losses, images, area, area, *sizes)
    axes = {str(axis): n for axis, n in mesh.shape.items()}
    with jax.set_mesh(mesh):
        item = compute_dtype(config.model).itemsize
    step = estimate(config, contents, axes, topology.chip.is_tpu, item)
    held = sum(state_sizes(task, state_shapes(task, config), config, mesh).by_kind.values())
    least = roofline.terms(step.work, step.collectives, topology, axes).step
    work = task.flops(dict(record))
    return Beside(
        bytes=(held + step.temporary, pace.bytes_used),
        seconds=(least, pace.seconds),
        mfu=(work / least / (topology.chip.peak * topology.chips), record["mfu"]),
    )


def machine(mesh: Mesh, peak: float) -> Topology:
    """The devices of a mesh as a topology.

    Of those that the table does not have, CPUs among them, the peak alone is known: the rest takes no time. Several
    devices on one CPU share it.
    """
    devices = list(mesh.devices.flat)
    known = {chip.device_kind: chip for chip in CHIPS.values()}.get(devices[0].device_kind)
    hosts = len({device.process_index for device in devices})
    if known is not None and known.is_tpu:
        slices = len({getattr(device, "slice_index", 0) for device in devices})
        extents = tuple(len({device.coords[i] for device in devices}) for i in range(3))
        return Topology(known, extents if known.wraps == 4 else extents[:2], slices)
    if known is not None:
        return Topology(known, (len(devices) // hosts, hosts))
    share = peak / (len(devices) // hosts) if devices[0].platform == "cpu" else peak
    endless = math.inf
    kind = devices[0].device_kind
    chip = Chip(kind, kind, share, endless, endless, endless, endless, len(devices) // hosts)
    return Topology(chip, (len(devices) // hosts, hosts))
