"""Whether drawings of shapes show what was asked for, and whether captions of shapes are true.

The categories are GenEval's (arXiv 2310.11513), and the background. The scenes are those that no training set
holds; a grader reads the exact scene off a drawing's pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np

from transfusion_jax.config import Config, ConfigError
from transfusion_jax.data.datasets import Codec, Data
from transfusion_jax.data.readers.shapes import SceneSet, sides_of
from transfusion_jax.evaluation.grader import look
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.evaluation.suites.edits import SEED, drawing_size, picture
from transfusion_jax.generation.png import to_pixels
from transfusion_jax.generation.single import caption_images, draw_images
from transfusion_jax.generation.sizes import drawn_sizes, grid_of_size
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.worlds.shapes import scenes
from transfusion_jax.worlds.shapes.captions import (
    Background,
    Claim,
    Count,
    Proportion,
    Relation,
    form_of,
    parse_caption,
    true_of,
)
from transfusion_jax.worlds.shapes.scenes import Kind, Scene


@dataclass(frozen=True)
class ScenePrompt:
    """A caption, the scene that it was written for, and what is asked of its drawing."""

    index: int  # of the scene, among those of `SEED`
    scene: Scene
    caption: str
    claims: tuple[Claim, ...]  # all that the caption says
    category: str
    asked: tuple[Claim, ...]  # what the category asks


OF_EACH = ("judge_accuracy", "generation_accuracy", "generation_accuracy_whole", "caption_accuracy")


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

    With `evaluation.proportions` these are means over them, and those of `OF_EACH` are also told of each, as
    `generation_accuracy/2x1`. A model with shape marks then draws captions that name a form, in a shape of its own
    choice:

    | metric | share of |
    |---|---|
    | `shape_accuracy`, `shape_accuracy_FORM` | drawings, of all or of one form, that have the form that is named |
    | `generation_accuracy_chosen` | drawings that pass, as above, in the form that is named |

    Raises:
        ConfigError: the model draws no images in colour, or none of a proportion.
    """
    codec, config = data.codec, task.config
    unit = drawing_size("shapes", config, data)
    seed = int(jax.random.bits(key, dtype=np.uint32))
    each = {}
    for proportion, wanted in scene_prompts(config, codec).items():
        true = np.stack([picture(prompt.scene, unit) for prompt in wanted])
        grids = [grid_of_size(true.shape[2], true.shape[1], config, codec)] * len(wanted)
        drawn = draw_images(task, params, codec, [p.caption for p in wanted], seed, grids=grids)
        judged = judge_drawings(wanted, see_drawings(codec.images(codec.latents(true)), unit))
        each[proportion] = {
            "judge_accuracy": judged["generation_accuracy"],
            **judge_drawings(wanted, see_drawings(drawn, unit)),
            **judge_captions([prompt.scene for prompt in wanted], caption_images(task, params, codec, true)),
        }
    means = {name: float(np.mean([found[name] for found in each.values()])) for name in next(iter(each.values()))}
    of_each = {f"{name}/{p}": found[name] for p, found in each.items() if p for name in OF_EACH}
    if not (naming := form_prompts(config, codec)):
        return means | of_each
    chosen = draw_images(task, params, codec, [p.caption for p in naming], seed)
    return means | of_each | judge_forms(naming, see_drawings(chosen, unit))


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where the model draws no images in colour, or none of a proportion."""
    drawing_size("shapes", config, data)
    picture_sides(config, data.codec)


def see_drawings(drawn: Iterable[np.ndarray], unit: int) -> list[Scene]:
    """What drawings `[H, W, 3]` in [−1, 1] show; `unit` is the pixels of a square one's side."""
    return [look(to_pixels(image), unit) for image in drawn]


def judge_drawings(asked: Sequence[ScenePrompt], shown: Sequence[Scene]) -> dict[str, float]:
    """The `generation_…` metrics of `run`, of what one drawing for each prompt shows."""
    right, whole = grade_drawings(asked, shown)
    passed: dict[str, list[bool]] = {}
    for prompt, found in zip(asked, right, strict=True):
        passed.setdefault(prompt.category, []).append(found)
    accuracies = {category: float(np.mean(found)) for category, found in passed.items()}
    return {
        "generation_accuracy": float(np.mean(list(accuracies.values()))),
        **{f"generation_accuracy_{category}": accuracy for category, accuracy in accuracies.items()},
        "generation_accuracy_whole": float(np.mean(whole)),
    }


def grade_drawings(asked: Sequence[ScenePrompt], shown: Sequence[Scene]) -> tuple[list[bool], list[bool]]:
    """Whether each drawing shows what its category asks, and all that its caption says.

    It does neither in a picture of another form than its prompt's scene.
    """
    pairs = [(p, scene, form_of(scene) == form_of(p.scene)) for p, scene in zip(asked, shown, strict=True)]
    right = [formed and true_of(prompt.asked, scene) for prompt, scene, formed in pairs]
    return right, [formed and true_of(prompt.claims, scene) for prompt, scene, formed in pairs]


def judge_forms(asked: Sequence[ScenePrompt], shown: Sequence[Scene]) -> dict[str, float]:
    """The metrics of `run` on drawings whose form the model has chosen, one for each prompt that names one."""
    forms = [form_of(prompt.scene) for prompt in asked]
    right = np.array([form_of(scene) == form for scene, form in zip(shown, forms, strict=True)])
    by_form = {form: float(right[np.array(forms) == form].mean()) for form in dict.fromkeys(forms)}
    return {
        "shape_accuracy": float(right.mean()),
        **{f"shape_accuracy_{form}": accuracy for form, accuracy in by_form.items()},
        "generation_accuracy_chosen": judge_drawings(asked, shown)["generation_accuracy"],
    }


def judge_captions(shown: Sequence[Scene], written: Sequence[str]) -> dict[str, float]:
    """The `caption_…` metrics of `run`, of one caption for each scene."""
    said = [parse_caption(text) for text in written]
    true = [c is not None and true_of(c, scene) for c, scene in zip(said, shown, strict=True)]
    return {
        "caption_accuracy": float(np.mean(true)),
        "caption_parseable": float(np.mean([c is not None for c in said])),
    }


def scene_prompts(config: Config, codec: Codec) -> dict[str, tuple[ScenePrompt, ...]]:
    """`evaluation.images` prompts of `evaluation.scenes` for each proportion; without any, of squares, as ""."""
    about = config.evaluation
    sides: Mapping[str, tuple[float, float] | None] = picture_sides(config, codec) or {"": None}
    return {proportion: make_prompts(about.images, about.scenes, of) for proportion, of in sides.items()}


def form_prompts(config: Config, codec: Codec) -> tuple[ScenePrompt, ...]:
    """`evaluation.images` prompts that name a picture's form, the forms of `evaluation.proportions` by turns.

    None where the model does not choose shapes, or there are no proportions. The scene of a form has the first
    proportion of that form.
    """
    about = config.evaluation
    by_form: dict[str, tuple[float, float]] = {}
    for sides in picture_sides(config, codec).values() if config.model.shape_marks else ():
        by_form.setdefault(form_of(Scene("white", (), *sides)), sides)
    each = [make_prompts(about.images, about.scenes, sides, naming=True) for sides in by_form.values()]
    return tuple(each[number % len(each)][number] for number in range(about.images)) if each else ()


def picture_sides(config: Config, codec: Codec) -> dict[str, tuple[float, float]]:
    """Width and height, in units, of the largest picture of each proportion.

    Raises:
        ConfigError: the model draws none, or none that scenes have room in.
    """
    sizes = drawn_sizes(config, codec)
    found = {}
    for proportion in config.evaluation.proportions:
        try:
            width, height = sides_of(proportion, config.evaluation.scenes, sizes)
            grid_of_size(round(width * sizes.square), round(height * sizes.square), config, codec)
        except ConfigError as error:
            raise ConfigError(
                f"evaluation.proportions holds {proportion!r}, and this model draws no such picture with room for "
                f"scenes: sides are multiples of {sizes.multiple} pixels, at most {sizes.longest}, and an image "
                f"has at most {sizes.area:,}; leave it out"
            ) from error
        found[proportion] = (width, height)
    return found


@cache
def make_prompts(
    number: int,
    arrangement: str = scenes.FREE,
    sides: tuple[float, float] | None = None,
    naming: bool = False,
) -> tuple[ScenePrompt, ...]:
    """So many prompts, the categories by turns; a longer list begins with a shorter one.

    A scene is asked about once, by the category that fits it and has had the fewest. With scenes in the corners,
    prompts for pictures of other sides have the same scenes, but for the places of things, and the same words, but
    for the form of the picture.

    Args:
        number: of prompts.
        arrangement: of the scenes.
        sides: width and height of the pictures in units; half of the captions then tell their form. None: squares,
            whose captions tell none.
        naming: whether only captions that tell it are taken.
    """
    categories = OF_SINGLE if arrangement == scenes.SINGLE else CATEGORIES
    found: dict[str, list[ScenePrompt]] = {category: [] for category in categories}
    wanted, made = -(-number // len(categories)), SceneSet(0, SEED, arrangement, (sides,) if sides else ())
    for index in itertools.count():
        if min(map(len, found.values())) >= wanted:
            break
        scene, text = made.example(index)
        said = parse_caption(text)
        assert said is not None  # captions of data can be read
        if naming and not any(isinstance(claim, Proportion) for claim in said):
            continue
        fitting = {category: asked for category, asks in categories.items() if (asked := asks(said))}
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
OF_SINGLE = {category: CATEGORIES[category] for category in ("single_object", "colors", "background")}


def _counts(said: Sequence[Claim]) -> list[Count]:
    return [claim for claim in said if isinstance(claim, Count) and claim.kind.shape]


def _single_kinds(said: Sequence[Claim]) -> list[Kind]:
    """The kinds of a caption that names each thing by itself."""
    counts = _counts(said)
    return [claim.kind for claim in counts] if all(claim.count == 1 for claim in counts) else []


def _differ(kinds: Sequence[Kind]) -> bool:
    """Whether these are two kinds of different shapes."""
    return len(kinds) == 2 and kinds[0].shape != kinds[1].shape


def _texts(config: Config, codec: Codec) -> list[str]:
    """Every prompt, behind the proportion that its drawing is given."""
    each = scene_prompts(config, codec).items()
    forced = [f"{proportion} {prompt.caption}".lstrip() for proportion, wanted in each for prompt in wanted]
    return [*forced, *(prompt.caption for prompt in form_prompts(config, codec))]


SUITE = Suite(run, "images", True, _texts, check)
