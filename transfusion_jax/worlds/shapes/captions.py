"""What captions claim about scenes: claims are put into words, read back from words, and checked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from transfusion_jax.worlds.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Kind, Scene, Thing, pick

NUMBERS = {1: ("a", "one"), 2: ("two",), 3: ("three",), 4: ("four",), 5: ("five",)}
SIZE_WORDS = {None: ("",), "small": ("small ", "little "), "large": ("large ", "big ")}
RELATIONS: dict[str, Callable[[Thing, Thing], float]] = {  # how far the first thing is to that side of the second
    "left": lambda first, second: second.x - first.x,
    "right": lambda first, second: first.x - second.x,
    "above": lambda first, second: second.y - first.y,
    "below": lambda first, second: first.y - second.y,
}
WORDINGS = {  # by how many kinds of things there are and how the first relates to the second
    (1, None): ("{0}",),
    (2, None): ("{0} and {1}", "{0} with {1}"),
    (3, None): ("{0}, {1} and {2}",),
    (2, "left"): ("{0} to the left of {1}", "{0} left of {1}", "{1} with {0} to the left"),
    (2, "right"): ("{0} to the right of {1}", "{0} right of {1}", "{1} with {0} to the right"),
    (2, "above"): ("{0} above {1}", "{0} over {1}", "{1} with {0} above"),
    (2, "below"): ("{0} below {1}", "{0} under {1}", "{1} with {0} below"),
}
FRAMES = ("{}", "{}", "a picture of {}", "a drawing of {}")
FORMS = ("wide", "tall", "square")  # of pictures
FRAMES_OF_FORM = ("a {} picture of {{}}", "a {} drawing of {{}}")
GROUNDS = {  # a background that goes unsaid is white
    "white": ("{}", "{}", "{} on a white background"),
    "black": ("{} on a black background", "{} against a black background"),
    "grey": ("{} on a grey background", "{} against a grey background"),
}


@dataclass(frozen=True)
class Count:
    """There are just so many things of a kind."""

    count: int
    kind: Kind


@dataclass(frozen=True)
class Relation:
    """Every thing of the first kind is to that side of every thing of the second."""

    first: Kind
    relation: str
    second: Kind


@dataclass(frozen=True)
class Background:
    """The background has that colour."""

    colour: str


@dataclass(frozen=True)
class Proportion:
    """The picture is wider than high, higher than wide, or square."""

    form: str  # an entry of `FORMS`


Claim = Count | Relation | Background | Proportion


def claims(scene: Scene, rng: np.random.Generator, forms: bool = False) -> tuple[Claim, ...]:
    """True claims that make a caption: the count of each kind and of all things, the background, often a relation.

    Sizes are claimed half of the time, and always where kinds differ in nothing else; the picture's form half of
    the time where captions tell `forms`.
    """
    full = Counter(Kind(thing.shape, thing.colour, thing.size) for thing in scene.things)
    plain = {Kind(kind.shape, kind.colour): count for kind, count in full.items()}
    counts = full if len(plain) < len(full) or rng.random() < 0.5 else plain
    relation = pick(rng, _clear_relations(scene, list(counts)))
    form = form_of(scene) if forms and rng.random() < 0.5 else None
    return _claims(list(counts.items()), relation, scene.background, form)


def describe_claims(claims: Sequence[Claim], rng: np.random.Generator) -> str:
    """A caption for claims that `claims` or `parse_caption` made."""
    counts = [claim for claim in claims if isinstance(claim, Count) and claim.kind.shape]
    relation = next((claim.relation for claim in claims if isinstance(claim, Relation)), None)
    ground = next(claim.colour for claim in claims if isinstance(claim, Background))
    form = next((claim.form for claim in claims if isinstance(claim, Proportion)), None)
    phrases = [pick(rng, _phrases(claim.count, claim.kind)) for claim in counts]
    return pick(rng, _patterns(len(counts), relation, ground, form)).format(*phrases)


def parse_caption(caption: str) -> tuple[Claim, ...] | None:
    """The claims of a caption, or None for other texts than `describe_claims` can write."""
    phrases, patterns = _vocabulary()
    found = _PHRASE.findall(caption)
    pattern = patterns.get(_PHRASE.sub("{}", caption))
    if pattern is None or len(found) != len(pattern[0]) or not phrases.keys() >= set(found):
        return None
    order, relation, ground, form = pattern
    return _claims([phrases[found[place]] for place in order], relation, ground, form)


def true_of(claims: Sequence[Claim], scene: Scene) -> bool:
    """Whether every claim holds in the scene."""
    return all(holds(claim, scene) for claim in claims)


def holds(claim: Claim, scene: Scene) -> bool:
    """Whether a claim holds; a relation compares the centres of things, of which there must be some."""
    match claim:
        case Count(count, kind):
            return len(_of(kind, scene)) == count
        case Relation(first, relation, second):
            pairs = list(product(_of(first, scene), _of(second, scene)))
            return bool(pairs) and all(RELATIONS[relation](a, b) > 0 for a, b in pairs)
        case Background(colour):
            return scene.background == colour
        case Proportion(form):
            return form_of(scene) == form


def form_of(scene: Scene) -> str:
    """Which of `FORMS` a scene's picture has."""
    wide, tall, square = FORMS
    return wide if scene.width > scene.height else tall if scene.width < scene.height else square


def _claims(
    counts: Sequence[tuple[Kind, int]], relation: str | None, ground: str, form: str | None
) -> tuple[Claim, ...]:
    claims: list[Claim] = [Count(count, kind) for kind, count in counts]
    claims += [Count(sum(count for _, count in counts), Kind()), Background(ground)]
    claims += [Proportion(form)] if form else []
    return (*claims, *([Relation(counts[0][0], relation, counts[1][0])] if relation else []))


def _clear_relations(scene: Scene, kinds: Sequence[Kind]) -> list[str | None]:
    """No relation, and four times as likely each of those between two kinds whose boxes lie wholly side by side."""
    if len(kinds) != 2:
        return [None]
    pairs = list(product(_of(kinds[0], scene), _of(kinds[1], scene)))
    apart = [[measure(a, b) >= SIZES[a.size] + SIZES[b.size] for a, b in pairs] for measure in RELATIONS.values()]
    return [None, *(name for name, every in zip(RELATIONS, apart, strict=True) if all(every) for _ in range(4))]


def _of(kind: Kind, scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if thing.is_a(kind)]


@cache
def _phrases(count: int, kind: Kind) -> tuple[str, ...]:
    """Every wording of so many things of a kind."""
    ending = "" if count == 1 else "es" if kind.shape == "cross" else "s"
    words = product(NUMBERS[count], SIZE_WORDS[kind.size])
    texts = [f"{number} {size}{kind.colour} {kind.shape}{ending}" for number, size in words]
    return tuple(re.sub("^a (?=[aeiou])", "an ", text) for text in texts)


@cache
def _patterns(kinds: int, relation: str | None, ground: str, form: str | None) -> tuple[str, ...]:
    """Every wording of a caption, with places for its phrases."""
    frames = tuple(frame.format(form) for frame in FRAMES_OF_FORM) if form else FRAMES
    parts = product(GROUNDS[ground], frames, WORDINGS[kinds, relation])
    return tuple(setting.format(frame.format(wording)) for setting, frame, wording in parts)


_PHRASE = re.compile(rf"\b(?:an?|one|two|three|four|five) (?:\w+ )?(?:{'|'.join(COLOURS)}) \w+")


@cache
def _vocabulary() -> tuple[dict[str, tuple[Kind, int]], dict[str, tuple[list[int], str | None, str, str | None]]]:
    """Phrases with what they mean; patterns with their phrases' order, relation, background and picture's form."""
    kinds = [(Kind(*words), count) for *words, count in product(SHAPES, COLOURS, SIZE_WORDS, NUMBERS)]
    phrases = {text: (kind, count) for kind, count in kinds for text in _phrases(count, kind)}
    patterns = {}
    for (count, relation), ground, form in product(WORDINGS, BACKGROUNDS, (None, *FORMS)):
        for pattern in _patterns(count, relation, ground, form):
            places = [int(place) for place in re.findall(r"\d", pattern)]
            order = [places.index(number) for number in range(count)]
            patterns[re.sub(r"\d", "", pattern)] = (order, relation, ground, form)
    return phrases, patterns
