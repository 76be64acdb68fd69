"""A plan: what a run takes on a machine, compiled for it or by formulas."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

from transfusion_jax.config import Config, MeshConfig, require
from transfusion_jax.flops import six_nd
from transfusion_jax.parallel.mesh import AXES, check_batch
from transfusion_jax.planning import libtpu, roofline
from transfusion_jax.planning.compile import compile_for
from transfusion_jax.planning.estimate import Contents, estimate
from transfusion_jax.planning.flops_breakdown import Operations, by_formula, kernel_flops
from transfusion_jax.planning.memory import Sizes, abstract_mesh, state_shapes, state_sizes
from transfusion_jax.planning.roofline import Collective, Terms, Work
from transfusion_jax.planning.topology import Topology
from transfusion_jax.tasks.base import make_task

TEMPORARY = "gradients and temporaries"
CODE = "program"
HOST_RATE = 0.5e9  # bytes/s that one host writes to a bucket, unless told otherwise
DEVICE_TO_HOST = 8e9  # bytes/s that one chip copies to its host: half of what PCIe 4.0 ×8 has


@dataclass(frozen=True)
class Checkpoint:
    """The state on disk."""

    bytes: int
    bytes_per_host: float
    stall_seconds: float  # training waits: the copy from device to host
    write_seconds: float  # it goes on meanwhile: from the host to the bucket


@dataclass(frozen=True)
class Plan:
    """What one config takes on one topology."""

    config: Config
    topology: Topology
    mesh: dict[str, int]
    method: str  # "compiled with libtpu …" or "formulas"
    contents: Contents
    memory: dict[str, float]  # bytes per chip by kind, at the peak of a step or an evaluation
    evaluation: (
        float  # bytes per chip that an evaluation takes in place of gradients and temporaries; 0: there is none
    )
    too_large: str  # why it does not fit, or ""
    formula: Operations  # of a step, over all chips
    counted: float  # operations of a step as counted in the program, over all chips; by formulas 0
    collectives: list[Collective]
    terms: Terms
    checkpoint: Checkpoint
    seconds: float  # that the compiler took
    open_loops: list[str]

    @property
    def fits(self) -> bool:
        """Whether the peak of memory, of a step or an evaluation, is no more than a chip has."""
        return not self.too_large

    @property
    def step(self) -> float:
        """Seconds of a step, at the least."""
        return self.terms.step

    @property
    def mfu(self) -> float:
        """The model's operations over what the chips could do in a step: an upper bound."""
        return self.formula.model / (self.step * self.topology.chip.peak * self.topology.chips)

    @property
    def elements_per_second(self) -> float:
        """Padding left out; an upper bound."""
        return self.config.batch_rows * self.contents.elements / self.step

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        chips, steps, counted = self.topology.chips, self.config.steps, self.counted or None
        return {
            "config": self.config.name,
            "overrides": overrides(self.config, self.mesh),
            "topology": {
                "name": self.topology.name,
                "booked": self.topology.booked or None,
                "chips": chips,
                "hosts": self.topology.hosts,
                "slices": self.topology.slices,
                "chip": dataclasses.asdict(self.topology.chip),
            },
            "mesh": self.mesh,
            "method": self.method,
            "compile_seconds": self.seconds,
            "fits": self.fits,
            "too_large": self.too_large or None,
            "bytes_per_chip": self.memory | {"total": sum(self.memory.values())},
            "evaluation_bytes_per_chip": self.evaluation or None,
            "rows": dataclasses.asdict(self.contents),
            "elements_per_step": self.config.elements_per_step,
            "flops_per_step": {
                "counted": counted,
                "formula": self.formula.total,
                "counted_over_formula": counted and counted / self.formula.total,
                **dataclasses.asdict(self.formula),
                "six_nd": six_nd(self.config.model, self.config.elements_per_step),
            },
            "collectives": [dataclasses.asdict(c) for c in self.collectives],
            "seconds_per_step": dataclasses.asdict(self.terms) | {"roofline": self.step, "bound": self.terms.bound},
            "mfu": self.mfu,
            "elements_per_second": self.elements_per_second,
            "checkpoint": dataclasses.asdict(self.checkpoint),
            "run": {
                "steps": steps,
                "days": steps * self.step / 86400,
                "chip_hours": steps * self.step * chips / 3600,
            },
            "open_loops": self.open_loops,
        }


def on_mesh(config: Config, topology: Topology) -> tuple[Config, dict[str, int]]:
    """The config with its mesh spelled out for the topology, and its axes.

    Raises:
        ConfigError: mesh and chips, or mesh and batch, do not agree.
    """
    named = {axis: getattr(config.mesh, axis) for axis in AXES}
    fixed = math.prod(n for n in named.values() if n != -1)
    require(
        topology.chips % fixed == 0 and (-1 in named.values() or topology.chips == fixed),
        f"the mesh ({' × '.join(f'{axis} {n}' for axis, n in named.items())}) does not cover the "
        f"{topology.chips} chips of {topology.name}",
    )
    mesh = {axis: topology.chips // fixed if n == -1 else n for axis, n in named.items()}
    require(
        mesh["data"] % topology.slices == 0,
        f"mesh.data {mesh['data']} must be a multiple of the {topology.slices} slices",
    )
    config = replace(config, mesh=MeshConfig(**mesh))
    check_batch(abstract_mesh(mesh), config)  # type: ignore[arg-type]  # it looks at the shape alone
    return config, mesh


def make_plan(
    config: Config, topology: Topology, contents: Contents, analytic: bool = False, host_rate: float = HOST_RATE
) -> Plan:
    """A plan of a config whose mesh fits the topology.

    Args:
        config: the run.
        topology: the machine.
        contents: of its rows.
        analytic: by formulas, as always for GPUs; else the step is compiled.
        host_rate: bytes/s that one host writes.

    Raises:
        ConfigError: mesh, batch and chips do not agree.
        NoCompiler: libtpu cannot be had.
    """
    config, mesh = on_mesh(config, topology)
    task = make_task(config)
    held = state_sizes(task, state_shapes(task, config), config, abstract_mesh(mesh))
    formula = by_formula(config, contents, topology.chip.is_tpu)
    step = estimate(config, contents, mesh, topology.chip.is_tpu)
    method, memory, too_large = "formulas", {**held.by_kind, TEMPORARY: max(step.temporary, step.evaluation)}, ""
    evaluation = step.evaluation
    work, collectives, counted, seconds, open_loops = step.work, step.collectives, 0.0, 0.0, []
    if topology.chip.is_tpu and not analytic:
        compiled = compile_for(config, topology)
        method, seconds, too_large = f"compiled with libtpu {libtpu.VERSION}", compiled.seconds, compiled.too_large
        if not too_large:  # else the formulas stand in for what the compiler did not get to
            evaluation = float(compiled.evaluation)
            memory |= {TEMPORARY: max(compiled.temporary, compiled.evaluation), CODE: compiled.code}
            work = [_with_kernel(w, config, contents, topology.chips) for w in compiled.counts.work]
            collectives, open_loops = compiled.counts.collectives, compiled.counts.open_loops
            counted = topology.chips * sum(w.flops * w.times for w in work)
    elif sum(memory.values()) > topology.chip.memory:
        too_large = (
            f"{sum(memory.values()) / 2**30:.1f} GiB are needed, and a chip has {topology.chip.memory / 2**30:.2f}"
        )
    return Plan(
        config=config,
        topology=topology,
        mesh=mesh,
        method=method,
        contents=contents,
        memory=memory,
        evaluation=evaluation,
        too_large=too_large,
        formula=formula,
        counted=counted,
        collectives=collectives,
        terms=roofline.terms(work, collectives, topology, mesh),
        checkpoint=_checkpoint(held, topology, host_rate),
        seconds=seconds,
        open_loops=open_loops,
    )


def overrides(config: Config, mesh: dict[str, int]) -> list[str]:
    """What makes a config run as planned, as options of the commands."""
    fields: dict[str, int | str] = {f"mesh.{axis}": n for axis, n in mesh.items()}
    fields |= {"accumulation": config.accumulation, "model.remat": config.model.remat}
    return [f"--config.{name}={value}" for name, value in fields.items()]


def _with_kernel(work: Work, config: Config, contents: Contents, chips: int) -> Work:
    return replace(work, flops=work.flops + kernel_flops(work.kernel, config, contents, chips))


def _checkpoint(held: Sizes, topology: Topology, host_rate: float) -> Checkpoint:
    """Each host writes its share: replicas share the work, too."""
    per_host, per_chip = held.checkpoint / topology.hosts, held.checkpoint / topology.chips
    return Checkpoint(held.checkpoint, per_host, per_chip / DEVICE_TO_HOST, per_host / host_rate)
