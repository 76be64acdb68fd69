"""Drawn images as PNG files that a person can look at."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.paths import Place

SMALLEST = 64  # smaller images are enlarged to this many pixels
GAP = 6
FONT = ImageFont.load_default(14)


def to_pixels(images: Float[np.ndarray, "S H W _"]) -> UInt8[np.ndarray, "S H W 3"]:
    """`[S, H, W, 1 or 3]` in [−1, 1] as `[S, H, W, 3]` uint8."""
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def grid(
    images: Float[np.ndarray, "S H W _"], columns: int, labels: list[str] | None = None
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Images row by row on a sheet `[H, W, 3]` uint8, with a label in front of each row."""
    pixels = to_pixels(images)
    scale = max(1, SMALLEST // pixels.shape[1])
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    size_y, size_x = (n + GAP for n in pixels.shape[1:3])
    rows = -(-len(pixels) // columns)
    margin = max((int(FONT.getlength(label)) for label in labels), default=0) + 2 * GAP if labels else 0
    sheet = Image.new("RGB", (margin + columns * size_x + GAP, rows * size_y + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(pixels):
        row, column = divmod(i, columns)
        sheet.paste(Image.fromarray(image), (margin + GAP + column * size_x, GAP + row * size_y))
    for row, label in enumerate(labels or []):
        draw.text((GAP, GAP + row * size_y + size_y // 2), label, "black", FONT, anchor="lm")
    return np.asarray(sheet)


def write_png(path: Place, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes `[H, W, 3]` uint8, making the folder."""
    write_whole(path, png(image))


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """`[H, W, 3]` uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
