"""The families side by side on handwritten digits: a sweep of learning rates for both, then one run of each.

    python benchmarks/families.py --workdir runs/families --jobs 2
    python benchmarks/families.py --workdir runs/families --output docs/families.md

The first command trains, the second writes the page and its picture. The data come first, by the commands in
configs/digits.py. Every run is one command; a run that was cut short goes on where it was, and
one that is done is passed over.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from transfusion_jax.commands.common.load_model import read_model
from transfusion_jax.commands.flags.shared import add_weights
from transfusion_jax.config import SUITES
from transfusion_jax.data.readers import digits
from transfusion_jax.flops import count_parameters
from transfusion_jax.generation.png import grid, write_png
from transfusion_jax.generation.single import draw_images
from transfusion_jax.model.transfusion import Params
from transfusion_jax.scaling.ladder import training
from transfusion_jax.scaling.running import Training, run_trainings
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.facts import codec_of, data_of
from transfusion_jax.training.monitoring.metrics import record_of
from transfusion_jax.training.run_dir import Workdir

CONFIG = "configs/digits.py"
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SWEPT, SWEEP_STEPS = ("linear", "chameleon"), 600
STEPS = 800
MATCHED = STEPS * (64 + 2) // (16 + 2)  # an image's elements with its marks; captions and prose not counted
RUNS = {  # by name: title, family, steps
    "linear": ("Transfusion, linear", "linear", STEPS),
    "unet": ("Transfusion, U-Net", "unet", STEPS),
    "chameleon": ("Chameleon", "chameleon", STEPS),
    "chameleon-match-images": ("Chameleon, for longer", "chameleon", MATCHED),
}
PROMPTS = tuple(f"a handwritten {word}" for word in digits.NAMES)
LOSSES = {"latents": "squared error of ε, of variance 1", "codes": "nats per code"}
PER_FAMILY = 4  # images of each prompt
HEAD = """# The families side by side

Transfusion with a linear and with a U-Net patch coder and Chameleon, on the same handwritten digits and the same
prose, from one preparation: 8×8 pixels, 16 elements an image, for Transfusion; their 17 levels of grey as 64 codes
for Chameleon. The trunk, the tokenizer, the documents and the text loss are the same. Chameleon runs twice: for as
many elements, and 66 / 18 times as long, which is what an image takes of its elements and of Transfusion's: so it
has seen at least as many images, and more often than is good for it, as its loss on held-out images shows.

```
transfusion prepare digits --output data/digits --image-size 8 --channels 1 --held-out 0.15 --encode grey-f1k17
transfusion prepare prose --output data/prose --held-out 0.05
{command} --jobs 2
{command} --output {output}
```

This is a demonstration on two CPU cores with models of a million parameters, not the paper's comparison: no
autoencoder takes part, so that neither family depends on one.

![Prompts downwards; from left to right {families}, {count} images each]({picture})

From left to right: {families}, {count} images of each prompt, none picked. Drawn right is the share of 200 images
whose digit a support vector machine takes for the one asked for, and captioned right that of the held-out digits
whose caption names them.
"""
SWEEP_HEAD = f"""
## The sweep

The same learning rates for both, {SWEEP_STEPS} steps each with warm-up and decay of their own: the loss that is
trained, on held-out documents. The best one trains the runs above; the U-Net takes that of the linear coder.
"""


@dataclass(frozen=True)
class Point:
    """One run: a family's config with some fields changed."""

    family: str
    name: str
    changes: dict[str, float] = field(default_factory=dict)

    def training(self, root: Path) -> Training:
        """What trains it, in a workdir of its name."""
        changes = [f"{name}={value}" for name, value in self.changes.items()]
        return training(self.name, root, root, f"{CONFIG}:{self.family}", changes)


def main() -> None:
    """Trains what is not yet trained, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the runs' folder")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on cores of its own (default: 1)")
    parser.add_argument("--output", type=Path, help="the page to write from runs that are done")
    arguments = parser.parse_args()
    if arguments.output:
        write_page(arguments.workdir, arguments.output)
    else:
        train(sweep(), arguments.workdir, arguments.jobs)
        train(finals(arguments.workdir), arguments.workdir, arguments.jobs)


def sweep() -> list[Point]:
    """Short runs over the same rates for both families."""
    return [
        Point(family, f"sweep-{family}-{rate:g}", changes_of(SWEEP_STEPS, rate))
        for rate in RATES
        for family in SWEPT
    ]


def finals(root: Path) -> list[Point]:
    """The longest first, each with the best rate of its family's sweep."""
    rates = {family: min((swept_loss(root, family, rate), rate) for rate in RATES)[1] for family in SWEPT}
    return [
        Point(family, name, changes_of(steps, rates["chameleon" if family == "chameleon" else "linear"]))
        for name, (_, family, steps) in reversed(RUNS.items())
    ]


def changes_of(steps: int, rate: float) -> dict[str, float]:
    """A run of so many steps, its rate falling to a hundredth; measured at its end alone."""
    return {
        "steps": steps,
        "optimizer.learning_rate": rate,
        "optimizer.final_learning_rate": rate / 100,
        "loop.evaluate_every": steps,
        "loop.sample_every": 0,
    }


def train(points: Sequence[Point], root: Path, jobs: int) -> None:
    """Runs them all, `jobs` at a time.

    Raises:
        SystemExit: a signal came, or a run failed; its log says why.
    """
    failed: list[Training] = []

    def ended(training: Training, code: int) -> None:
        failed.extend([training] if code else [])

    def begun(training: Training) -> None:
        print(training.name, flush=True)

    if run_trainings([point.training(root) for point in points], jobs, (), begun, ended):
        raise SystemExit("interrupted: the same command goes on")
    if failed:
        raise SystemExit(f"failed: see {', '.join(str(each.log) for each in failed)}")


def write_page(root: Path, output: Path) -> None:
    """A table of the long runs, a grid of what each of them draws, a table of the sweep."""
    tables = [*table_of_finals(root), *table_of_scores(root), SWEEP_HEAD, *table_of_sweep(root)]
    picture = output.with_suffix(".png")
    write_png(picture, draw_all(root))
    head = HEAD.format(
        command=f"python benchmarks/families.py --workdir {root}",
        output=output,
        picture=picture.name,
        families=", ".join(title for title, _, _ in RUNS.values()),
        count=PER_FAMILY,
    )
    output.write_text("\n".join([head, *tables]) + "\n")


def draw_all(root: Path) -> np.ndarray:
    """A sheet: prompts downwards, families side by side, each with the same seeds."""
    columns = []
    for point in reversed(finals(root)):
        task, params, workdir = read(root / point.name)
        prompts = [prompt for prompt in PROMPTS for _ in range(PER_FAMILY)]
        images = np.stack(draw_images(task, params, codec_of(workdir), prompts, seed=0))
        columns.append(images.reshape(len(PROMPTS), PER_FAMILY, *images.shape[1:]))
    sheet = np.concatenate(columns, axis=1)
    return grid(sheet.reshape(-1, *sheet.shape[2:]), sheet.shape[1], list(PROMPTS))


def read(workdir: Path) -> tuple[ModelTask, Params, Workdir]:
    """A run's task, its last weights, and the run."""
    parser = argparse.ArgumentParser()
    add_weights(parser)
    return read_model(parser.parse_args(["--workdir", str(workdir)]), print)[:3]


def table_of_finals(root: Path) -> list[str]:
    """Losses on held-out documents, and what they cost."""
    lines = ["| | parameters | steps | rate | elements | images seen | FLOPs | text loss | image loss | of |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for point in reversed(finals(root)):
        config, last = Workdir(root / point.name).config(), last_record(root, point)
        total = count_parameters(config.model).total
        elements, images = last["total_elements"] / 1e6, last["total_images"] / 1e3
        lines.append(
            f"| {RUNS[point.name][0]} | {total / 1e6:.2f}M | {config.steps:,} | {config.optimizer.learning_rate:g} "
            f"| {elements:.1f}M | {images:.0f}k | {last['total_flops']:.2e} | {last['held_out/loss_text']:.3f} "
            f"| {last['held_out/loss_image']:.3f} | {LOSSES[config.model.images]} |"
        )
    return lines


def table_of_scores(root: Path) -> list[str]:
    """How many digits are drawn and captioned right; `transfusion evaluate` writes the same."""
    lines = ["", "| | drawn right | without guidance | captioned right |", "|---|---|---|---|"]
    for point in reversed(finals(root)):
        task, params, workdir = read(root / point.name)
        data = data_of(workdir, task.config)
        found = SUITES["digits"].run(task, params, data, jax.random.key(task.config.seed))
        names = "generation_accuracy", "generation_accuracy_unguided", "caption_accuracy"
        lines.append(f"| {RUNS[point.name][0]} | " + " | ".join(f"{found[name]:.1%}" for name in names) + " |")
    return lines


def table_of_sweep(root: Path) -> list[str]:
    """Held-out losses by family and rate, each family's lowest in bold."""
    lines = [" | ".join(["|", *(f"{rate:g}" for rate in RATES)]) + " |", "|---" * (len(RATES) + 1) + "|"]
    for family in SWEPT:
        losses = [swept_loss(root, family, rate) for rate in RATES]
        cells = [f"**{loss:.3f}**" if loss == min(losses) else f"{loss:.3f}" for loss in losses]
        lines.append(" | ".join([f"| {RUNS[family][0]}", *cells]) + " |")
    return lines


def swept_loss(root: Path, family: str, rate: float) -> float:
    """The held-out loss of a short run."""
    return last_record(root, Point(family, f"sweep-{family}-{rate:g}"))["held_out/loss"]


def last_record(root: Path, point: Point) -> dict[str, float]:
    """What a run logged at its last step.

    Raises:
        SystemExit: it is not done.
    """
    workdir = Workdir(root / point.name)
    record = record_of(workdir.metrics, workdir.config().steps) if workdir.exists() else {}
    if "held_out/loss" not in record:
        raise SystemExit(f"{workdir.path} is not trained and evaluated to its end: run this without --output first")
    return record


if __name__ == "__main__":
    main()
