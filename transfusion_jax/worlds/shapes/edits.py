"""Changes of scenes that a sentence asks for, and which of them a picture shows.

Every change is exact: what was asked for is one scene, whose picture is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from transfusion_jax.worlds.shapes.scenes import COLOURS, GAP, SIZES, Kind, Scene, Thing, corner, pick, render

CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
WORDINGS = {
    "recolour": ("make {} {}", "paint {} {}", "turn {} {}"),
    "move": ("move {} to the {} corner", "put {} in the {} corner"),
    "remove": ("remove {}", "take away {}", "delete {}"),
}


@dataclass(frozen=True)
class Edit:
    """One change: what is done to the things of a kind, and the scene that comes of it."""

    action: str  # a key of `WORDINGS`
    kind: Kind
    value: str  # the new colour, the corner, or nothing
    after: Scene


def possible_edits(scene: Scene) -> list[Edit]:
    """Everything that can be asked of a scene.

    All things of a kind change their colour; one that is alone of its kind goes to a corner that has room for it;
    those of a kind are removed where others stay.
    """
    found = []
    for kind in _kinds(scene):
        chosen = [thing for thing in scene.things if thing.is_a(kind)]
        others = tuple(thing for thing in scene.things if not thing.is_a(kind))
        for colour in COLOURS:
            painted = tuple(replace(t, colour=colour) if t in chosen else t for t in scene.things)
            like = Kind(chosen[0].shape, colour)
            if colour != chosen[0].colour and not any(thing.is_a(like) for thing in others):
                found.append(Edit("recolour", kind, colour, replace(scene, things=painted)))
        if len(chosen) == 1:
            for name, sides in CORNERS.items():
                x, y = corner(*sides, chosen[0].size, scene.width, scene.height)
                moved = replace(chosen[0], x=x, y=y)
                if _apart(moved, others) and _distance(moved, chosen[0]) > SIZES[moved.size]:
                    things = tuple(moved if t in chosen else t for t in scene.things)
                    found.append(Edit("move", kind, name, replace(scene, things=things)))
        if others:
            found.append(Edit("remove", kind, "", replace(scene, things=others)))
    return found


def choose_edit(scene: Scene, rng: np.random.Generator) -> Edit:
    """One of them, each action as likely where there is any."""
    every = possible_edits(scene)
    action = pick(rng, [a for a in WORDINGS if any(edit.action == a for edit in every)])
    return pick(rng, [edit for edit in every if edit.action == action])


def describe_edit(edit: Edit, scene: Scene, rng: np.random.Generator) -> str:
    """The sentence that asks for it."""
    kind, count = edit.kind, sum(thing.is_a(edit.kind) for thing in scene.things)
    size = f"{kind.size} " if kind.size else ""
    ending = "" if count == 1 else "es" if kind.shape == "cross" else "s"
    phrase = f"the {size}{kind.colour} {kind.shape}{ending}"
    return pick(rng, WORDINGS[edit.action]).format(phrase, edit.value).strip()


def shown(image: np.ndarray, scenes: Sequence[Scene]) -> int:
    """Which of the scenes, all of its form, a picture `[H, W, 3]` uint8 comes nearest to, by squared error."""
    errors = [np.mean(np.square(image - render(s, round(len(image) / s.height)).astype(float))) for s in scenes]
    return int(np.argmin(errors))


def _kinds(scene: Scene) -> list[Kind]:
    """The kinds of things by shape and colour, and by size, too, where that alone tells two apart."""
    plain = dict.fromkeys(Kind(t.shape, t.colour) for t in scene.things)
    found = []
    for kind in plain:
        sizes = dict.fromkeys(t.size for t in scene.things if t.is_a(kind))
        found += [kind] if len(sizes) == 1 else [replace(kind, size=size) for size in sizes]
    return found


def _apart(thing: Thing, others: Sequence[Thing]) -> bool:
    return all(_distance(thing, other) >= SIZES[thing.size] + SIZES[other.size] + GAP for other in others)


def _distance(one: Thing, other: Thing) -> float:
    return max(abs(one.x - other.x), abs(one.y - other.y))
