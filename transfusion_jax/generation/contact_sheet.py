"""Images with their captions under them, on one sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from transfusion_jax.generation.png import FONT, GAP, to_pixels

WIDTH = 144  # pixels that a caption needs; smaller images are enlarged to it
LINES = 5  # of a caption; what is longer ends in …
LEADING = 17  # pixels from line to line
FRAME = "#cccccc"  # around each image: white ones are seen, too
UNASSIGNED = "\U0010ffff"  # never a character: shown as the font shows what it lacks


def contact_sheet(
    images: Sequence[Float[np.ndarray, "_ _ _"]], captions: list[str], columns: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Images in [−1, 1] row by row on a sheet `[H, W, 3]` uint8, each with its caption under it.

    Images may differ in shape and are enlarged alike; cells are as wide as the widest, rows as high as theirs.
    """
    pixels = [to_pixels(image) for image in images]
    scale = max(1, -(-WIDTH // max(image.shape[1] for image in pixels)))
    pixels = [image.repeat(scale, 0).repeat(scale, 1) for image in pixels]
    width = max(image.shape[1] for image in pixels)
    texts = [shortened(list(wrapped(legible(caption), width))) for caption in captions]
    rows = [range(at, min(at + columns, len(pixels))) for at in range(0, len(pixels), columns)]
    highest = [max(len(pixels[i]) for i in row) for row in rows]
    heights = [
        high + GAP + LEADING * max(len(texts[i]) for i in row) + 2 * GAP
        for high, row in zip(highest, rows, strict=True)
    ]
    size = (min(columns, len(pixels)) * (width + GAP) + GAP, sum(heights) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, high, y in zip(rows, highest, np.cumsum([GAP, *heights]).tolist(), strict=False):
        for column, i in enumerate(row):
            x = GAP + column * (width + GAP)
            top = y + high - len(pixels[i])
            draw.rectangle((x - 1, top - 1, x + pixels[i].shape[1], y + high), outline=FRAME)
            sheet.paste(Image.fromarray(pixels[i]), (x, top))
            for number, line in enumerate(texts[i]):
                draw.text((x, y + high + GAP + number * LEADING), line, "black", FONT)
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
