"""What a picture of coloured shapes shows: the exact scene, found in its pixels by geometry alone.

A pixel is a mixture of the background and one colour; the parts that hang together are held against every shape
and size at every quarter of a pixel, as `scenes.render` draws them and as they are when blurred.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
from scipy import ndimage

from transfusion_jax.worlds.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    SUPERSAMPLING,
    Scene,
    Thing,
    render,
)

APART = 0.4  # share of a colour from which on a pixel belongs to a thing
SPECK = 0.3  # of the smallest thing's pixels: what has fewer is noise
SOFT = (0, 0.7)  # deviations, in pixels, of the blur that drawings may have: models draw softly
WORST = 0.2  # squared error of the best match, of its pixels: what is worse has no known shape
UNKNOWN = "unknown"  # the shape of a thing that is none of them
EVERY = np.ones((3, 3))  # pixels hang together at corners, too


def look(image: np.ndarray, unit: int) -> Scene:
    """The scene that a picture `[H, W, 3]` uint8 shows, whose unit is so many pixels: a square picture's side.

    Every thing has the colour and the kind that come nearest; one that comes near to none has the shape `UNKNOWN`,
    as have things that touch each other.
    """
    pixels = image.astype(np.float32)
    median = np.median(pixels.reshape(-1, 3), axis=0)  # things never cover half of a scene
    background = min(BACKGROUNDS, key=lambda name: float(np.sum(np.square(median - BACKGROUNDS[name]))))
    shares, errors = _mixtures(pixels, background)
    share = np.take_along_axis(shares, errors.argmin(0)[None], 0)[0]
    labels, count = ndimage.label(share > APART, EVERY)
    things = []
    for number in range(1, count + 1):
        part = labels == number
        around = ndimage.binary_dilation(part, EVERY)
        colour = int(np.sum(errors * around, axis=(1, 2)).argmin())
        mine = np.where(around, shares[colour], 0)
        if mine.sum() > SPECK * _smallest(unit):
            places = np.argwhere(part)
            middle = (places.min(0) + places.max(0) + 1) // 2
            things.append(_nearest(mine, middle, tuple(COLOURS)[colour], unit))
    height, width, _ = image.shape
    return Scene(background, tuple(things), width / unit, height / unit)


def _mixtures(pixels: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray]:
    """The share of each colour in each pixel, and the squared error of that mixture, `[colours, H, W]` each."""
    difference = pixels - np.array(BACKGROUNDS[background], np.float32)
    ways = np.array(list(COLOURS.values()), np.float32) - np.array(BACKGROUNDS[background], np.float32)
    along = np.einsum("hwc,kc->khw", difference, ways) / np.sum(ways * ways, axis=1)[:, None, None]
    shares = np.clip(along, 0, 1)
    rest = difference[None] - shares[..., None] * ways[:, None, None]
    return shares, np.sum(rest * rest, axis=-1)


def _nearest(share: np.ndarray, middle: np.ndarray, colour: str, unit: int) -> Thing:
    """The shape, size and place whose drawing comes nearest to the shares `[H, W]` of one thing."""
    kinds, templates = _templates(unit)
    window = templates.shape[1]
    corners = [np.array(shift) + middle - window // 2 for shift in itertools.product((-1, 0, 1), repeat=2)]
    padded = np.pad(share, window)
    seen = np.stack([padded[y + window :, x + window :][:window, :window] for y, x in corners])
    squares = np.sum(templates * templates, axis=(1, 2))[:, None] + np.sum(share * share)
    errors = squares - 2 * np.einsum("khw,chw->kc", templates, seen)
    kind, corner = np.unravel_index(errors.argmin(), errors.shape)
    (shape, half, right, down), (y, x) = kinds[kind], corners[corner]
    known = errors[kind, corner] <= WORST * templates[kind].sum()
    return Thing(shape if known else UNKNOWN, colour, half, float(x + right) / unit, float(y + down) / unit)


@cache
def _templates(unit: int) -> tuple[list[tuple[str, str, float, float]], np.ndarray]:
    """Shape, size, and centre in pixels of every drawing of a thing, and its shares of the pixels `[n, W, W]`."""
    window = 2 * math.ceil(max(SIZES.values()) * unit) + 3
    kinds, drawn = [], []
    for shape in SHAPES:
        for name in SIZES:
            for y in range(SUPERSAMPLING):
                for x in range(SUPERSAMPLING):
                    right, down = (window // 2 + z / SUPERSAMPLING for z in (x, y))
                    thing = Thing(shape, "red", name, right / unit, down / unit)
                    kinds.append((shape, name, right, down))
                    drawn.append(_share(thing, unit)[:window, :window])
    sharp = np.stack(drawn)
    return kinds * len(SOFT), np.concatenate([ndimage.gaussian_filter(sharp, (0, blur, blur)) for blur in SOFT])


def _share(thing: Thing, unit: int) -> np.ndarray:
    pixels = render(Scene("black", (thing,)), unit).astype(np.float32)
    return pixels[..., 0] / COLOURS[thing.colour][0]


@cache
def _smallest(unit: int) -> float:
    """Pixels of the smallest thing."""
    return float(_templates(unit)[1].sum((1, 2)).min())
