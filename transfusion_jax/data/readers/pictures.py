"""From the bytes of an image's file to pixels of the size that is kept.

JPEG's quick decoding at half or quarter size is not used: on photographs it moves single pixels by up to 60 of 255
and the mean by 1 or 2, and it helps only where the picture is far larger than what is kept.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from transfusion_jax.data.readers.colours import PictureError as PictureError
from transfusion_jax.data.readers.colours import in_srgb, read_pixels
from transfusion_jax.data.readers.effort import LARGEST as LARGEST
from transfusion_jax.data.readers.effort import check_file, check_image
from transfusion_jax.data.readers.proportions import Proportions

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")  # no format that runs programs

T = TypeVar("T")

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # of AVIF
    struct.error,
    zlib.error,
)
_UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    data: bytes | np.ndarray, size: int | tuple[int, int] | Proportions, channels: int, min_size: int = 0
) -> np.ndarray:
    """The middle of an upright image, resized with Lanczos's filter: `[height, width, channels]` uint8.

    A `size` is the side of a square, or width and height, to which smaller images are enlarged, or says how much of
    its proportions an image keeps. `data` is a file's bytes, or pixels `[H, W, 3 or 1]` uint8. Transparent parts
    become white, an animation is its first frame, 16 bits become 8 by scaling, and colours of other profiles become
    those of sRGB. One channel is grey.

    Raises:
        PictureError: it is no image, or damaged, above `LARGEST` pixels, makes far more work than its pixels do, or
            its smaller side is below `min_size`, or its proportions are refused.
    """
    with warnings.catch_warnings():  # filters are the process's: threads that decode at once see each other's
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = _open(data)
            check_image(image, data)
            if min(image.size) < min_size:
                raise PictureError(f"too small: {image.width}×{image.height}")
            image = in_srgb(_upright(read_pixels(image, data)), "L" if channels == 1 else "RGB")
            sides = (size, size) if isinstance(size, int) else size
            width, height = sides.size(*image.size) if isinstance(sides, Proportions) else sides
            fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PictureError("too many pixels: " + str(error)) from error
        except _DAMAGE as error:
            raise PictureError(f"damaged image: {' '.join(str(error).split())[:100]}") from error
    return np.asarray(fitted).reshape(height, width, channels)


def area(data: bytes) -> int:
    """How many pixels an image's file says that it has; 0 where it is no image, which `decode` explains."""
    return _of_header(data, lambda image: image.width * image.height, 0)


def texts_in(data: bytes) -> dict[str, str]:
    """What an image's file says in words, such as a PNG's `Title`; nothing where it is no image."""
    return _of_header(data, lambda image: {str(k): v for k, v in image.info.items() if isinstance(v, str)}, {})


def _of_header(data: bytes, ask: Callable[[Image.Image], T], otherwise: T) -> T:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _open(data) as image:
                return ask(image)
        except (PictureError, Image.DecompressionBombError, *_DAMAGE):
            return otherwise


def _open(data: bytes | np.ndarray) -> Image.Image:
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] not in (1, 3) or not data.size:
            raise PictureError(f"pixels are not [H, W, 3 or 1] uint8: {data.shape} {data.dtype}")
        return Image.fromarray(data[..., 0] if data.shape[2] == 1 else data)
    if not data:
        raise PictureError("zero bytes")
    check_file(data)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        kinds = [name for name in FORMATS if (accept := Image.OPEN[name][1]) and accept(data[:16]) is True]
        known = f": damaged, or a kind of {kinds[0]} that cannot be read" if kinds else ""
        raise PictureError(f"not an image{known}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:  # broken EXIF says nothing
        turn = None
    return image if turn is None else image.transpose(turn)
