"""Refuses images whose small files make long work, before they are decoded.

Work goes with the pixels, but for what a file may repeat as often as it likes: scans of a JPEG, profiles of a PNG,
layers and precincts of a JPEG 2000, and tiles of a TIFF that are larger than it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from PIL import Image

from transfusion_jax.data.readers.colours import PictureError

LARGEST = 1 << 26  # pixels; below the size at which Pillow warns
PASSES = 20  # over as many pixels; encoders write 10 scans, or fewer
PROFILES = 8  # of a PNG, each of up to 16 MiB; there is to be one

SCAN, END, ALONE = b"\xda", b"\xd9", (b"\x01", b"\xd8")  # JPEG's markers; the last ones have no length
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # but those that stand within a scan


def check_file(data: bytes) -> None:
    """Refuses what makes long work when a file is opened.

    Raises:
        PictureError: it has too many profiles.
    """
    if data.startswith(b"\x89PNG") and (profiles := data.count(b"iCCP")) > PROFILES:
        raise PictureError(f"too many profiles: {profiles}")


def check_image(image: Image.Image, data: object) -> None:
    """Refuses what makes long work when an opened image is decoded.

    Raises:
        PictureError: it has too many pixels, or goes over them too often.
    """
    if image.width * image.height > LARGEST:
        raise PictureError(f"too many pixels: {image.width}×{image.height}")
    if check := _CHECKS.get(image.format or ""):
        check(image, data)


def _check_jpeg(image: Image.Image, data: bytes) -> None:
    most = PASSES * LARGEST // (image.width * image.height)
    if data.count(b"\xff" + SCAN) > most and (scans := _scans(data)) > most:  # it may count more, but is quick
        raise PictureError(f"too many scans: {scans} of {image.width}×{image.height} pixels")


def _scans(data: bytes) -> int:
    """How often a JPEG goes over its pixels, as far as its end."""
    at = scans = 0
    while (marker := _MARKER.search(data, at)) and marker[1] != END:
        at = marker.end()
        scans += marker[1] == SCAN
        if marker[1] not in ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _check_tiff(image: Image.Image, data: bytes) -> None:
    del data
    width, height = (image.tag_v2.get(tag, 0) for tag in (322, 323))  # type: ignore[attr-defined]
    if width * height > LARGEST:
        raise PictureError(f"too many pixels: a tile of {width}×{height}")


_CHECKS: dict[str, Callable[..., None]] = {"JPEG": _check_jpeg, "MPO": _check_jpeg, "TIFF": _check_tiff}
