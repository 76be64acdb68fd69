"""Scenes of coloured shapes: made from (seed, index) alone, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (225, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 0),
    "green": (0, 150, 60),
    "cyan": (0, 200, 225),
    "blue": (30, 70, 220),
    "purple": (125, 40, 170),
    "pink": (255, 110, 200),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
SIZES = {"small": 0.075, "large": 0.15}  # half the side of a thing's box; the picture's side is 1
MARGIN = 0.02  # between a thing's box and the edge
GAP = 0.05  # between two boxes
ROUND = ("circle", "ring")
RING = 0.5  # a ring's width; its radius is 1
CORNERS = {  # in the box from -1 to 1, y downwards
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "star": (
        *((0, -1), (0.28, -0.23), (1, -0.23), (0.44, 0.26), (0.63, 1)),
        *((0, 0.57), (-0.63, 1), (-0.44, 0.26), (-1, -0.23), (-0.28, -0.23)),
    ),
    "cross": (
        *((-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)),
        *((0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)),
    ),
}
SHAPES = (*ROUND, *CORNERS)
COUNTS = (  # how many things of each kind a scene has; every entry is as likely
    *((1,), (2,), (3,), (4,), (5,)),
    *((1, 1),) * 6,
    *((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2)),
    *((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)),
)
FREE, CORNERED = "free", "corners"  # arrangements: of all sizes anywhere, or large ones in the corners
ARRANGEMENTS = FREE, CORNERED
ATTEMPTS = 10  # to place a thing among the others, and as many to place all anew
SUPERSAMPLING = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """What things can have in common; what is None may be anything."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Thing:
    """A shape and the centre of its box, in sides of the picture; y runs downwards."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    def is_a(self, kind: Kind) -> bool:
        """Whether this is of that kind."""
        pairs = ((kind.shape, self.shape), (kind.colour, self.colour), (kind.size, self.size))
        return all(asked in (None, found) for asked, found in pairs)


@dataclass(frozen=True)
class Scene:
    """Things that keep apart from each other, on a plain background; those of a kind stand together."""

    background: str
    things: tuple[Thing, ...]


def scene(seed: int, index: int, arrangement: str = FREE) -> Scene:
    """One of a seed's scenes; in the corners there are four things at most."""
    rng = np.random.default_rng([seed, index])
    background = pick(rng, ("white", *BACKGROUNDS))  # half of them white
    if arrangement == CORNERED:
        return _cornered(rng, background)
    counts = pick(rng, COUNTS)
    while True:  # there is no room for five large things, and chance may find none for four
        kinds = _each(_kinds(rng, len(counts), tuple(SIZES)), counts)
        places = _places(rng, [SIZES[size] for _, _, size in kinds])
        if places:
            return Scene(background, tuple(Thing(*k, *p) for k, p in zip(kinds, places, strict=True)))


def corner(across: int, down: int, size: str) -> tuple[float, float]:
    """The centre of a thing in the corner that is so many sides, 0 or 1, from the top left."""
    low = MARGIN + SIZES[size]
    x, y = (round(low + side * (1 - 2 * low), 4) for side in (across, down))
    return x, y


def from_graph(graph: dict[str, Any]) -> Scene:
    """The scene that `dataclasses.asdict` turned into JSON values."""
    return Scene(graph["background"], tuple(Thing(**thing) for thing in graph["things"]))


def render(scene: Scene, size: int) -> np.ndarray:
    """Pixels `[size, size, 3]` uint8, with smooth edges."""
    side = size * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        x, y, half, colour = thing.x * side, thing.y * side, SIZES[thing.size] * side, COLOURS[thing.colour]
        if thing.shape in ROUND:
            width = half if thing.shape == "circle" else half * RING
            pen.ellipse((x - half, y - half, x + half, y + half), outline=colour, width=round(width))
        else:
            pen.polygon([(x + u * half, y + v * half) for u, v in CORNERS[thing.shape]], fill=colour)
    return np.asarray(canvas.reduce(SUPERSAMPLING))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of them, all as likely."""
    return options[int(rng.integers(len(options)))]


def _cornered(rng: np.random.Generator, background: str) -> Scene:
    counts = pick(rng, [counts for counts in COUNTS if sum(counts) <= 4])
    kinds = _each(_kinds(rng, len(counts), ("large",)), counts)
    places = [corner(int(n) % 2, int(n) // 2, "large") for n in rng.permutation(4)]
    return Scene(background, tuple(Thing(*k, *p) for k, p in zip(kinds, places, strict=False)))


def _each(kinds: Sequence[tuple[str, str, str]], counts: Sequence[int]) -> list[tuple[str, str, str]]:
    return [kind for kind, n in zip(kinds, counts, strict=True) for _ in range(n)]


def _kinds(rng: np.random.Generator, count: int, sizes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    kinds: dict[tuple[str, str, str], None] = {}  # in order, each once
    while len(kinds) < count:
        kinds[pick(rng, SHAPES), pick(rng, tuple(COLOURS)), pick(rng, sizes)] = None
    return list(kinds)


def _places(rng: np.random.Generator, halves: Sequence[float]) -> list[tuple[float, float]]:
    """Centres of boxes that keep apart, or none where chance found no room."""
    for _ in range(ATTEMPTS):
        places: list[tuple[float, float]] = []
        for half in halves:
            low, room = MARGIN + half, 1 - 2 * (MARGIN + half)
            for u, v in rng.random((ATTEMPTS, 2)).tolist():
                x, y = round(low + u * room, 4), round(low + v * room, 4)
                others = zip(places, halves, strict=False)
                if all(max(abs(x - p), abs(y - q)) >= half + other + GAP for (p, q), other in others):
                    places.append((x, y))
                    break
            else:
                break
        else:
            return places
    return []
