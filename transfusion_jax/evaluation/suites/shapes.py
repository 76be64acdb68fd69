"""Whether drawings of shapes show what was asked for, and whether captions of shapes are true.

The categories are GenEval's (arXiv 2310.11513), and the background. The scenes are those that no training set
holds; a grader reads the exact scene off a drawing's pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np

from transfusion_jax.config import Config, EvaluationConfig
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.readers import shapes
from transfusion_jax.evaluation.grader import look
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.evaluation.suites.edits import SEED, drawing_size, picture
from transfusion_jax.generation.png import to_pixels
from transfusion_jax.generation.single import caption_images, draw_images
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.worlds.shapes import captions as claims
from transfusion_jax.worlds.shapes import scenes
from transfusion_jax.worlds.shapes.captions import Background, Claim, Count, Relation
from transfusion_jax.worlds.shapes.scenes import Kind


@dataclass(frozen=True)
class ScenePrompt:
    """A caption, the scene that it was written for, and what is asked of its drawing."""

    index: int  # of the scene, among those of `SEED`
    scene: scenes.Scene
    caption: str
    claims: tuple[Claim, ...]  # all that the caption says
    category: str
    asked: tuple[Claim, ...]  # what the category asks


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """Accuracies of the grader, of drawing and of captioning.

    | metric | share of |
    |---|---|
    | `judge_accuracy` | true drawings that pass, once they have been through the autoencoder |
    | `generation_accuracy` | drawings that pass: the mean over the categories, as in GenEval |
    | `generation_accuracy_CATEGORY` | drawings of a category that show what it asks |
    | `generation_accuracy_whole` | drawings of which every word of the caption is true |
    | `caption_accuracy` | true drawings whose caption, as the model writes it, is true of the scene |
    | `caption_parseable` | true drawings whose caption says anything at all |

    Raises:
        ConfigError: the model draws no images in colour.
    """
    codec, config = data.codec, task.config
    size = drawing_size("shapes", config, data)
    wanted = scene_prompts(config.evaluation)
    true = np.stack([picture(prompt.scene, size) for prompt in wanted])
    drawn = draw_images(
        task, params, codec, [p.caption for p in wanted], int(jax.random.bits(key, dtype=np.uint32))
    )
    judged = judge_drawings(wanted, codec.images(codec.latents(true)))
    return {
        "judge_accuracy": judged["generation_accuracy"],
        **judge_drawings(wanted, drawn),
        **judge_captions([prompt.scene for prompt in wanted], caption_images(task, params, codec, true)),
    }


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where the model draws no images in colour."""
    drawing_size("shapes", config, data)


def judge_drawings(asked: Sequence[ScenePrompt], drawn: np.ndarray) -> dict[str, float]:
    """The `generation_…` metrics of `run`, of one drawing `[S, H, H, 3]` in [−1, 1] for each prompt."""
    shown = [look(pixels) for pixels in to_pixels(drawn)]
    passed: dict[str, list[bool]] = {}
    for prompt, scene in zip(asked, shown, strict=True):
        passed.setdefault(prompt.category, []).append(claims.true_of(prompt.asked, scene))
    whole = [claims.true_of(prompt.claims, scene) for prompt, scene in zip(asked, shown, strict=True)]
    accuracies = {category: float(np.mean(found)) for category, found in passed.items()}
    return {
        "generation_accuracy": float(np.mean(list(accuracies.values()))),
        **{f"generation_accuracy_{category}": accuracy for category, accuracy in accuracies.items()},
        "generation_accuracy_whole": float(np.mean(whole)),
    }


def judge_captions(shown: Sequence[scenes.Scene], written: Sequence[str]) -> dict[str, float]:
    """The `caption_…` metrics of `run`, of one caption for each scene."""
    said = [claims.parse_caption(text) for text in written]
    true = [c is not None and claims.true_of(c, scene) for c, scene in zip(said, shown, strict=True)]
    return {
        "caption_accuracy": float(np.mean(true)),
        "caption_parseable": float(np.mean([c is not None for c in said])),
    }


@cache
def scene_prompts(config: EvaluationConfig) -> tuple[ScenePrompt, ...]:
    """`evaluation.images` prompts of `evaluation.scenes`."""
    return make_prompts(config.images, config.scenes)


def make_prompts(number: int, arrangement: str = scenes.FREE) -> tuple[ScenePrompt, ...]:
    """So many prompts, the categories by turns; a longer list begins with a shorter one.

    A scene is asked about once, by the category that fits it and has had the fewest.
    """
    found: dict[str, list[ScenePrompt]] = {category: [] for category in CATEGORIES}
    wanted = -(-number // len(CATEGORIES))
    for index in itertools.count():
        if min(map(len, found.values())) >= wanted:
            break
        scene, text = shapes.example(SEED, index, arrangement)
        said = claims.parse_caption(text)
        assert said is not None  # captions of data can be read
        fitting = {category: asked for category, asks in CATEGORIES.items() if (asked := asks(said))}
        if fitting:
            category = min(fitting, key=lambda name: len(found[name]))
            found[category].append(ScenePrompt(index, scene, text, said, category, fitting[category]))
    return tuple(prompt for turn in zip(*found.values(), strict=False) for prompt in turn)[:number]


def _single_object(said: Sequence[Claim]) -> tuple[Claim, ...]:
    """One thing: its shape."""
    kinds = _single_kinds(said)
    return tuple(Count(1, Kind(kind.shape)) for kind in kinds) if len(kinds) == 1 else ()


def _two_object(said: Sequence[Claim]) -> tuple[Claim, ...]:
    """Two things of different shapes: both shapes."""
    kinds = _single_kinds(said)
    return tuple(Count(1, Kind(kind.shape)) for kind in kinds) if _differ(kinds) else ()


def _counting(said: Sequence[Claim]) -> tuple[Claim, ...]:
    """Several things of one kind: how many there are of the shape."""
    counts = _counts(said)
    return (Count(counts[0].count, Kind(counts[0].kind.shape)),) if len(counts) == 1 < counts[0].count else ()


def _colors(said: Sequence[Claim]) -> tuple[Claim, ...]:
    """One thing: its shape in its colour."""
    kinds = _single_kinds(said)
    return tuple(Count(1, Kind(kind.shape, kind.colour)) for kind in kinds) if len(kinds) == 1 else ()


def _position(said: Sequence[Claim]) -> tuple[Claim, ...]:
    """Things of two shapes: on which side the ones are of the others."""
    return tuple(
        Relation(Kind(claim.first.shape), claim.relation, Kind(claim.second.shape))
        for claim in said
        if isinstance(claim, Relation) and _differ((claim.first, claim.second))
    )


def _color_attr(said: Sequence[Claim]) -> tuple[Claim, ...]:
    """Two things that differ in shape and colour: each shape in its own colour."""
    kinds = _single_kinds(said)
    bound = _differ(kinds) and kinds[0].colour != kinds[1].colour
    return tuple(Count(1, Kind(kind.shape, kind.colour)) for kind in kinds) if bound else ()


def _background(said: Sequence[Claim]) -> tuple[Claim, ...]:
    """A background that is said, which white need not be."""
    return tuple(claim for claim in said if isinstance(claim, Background) and claim.colour != "white")


CATEGORIES: dict[str, Callable[[Sequence[Claim]], tuple[Claim, ...]]] = {  # what each asks of a caption, or nothing
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    "background": _background,
}


def _counts(said: Sequence[Claim]) -> list[Count]:
    return [claim for claim in said if isinstance(claim, Count) and claim.kind.shape]


def _single_kinds(said: Sequence[Claim]) -> list[Kind]:
    """The kinds of a caption that names each thing by itself."""
    counts = _counts(said)
    return [claim.kind for claim in counts] if all(claim.count == 1 for claim in counts) else []


def _differ(kinds: Sequence[Kind]) -> bool:
    """Whether these are two kinds of different shapes."""
    return len(kinds) == 2 and kinds[0].shape != kinds[1].shape


SUITE = Suite(run, "images", True, lambda config: [prompt.caption for prompt in scene_prompts(config)], check)
