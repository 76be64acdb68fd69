"""Images with their captions under them, on one sheet."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from transfusion_jax.generation.png import FONT, GAP, to_pixels

WIDTH = 144  # pixels that a caption needs; smaller images are enlarged to it
LINES = 5  # of a caption; what is longer ends in …
LEADING = 17  # pixels from line to line
UNASSIGNED = "\U0010ffff"  # never a character: shown as the font shows what it lacks


def contact_sheet(
    images: Float[np.ndarray, "S H W _"], captions: list[str], columns: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Images in [−1, 1] row by row on a sheet `[H, W, 3]` uint8, each with its caption under it."""
    pixels = to_pixels(images)
    scale = max(1, -(-WIDTH // pixels.shape[2]))
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    height, width = pixels.shape[1:3]
    texts = [shortened(list(wrapped(legible(caption), width))) for caption in captions]
    rows = [range(at, min(at + columns, len(pixels))) for at in range(0, len(pixels), columns)]
    heights = [height + GAP + LEADING * max(len(texts[i]) for i in row) + 2 * GAP for row in rows]
    size = (min(columns, len(pixels)) * (width + GAP) + GAP, sum(heights) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, y in zip(rows, np.cumsum([GAP, *heights]).tolist(), strict=False):
        for column, i in enumerate(row):
            x = GAP + column * (width + GAP)
            sheet.paste(Image.fromarray(pixels[i]), (x, y))
            for number, line in enumerate(texts[i]):
                draw.text((x, y + height + GAP + number * LEADING), line, "black", FONT)
    return np.asarray(sheet)


def legible(text: str) -> str:
    """A text on one line in characters that the font has; the others are escapes, such as \\u65e5."""
    return "".join(c if _is_drawn(c) else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of a text that are at most so many pixels wide, cut between words where that is possible."""
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if FONT.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        line = word
        while FONT.getlength(line) > width:
            cut = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or FONT.getlength(line[:n]) <= width)
            yield line[:cut]
            line = line[cut:]
    yield line


def shortened(lines: list[str]) -> list[str]:
    """The first lines of a caption."""
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1][:-2]}…"]


@cache
def _is_drawn(character: str) -> bool:
    return character == " " or _drawn(character) not in (_drawn(UNASSIGNED), b"")


def _drawn(character: str) -> bytes:
    return bytes(FONT.getmask(character))
