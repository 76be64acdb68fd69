"""What a ladder takes, before any of it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transfusion_jax.config import SUITES, Config, ModelConfig
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.documents import Source, lengths_of
from transfusion_jax.data.packing.sequences import SURVEYED
from transfusion_jax.diffusion.sampler import sampler_steps
from transfusion_jax.diffusion.schedule import make_schedule
from transfusion_jax.flops import count_parameters
from transfusion_jax.model.transfusion import FORWARD_AND_BACKWARD, Model
from transfusion_jax.planning.estimate import Contents
from transfusion_jax.planning.expected_batch import expected
from transfusion_jax.planning.memory import abstract_mesh, state_shapes, state_sizes
from transfusion_jax.planning.plan import make_plan
from transfusion_jax.planning.search import choose_mesh
from transfusion_jax.planning.topology import Topology
from transfusion_jax.scaling.ladder import LadderRun
from transfusion_jax.storage.paths import place
from transfusion_jax.tasks.base import make_task

KEPT = 1  # checkpoints beside the newest `loop.keep`: the best one


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    name: str
    parameters: int  # as the paper counts them
    elements: int
    steps: int
    flops_6nd: float
    flops_exact: float  # of rows as `transfusion plan` expects them
    flops_drawing: float  # of the evaluation at its end: of its suites that draw, `evaluation.images` each, guided
    disk: int  # bytes of the checkpoints that are kept
    chip_hours: float | None  # None where no machine is named
    epochs: dict[str, float]  # passes by source; of prepared sources alone


def cost(run: LadderRun, topology: Topology | None) -> Cost:
    """Counted from shapes; nothing is compiled.

    Raises:
        ConfigError: the run fits no mesh of the topology.
    """
    config, model = run.config, run.config.model
    contents = expected(config)
    hours = None
    if topology is not None:
        plan = make_plan(choose_mesh(config, topology, contents), topology, contents, analytic=True)
        hours = plan.step * config.steps * topology.chips / 3600
    task = make_task(config)
    checkpoint = state_sizes(task, state_shapes(task, config), config, abstract_mesh({})).checkpoint
    return Cost(
        run.name,
        count_parameters(model).paper,
        config.steps * config.elements_per_step,
        config.steps,
        run.flops_6nd,
        exact_flops(config, contents),
        drawing_flops(config) * sum(SUITES[name].draws for name in config.evaluation.during_training),
        checkpoint * (min(config.loop.keep, math.ceil(config.steps / config.loop.save_every)) + KEPT),
        hours,
        epochs(config, contents.elements),
    )


def exact_flops(config: Config, contents: Contents | None = None) -> float:
    """FLOPs of a whole training whose rows have the expected content."""
    per_step: float = make_task(config).flops((contents or expected(config)).counts(config.batch_rows))
    return config.steps * per_step


def drawing_flops(config: Config) -> float:
    """Of drawing `evaluation.images` with guidance: two passes of an image's elements for each evaluation."""
    model = config.model
    if model.images == "none":
        return 0.0
    passes = 2  # codes go through the trunk once
    if model.images == "latents":
        diffusion, sampling = config.diffusion, config.sampling
        steps = sampler_steps(make_schedule(diffusion), diffusion, sampling, model.patches)
        passes *= len(steps.timesteps)
    images = passes * config.evaluation.images
    return Model(model).flops(images * model.patches, 0, images, 0) / FORWARD_AND_BACKWARD


def epochs(config: Config, per_row: float) -> dict[str, float]:
    """Passes over each source at so many elements a row; nothing where a source is not there yet."""
    if not config.folders or not all((place(folder) / "data.json").is_file() for folder in config.folders):
        return {}
    passes = {source.name: elements_of(source, config.model) for source in load_data(config).train.sources}
    found = dict.fromkeys(passes, 0.0)
    rows = config.steps * config.batch_rows
    phases = config.data.mixtures
    for phase, after in zip(phases, [*(later.start for later in phases[1:]), rows], strict=True):
        elements = per_row * max(min(after, rows) - phase.start, 0)
        for name, weight in phase.weights.items():
            found[name] += elements * weight / sum(phase.weights.values()) / passes[name]
    return found


def elements_of(source: Source, model: ModelConfig) -> int:
    """Elements of one pass: a document's texts, its images with their marks, and BOS."""
    parts = (slice(begin, begin + SURVEYED) for begin in range(0, len(source), SURVEYED))
    return int(sum(lengths_of(source.documents, part, model).sum() for part in parts))


def cost_table(costs: Sequence[Cost]) -> str:
    """A line for each run, and the sum."""
    heads = ("run", "parameters", "elements", "steps", "6ND", "exact", "drawing", "chip-hours", "disk", "epochs")
    total = Cost(
        f"{len(costs)} runs",
        0,
        sum(c.elements for c in costs),
        sum(c.steps for c in costs),
        sum(c.flops_6nd for c in costs),
        sum(c.flops_exact for c in costs),
        sum(c.flops_drawing for c in costs),
        sum(c.disk for c in costs),
        None if any(c.chip_hours is None for c in costs) else sum(c.chip_hours or 0 for c in costs),
        {},
    )
    rows = [heads, *(_cells(c) for c in (*costs, total))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first cell to the left, the others to the right."""
    cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def _cells(c: Cost) -> tuple[str, ...]:
    return (
        c.name,
        f"{c.parameters / 1e6:,.2f}M" if c.parameters else "",
        f"{c.elements:.3g}",
        f"{c.steps:,}",
        f"{c.flops_6nd:.3g}",
        f"{c.flops_exact:.3g}",
        f"{c.flops_drawing:.2g}",
        "" if c.chip_hours is None else f"{c.chip_hours:,.1f}",
        f"{c.disk / 2**30:,.2f} GiB",
        ", ".join(f"{name} {passes:.2f}" for name, passes in c.epochs.items()),
    )
