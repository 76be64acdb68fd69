"""Ranks the ways to run a config on a machine: meshes, parts of a batch, policies of rematerialisation."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transfusion_jax.config import REMAT_POLICIES, Config, ConfigError, MeshConfig
from transfusion_jax.parallel.mesh import check_batch
from transfusion_jax.planning import roofline
from transfusion_jax.planning.estimate import Contents, estimate
from transfusion_jax.planning.memory import abstract_mesh, state_shapes, state_sizes
from transfusion_jax.planning.plan import Plan, make_plan, overrides
from transfusion_jax.planning.topology import Topology
from transfusion_jax.tasks.base import make_task

MOST_TENSOR, MOST_CONTEXT = 8, 8  # beyond, each product is small and each layer waits for several exchanges
MARGIN = 0.9  # of a chip's memory that an estimate may take: it can be too low


@dataclass(frozen=True)
class Candidate:
    """One way to run."""

    config: Config
    mesh: dict[str, int]
    bytes: float  # per chip, estimated
    seconds: float  # of a step at the least, estimated
    why_not: str  # why it does not fit, or ""

    @property
    def label(self) -> str:
        """In short."""
        mesh = " ".join(f"{axis}={n}" for axis, n in self.mesh.items() if n > 1) or "one chip"
        return f"{mesh}, {self.config.accumulation} part(s), remat {self.config.model.remat}"


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    ranked: list[Candidate]  # those that fit, fastest first
    rejected: list[Candidate]  # those whose memory is too much, fastest first
    uneven: Mapping[str, int]  # why a batch cannot be split, and in how many ways: these were not estimated
    plans: list[Plan]  # of the best few, fastest first

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""

        def entry(c: Candidate) -> dict[str, Any]:
            about = {"mesh": c.mesh, "overrides": overrides(c.config, c.mesh)}
            return about | {"bytes_per_chip": c.bytes, "seconds_per_step": c.seconds, "why_not": c.why_not or None}

        return {
            "ranked": [entry(c) for c in self.ranked],
            "rejected": [entry(c) for c in self.rejected],
            "uneven": dict(self.uneven),
            "plans": [plan.to_dict() for plan in self.plans],
        }


def search(
    config: Config, topology: Topology, contents: Contents, best: int, analytic: bool, host_rate: float
) -> SearchResult:
    """Estimates every candidate by formulas, and makes plans of the best few, compiled ones where they can be.

    One that the compiler finds too large makes room for the next, as often as there are to be plans.
    """
    uneven: Counter[str] = Counter()
    candidates = list(_estimated(config, topology, contents, _variants(config, topology), uneven))
    ordered = sorted(candidates, key=lambda c: (c.seconds, c.bytes))
    ranked, rejected = [c for c in ordered if not c.why_not], [c for c in ordered if c.why_not]
    plans: list[Plan] = []
    for candidate in ranked[: 2 * best]:
        if sum(plan.fits for plan in plans) < best:
            plans.append(make_plan(candidate.config, topology, contents, analytic, host_rate))
    return SearchResult(ranked, rejected, uneven, sorted(plans, key=lambda plan: (not plan.fits, plan.step)))


def choose_mesh(config: Config, topology: Topology, contents: Contents) -> Config:
    """The config on the mesh that formulas call fastest, all else as it is.

    Raises:
        ConfigError: it fits on none.
    """
    every = ((mesh, config) for mesh in meshes(topology))
    candidates = list(_estimated(config, topology, contents, every, Counter()))
    fitting = [c for c in candidates if not c.why_not]
    if not fitting:
        least = min(candidates, key=lambda c: c.bytes) if candidates else None
        why = (
            f"the least is {least.label}: {least.why_not}" if least else "no mesh splits its rows and heads evenly"
        )
        raise ConfigError(
            f"{config.name} fits no mesh of {topology.name} ({why}): "
            "--search tries other parts of a batch and policies of rematerialisation, too"
        )
    return min(fitting, key=lambda c: (c.seconds, c.bytes)).config


def meshes(topology: Topology) -> Iterator[dict[str, int]]:
    """Every mesh over the chips; only `data` goes across slices, and `tensor` stays within a node of GPUs."""
    inside = topology.chips // topology.slices
    for tensor, context in itertools.product(_divisors(inside, MOST_TENSOR), _divisors(inside, MOST_CONTEXT)):
        if inside % (tensor * context) or (not topology.chip.is_tpu and topology.shape[0] % tensor):
            continue
        for fsdp in _divisors(inside // (tensor * context)):
            yield {
                "data": topology.chips // (tensor * context * fsdp),
                "fsdp": fsdp,
                "context": context,
                "tensor": tensor,
            }


def _variants(config: Config, topology: Topology) -> Iterator[tuple[dict[str, int], Config]]:
    """Each mesh with each policy, and parts of a batch down to one row per device."""
    for mesh in meshes(topology):
        for parts in _divisors(config.batch_rows // (mesh["data"] * mesh["fsdp"]) or 1):
            for remat in REMAT_POLICIES:
                yield mesh, replace(config, accumulation=parts, model=replace(config.model, remat=remat))


def _estimated(
    config: Config,
    topology: Topology,
    contents: Contents,
    variants: Iterator[tuple[dict[str, int], Config]],
    uneven: Counter[str],
) -> Iterator[Candidate]:
    """Those of the variants whose batch and heads their mesh splits evenly; the others are counted by reason."""
    task = make_task(config)
    shapes = state_shapes(task, config)
    held: dict[tuple, int] = {}
    for mesh, variant in variants:
        variant = replace(variant, mesh=MeshConfig(**mesh))
        placed = abstract_mesh(mesh)
        try:
            check_batch(placed, variant)  # type: ignore[arg-type]  # it looks at the shape alone
        except ConfigError as error:
            uneven[str(error)] += 1
            continue
        key = tuple(mesh.values())
        if key not in held:
            held[key] = sum(state_sizes(task, shapes, variant, placed).by_kind.values())
        step = estimate(variant, contents, mesh, topology.chip.is_tpu)
        needed, most = held[key] + max(step.temporary, step.evaluation), MARGIN * topology.chip.memory
        why = f"needs about {needed / 2**30:.1f} of {topology.chip.memory / 2**30:.1f} GiB" if needed > most else ""
        seconds = roofline.terms(step.work, step.collectives, topology, mesh).step
        yield Candidate(variant, mesh, needed, seconds, why)


def _divisors(number: int, most: int | None = None) -> list[int]:
    return [n for n in range(1, min(number, most or number) + 1) if number % n == 0]
