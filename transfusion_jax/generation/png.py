"""Drawn images as PNG files that a person can look at."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.paths import Place

SMALLEST = 64  # smaller images are enlarged to this many pixels
GAP = 6
FONT = ImageFont.load_default(14)


def to_pixels(images: Float[np.ndarray, "... _"]) -> UInt8[np.ndarray, "... 3"]:
    """Images `[…, 1 or 3]` in [−1, 1] as `[…, 3]` uint8."""
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def grid(
    images: Iterable[Float[np.ndarray, "_ _ _"]], columns: int, labels: list[str] | None = None
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Images in [−1, 1] row by row on a sheet `[H, W, 3]` uint8, with a label in front of each row.

    Images may differ in shape and are enlarged alike; cells are as wide as the widest, rows as high as theirs.
    """
    pixels = [to_pixels(image) for image in images]
    scale = max(1, SMALLEST // max(len(image) for image in pixels))
    pixels = [image.repeat(scale, 0).repeat(scale, 1) for image in pixels]
    width = max(image.shape[1] for image in pixels) + GAP
    heights = [max(map(len, pixels[at : at + columns])) + GAP for at in range(0, len(pixels), columns)]
    tops = np.cumsum([GAP, *heights]).tolist()
    margin = max((int(FONT.getlength(label)) for label in labels), default=0) + 2 * GAP if labels else 0
    sheet = Image.new("RGB", (margin + columns * width + GAP, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(pixels):
        row, column = divmod(i, columns)
        sheet.paste(Image.fromarray(image), (margin + GAP + column * width, tops[row]))
    for label, top, height in zip(labels or [], tops, heights, strict=False):
        draw.text((GAP, top + height // 2), label, "black", FONT, anchor="lm")
    return np.asarray(sheet)


def write_png(path: Place, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes `[H, W, 3]` uint8, making the folder."""
    write_whole(path, png(image))


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """`[H, W, 3]` uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
