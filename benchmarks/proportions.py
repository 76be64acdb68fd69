"""Shapes drawn in several proportions by one model, beside models that have learnt one proportion each.

    python benchmarks/proportions.py runs/native runs/native-1x1 runs/native-2x1 runs/native-1x2
    python benchmarks/proportions.py runs/native --images 14 --grid native.png

The runs are those of configs/shapes.py. Each draws the same prompts in a proportion, with the same noise, and the
first also draws them at 3x2, which no run has seen, and captions that name a form in a shape of its own choice.
Drawings are graded as the suite `shapes` does. What is graded is kept in the folder of the first run, so that a
call goes on where one was interrupted, and one with more images grades only those that are new.

With a multiple of 7 images each category has as many, and the share of all that pass is the mean over categories.
Intervals are of 95 %: Wilson's of shares, and bootstrapped over prompts, within their categories, of differences
and ratios, which are paired by prompt.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import harness
from transfusion_jax.commands.common.load_model import read_model
from transfusion_jax.config import Config
from transfusion_jax.data.datasets import Codec
from transfusion_jax.evaluation.results import sampling_of
from transfusion_jax.evaluation.suites.shapes import (
    ScenePrompt,
    form_prompts,
    grade_drawings,
    picture_sides,
    scene_prompts,
    see_drawings,
)
from transfusion_jax.generation.contact_sheet import contact_sheet
from transfusion_jax.generation.png import write_png
from transfusion_jax.generation.single import draw_images
from transfusion_jax.generation.sizes import drawn_sizes, grid_of_size
from transfusion_jax.model.transfusion import Params
from transfusion_jax.storage.atomic import read_json, write_json
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.facts import codec_of
from transfusion_jax.worlds.shapes.captions import form_of

ALONE, UNSEEN = ("1x1", "2x1", "1x2"), "3x2"  # what there is a run for, in the order of the arguments, and what not
CHOSEN = "chosen"  # stands for a proportion where the model chooses
FILE, REMEDY = "proportions.json", "move it away and grade again"
PART = 50  # drawings between two times that what is graded is kept
ROWS = 7  # prompts of the picture: one of each category
RESAMPLED = 10_000
RIGHT, WHOLE, FORMED = (
    "right",
    "whole",
    "formed",
)  # what the category asks, all that is said, the form that is named


@dataclass(frozen=True)
class Run:
    """A trained model, and a config that asks for every proportion."""

    task: ModelTask
    params: Params
    codec: Codec
    config: Config
    checkpoint: str

    @property
    def unit(self) -> int:
        """Pixels of a square picture's side."""
        return drawn_sizes(self.config, self.codec).square

    def draw(self, prompts: Sequence[ScenePrompt], proportion: str, seed: int) -> list[np.ndarray]:
        """One drawing for each prompt, in a proportion or one that the model chooses."""
        grids = None
        if proportion != CHOSEN:
            width, height = picture_sides(self.config, self.codec)[proportion]
            sides = round(width * self.unit), round(height * self.unit)
            grids = [grid_of_size(*sides, self.config, self.codec)] * len(prompts)
        texts = [prompt.caption for prompt in prompts]
        return draw_images(self.task, self.params, self.codec, texts, seed, grids=grids)


@dataclass(frozen=True)
class Graded:
    """What was found of each prompt, by `RIGHT`, `WHOLE` and `FORMED`."""

    prompts: tuple[ScenePrompt, ...]
    found: dict[str, np.ndarray]  # bool [n]


def main() -> None:
    """Draws, grades and prints."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("all", type=Path, help="the run that was trained on all proportions")
    parser.add_argument("alone", type=Path, nargs="*", help=f"those trained on one alone: {', '.join(ALONE)}")
    parser.add_argument("--images", type=int, default=504, help="of each proportion (default: %(default)s)")
    parser.add_argument("--grid", type=Path, metavar="FILE.png", help="draw a sheet, too: a column per proportion")
    arguments = parser.parse_args()
    if len(arguments.alone) > len(ALONE):
        parser.error(f"at most {len(ALONE)} runs on one proportion: {', '.join(ALONE)}")
    kept = arguments.all / FILE
    run = open_run(arguments.all, arguments.images)
    prompts = scene_prompts(run.config, run.codec) | {CHOSEN: form_prompts(run.config, run.codec)}
    mixed = {proportion: grade(run, wanted, proportion, kept) for proportion, wanted in prompts.items() if wanted}
    alone = {}
    for proportion, workdir in zip(ALONE, arguments.alone, strict=False):
        other = open_run(workdir, arguments.images)
        if scene_prompts(other.config, other.codec)[proportion] != prompts[proportion]:
            raise SystemExit(f"{workdir} draws in other sizes than {arguments.all}: train both on one config")
        alone[proportion] = grade(other, prompts[proportion], proportion, kept)
    if arguments.grid:
        draw_sheet(run, prompts, arguments.grid)
    result = {"images": arguments.images, **summary(mixed, alone)}
    harness.deliver(result | {"machine": harness.machine()}, table(result), arguments.json)


def open_run(workdir: Path, images: int) -> Run:
    """Its newest checkpoint."""
    flags = argparse.Namespace(workdir=workdir, weights=None, step="latest")
    task, params, run, step, weights = read_model(flags, print)
    proportions = (*ALONE, UNSEEN)
    about = dataclasses.replace(task.config.evaluation, images=images, proportions=proportions)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoint = checkpoints.hash(step, weights)
    config = dataclasses.replace(task.config, evaluation=about)
    return Run(task, params, codec_of(run), config, checkpoint)


def grade(run: Run, prompts: tuple[ScenePrompt, ...], proportion: str, kept: Path) -> Graded:
    """Grades what is not kept yet, part by part."""
    entries: list[dict[str, Any]] = read_json(kept, REMEDY)["graded"] if kept.exists() else []
    parts = []
    for first in range(0, len(prompts), PART):
        part = prompts[first : first + PART]
        captions = "\n".join(prompt.caption for prompt in part)
        key = {
            "checkpoint": run.checkpoint,
            "sampling": sampling_of(run.config),
            "proportion": proportion,
            "first": first,
            "prompts": hashlib.sha256(captions.encode()).hexdigest()[:16],
        }
        entry = next((entry for entry in entries if entry.items() >= key.items()), None)
        if entry is None:
            shown = see_drawings(run.draw(part, proportion, seed=first), run.unit)
            right, whole = grade_drawings(part, shown)
            formed = [form_of(a) == form_of(b.scene) for a, b in zip(shown, part, strict=True)]
            entry = {**key, RIGHT: right, WHOLE: whole, FORMED: formed}
            entries.append(entry)
            write_json(kept, {"graded": entries})
        print(f"{proportion}: {first + len(part)} of {len(prompts)}, {np.mean(entry[RIGHT]):.0%} right", flush=True)
        parts.append(entry)
    found = {
        name: np.concatenate([np.array(part[name], bool) for part in parts]) for name in (RIGHT, WHOLE, FORMED)
    }
    return Graded(prompts, found)


def summary(mixed: dict[str, Graded], alone: dict[str, Graded]) -> dict[str, Any]:
    """Shares, differences and ratios with their intervals, `[value, low, high]` each."""
    places = resamples([prompt.category for prompt in mixed[UNSEEN].prompts])
    rows = {}
    for proportion in (*ALONE, UNSEEN):
        row = {}
        for name in (RIGHT, WHOLE):
            row[name] = {"all": share(mixed[proportion].found[name])}
            if proportion in alone:
                both = mixed[proportion].found[name], alone[proportion].found[name]
                row[name]["alone"] = share(both[1])
                row[name]["difference"] = bootstrapped(lambda a, b: a - b, both, places)
        rows[proportion] = row
    ratios = {
        name: bootstrapped(
            lambda unseen, *others: unseen / np.mean(others, axis=0),
            [mixed[proportion].found[name] for proportion in (UNSEEN, *ALONE)],
            places,
        )
        for name in (RIGHT, WHOLE)
    }
    result: dict[str, Any] = {"proportions": rows, "unseen_to_others": ratios}
    if CHOSEN in mixed:
        forms = np.array([form_of(prompt.scene) for prompt in mixed[CHOSEN].prompts])
        formed = mixed[CHOSEN].found[FORMED]
        by_form = {form: share(formed[forms == form]) for form in dict.fromkeys(forms.tolist())}
        result["form_as_named"] = {"all": share(formed)} | by_form
        result[CHOSEN] = share(mixed[CHOSEN].found[RIGHT])
    return result


def share(passed: np.ndarray) -> list[float]:
    """A share and Wilson's interval."""
    n, z = len(passed), 1.96
    p = float(np.mean(passed))
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def resamples(categories: Sequence[str]) -> np.ndarray:
    """Places of prompts, `[RESAMPLED, n]`, each drawn from those of its own category."""
    random, names = np.random.default_rng(0), np.array(categories)
    places = np.empty((RESAMPLED, len(names)), int)
    for name in set(categories):
        members = np.flatnonzero(names == name)
        places[:, members] = random.choice(members, (RESAMPLED, len(members)))
    return places


def bootstrapped(of: Callable[..., Any], passed: Sequence[np.ndarray], places: np.ndarray) -> list[float]:
    """A function of several shares of the same prompts, and the interval of what it is of other prompts."""
    with np.errstate(divide="ignore", invalid="ignore"):  # of shares of nothing
        values = of(*(one[places].mean(1) for one in passed))
        return [float(of(*(one.mean() for one in passed))), *np.quantile(values, (0.025, 0.975)).tolist()]


def draw_sheet(run: Run, prompts: dict[str, tuple[ScenePrompt, ...]], path: Path) -> None:
    """The first drawings that are graded, a row for each prompt and a column for each proportion."""
    columns = (*ALONE, UNSEEN)
    drawn = [run.draw(prompts[proportion][:ROWS], proportion, seed=0) for proportion in columns]
    images = [image for row in zip(*drawn, strict=True) for image in row]
    captions = [prompts[p][row].caption for row in range(len(drawn[0])) for p in columns]
    write_png(path, contact_sheet(images, captions, len(columns)))


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    head = [
        "pictures",
        *(f"{what}{run}" for what in ("", "every word: ") for run in ("all", "alone", "difference")),
    ]
    lines = [head, ["---"] * len(head)]
    for proportion, row in result["proportions"].items():
        cells = [
            percent(row[name].get(column), " points" if column == "difference" else " %")
            for name in (RIGHT, WHOLE)
            for column in ("all", "alone", "difference")
        ]
        lines.append([proportion, *cells])
    text = ["", *(f"| {' | '.join(line)} |" for line in lines), ""]
    right, whole = (percent(result["unseen_to_others"][name]) for name in (RIGHT, WHOLE))
    text.append(f"{UNSEEN} as a share of the mean of the other three: {right}; every word: {whole}.")
    if CHOSEN in result:
        forms = ", ".join(f"{form} {percent(found)}" for form, found in result["form_as_named"].items())
        text.append(f"Form as the caption names it, left to choose: {forms}. Right in that form: ")
        text[-1] += f"{percent(result[CHOSEN])}."
    text.append(f"{result['images']} prompts each; 95 % intervals.")
    return "\n".join(text)


def percent(found: list[float] | None, unit: str = " %") -> str:
    """A value with its interval."""
    if found is None:
        return "—"
    value, low, high = (100 * number for number in found)
    return f"{value:.1f}{unit} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
