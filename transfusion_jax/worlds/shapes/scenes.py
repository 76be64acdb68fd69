"""Scenes of coloured shapes: made from (seed, index) alone, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
SIZES = {"small": 0.075, "large": 0.15}  # half the side of a thing's box, in units; a square picture's side is 1
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
FREE, CORNERED, SINGLE = "free", "corners", "single"  # arrangements, see `scene`
ARRANGEMENTS = FREE, CORNERED, SINGLE
CORNERED_MOST = {CORNERED: 4, SINGLE: 1}  # things of a scene whose things stand in the corners
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
    """A shape and the centre of its box, in units from the picture's top left; y runs downwards."""

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
    width: float = 1.0  # of the picture, in units: things are as large in a wide picture as in a square one
    height: float = 1.0


def scene(seed: int, index: int, arrangement: str = FREE, width: float = 1.0, height: float = 1.0) -> Scene:
    """One of a seed's scenes, in a picture of the given size in units, at least `least_side` a side.

    Free things have all sizes and stand anywhere; others are large and in the corners, up to four, or a single one.
    """
    rng = np.random.default_rng([seed, index])
    background = pick(rng, ("white", *BACKGROUNDS))  # half of them white
    if arrangement in CORNERED_MOST:
        return _cornered(rng, background, width, height, CORNERED_MOST[arrangement])
    counts = pick(rng, COUNTS)
    while True:  # there is no room for five large things, and chance may find none for four
        kinds = _each(_kinds(rng, len(counts), tuple(SIZES)), counts)
        places = _places(rng, [SIZES[size] for _, _, size in kinds], width, height)
        if places:
            things = tuple(Thing(*k, *p) for k, p in zip(kinds, places, strict=True))
            return Scene(background, things, width, height)


def least_side(arrangement: str) -> float:
    """The least side of a picture, in units: a large thing fits, or two beside each other."""
    large = 2 * SIZES["large"]
    return 2 * MARGIN + (2 * large + GAP if arrangement in CORNERED_MOST else large)


def corner(across: int, down: int, size: str, width: float = 1.0, height: float = 1.0) -> tuple[float, float]:
    """The centre of a thing in the corner that is so many sides, 0 or 1, from the top left."""
    low = MARGIN + SIZES[size]
    x, y = (round(low + n * (side - 2 * low), 4) for n, side in ((across, width), (down, height)))
    return x, y


def to_graph(scene: Scene) -> dict[str, Any]:
    """A scene as JSON values; a square one is written without its sides."""
    sides = ("width", "height") if (scene.width, scene.height) == (1, 1) else ()
    return {name: value for name, value in asdict(scene).items() if name not in sides}


def from_graph(graph: dict[str, Any]) -> Scene:
    """The scene that `to_graph` turned into JSON values."""
    things = tuple(Thing(**thing) for thing in graph["things"])
    return Scene(graph["background"], things, graph.get("width", 1.0), graph.get("height", 1.0))


def render(scene: Scene, size: int) -> np.ndarray:
    """Pixels `[H, W, 3]` uint8, with smooth edges; one unit, a square picture's side, is `size` pixels."""
    side = size * SUPERSAMPLING
    shape = round(scene.width * size) * SUPERSAMPLING, round(scene.height * size) * SUPERSAMPLING
    canvas = Image.new("RGB", shape, BACKGROUNDS[scene.background])
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


def _cornered(rng: np.random.Generator, background: str, width: float, height: float, most: int) -> Scene:
    counts = pick(rng, [counts for counts in COUNTS if sum(counts) <= most])
    kinds = _each(_kinds(rng, len(counts), ("large",)), counts)
    places = [corner(int(n) % 2, int(n) // 2, "large", width, height) for n in rng.permutation(4)]
    things = tuple(Thing(*k, *p) for k, p in zip(kinds, places, strict=False))
    return Scene(background, things, width, height)


def _each(kinds: Sequence[tuple[str, str, str]], counts: Sequence[int]) -> list[tuple[str, str, str]]:
    return [kind for kind, n in zip(kinds, counts, strict=True) for _ in range(n)]


def _kinds(rng: np.random.Generator, count: int, sizes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    kinds: dict[tuple[str, str, str], None] = {}  # in order, each once
    while len(kinds) < count:
        kinds[pick(rng, SHAPES), pick(rng, tuple(COLOURS)), pick(rng, sizes)] = None
    return list(kinds)


def _places(
    rng: np.random.Generator, halves: Sequence[float], width: float, height: float
) -> list[tuple[float, float]]:
    """Centres of boxes that keep apart, or none where chance found no room."""
    for _ in range(ATTEMPTS):
        places: list[tuple[float, float]] = []
        for half in halves:
            low = MARGIN + half
            for u, v in rng.random((ATTEMPTS, 2)).tolist():
                x, y = round(low + u * (width - 2 * low), 4), round(low + v * (height - 2 * low), 4)
                others = zip(places, halves, strict=False)
                if all(max(abs(x - p), abs(y - q)) >= half + other + GAP for (p, q), other in others):
                    places.append((x, y))
                    break
            else:
                break
        else:
            return places
    return []
