"""What the numbers in an image's file mean, as colours of sRGB: depth, key colours, profiles and transparency.

Pillow decodes the numbers. It leaves out how white a 12-bit, 16-bit or 32-bit grey is, that 16-bit TIFFs may count
from white to black, the depth at which a PNG states its transparent colour, and all profiles.
"""

from __future__ import annotations

import io
import itertools
import struct
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin

II, MM = b"II", b"MM"  # how TIFF names its byte orders
ORDERS = (II, MM)
NATIVE = II if sys.byteorder == "little" else MM
GREY_ALPHA = {1: "La", 2: "LA"}  # by TIFF's kind of extra sample; the first is multiplied into the grey
TIFF_KINDS: dict[
    Any, tuple[str, str]
] = {  # kinds of grey that Pillow's table lacks, by its key: order, photometric, format, fill, bits, extra
    **{(order, 0, (1,), 1, (12,), ()): ("I;16", "I;12") for order in ORDERS},
    (MM, 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (MM, 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (II, 0, (2,), 1, (16,), ()): ("I", "I;16S"),
    (MM, 0, (2,), 1, (16,), ()): ("I", "I;16BS"),
    (MM, 1, (1,), 1, (32,), ()): ("I", "I;32BS"),
    **{(II, 0, (kind,), 1, (32,), ()): ("I", "I;32S") for kind in (1, 2)},
    **{(MM, 0, (kind,), 1, (32,), ()): ("I", "I;32BS") for kind in (1, 2)},
    **{
        (order, 0, (1,), 1, (8, 8), (extra,)): (mode, mode)
        for order in ORDERS
        for extra, mode in GREY_ALPHA.items()
    },
    **{
        (order, white, (1,), 1, (16, 16), (extra,)): ("RGBA", "RGBA")  # of two bytes each: see `_grey_alpha`
        for order, white, extra in itertools.product(ORDERS, (0, 1), GREY_ALPHA)
    },
}
TiffImagePlugin.OPEN_INFO |= TIFF_KINDS
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # bytes of a profile or a note; Pillow refuses images with more than 1 MiB

KEY_LEVELS = {"L;2": 3, "L;4": 15}  # PNG states a transparent grey at the file's depth
SPACES = {  # of profiles: the mode in which a transform takes pixels, and the modes of images that it is valid for
    "GRAY": ("L", ("1", "L", "LA")),
    "RGB": ("RGB", ("P", "PA", "RGB", "RGBX", "RGBA", "YCbCr", "HSV")),
    "CMYK": ("CMYK", ("CMYK",)),
}
STRIP = 1 << 20  # pixels whose colours are worked out at a time
SAME = 2  # levels of 255: a profile that moves no colour further is another writing of sRGB
PROBES = {  # by mode
    "L": np.arange(256).astype(np.uint8)[None],
    "RGB": np.stack(np.meshgrid(*[np.arange(0, 256, 15).astype(np.uint8)] * 3), -1).reshape(18, -1, 3),
}
BROKEN_PROFILE = (OSError, TypeError, ValueError, ImageCms.PyCMSError)


class PictureError(Exception):
    """Why an image cannot be used: a few words, then details after a colon."""


def read_pixels(image: Image.Image, data: bytes | np.ndarray) -> Image.Image:
    """Reads an opened image's pixels into a mode of 8 bits, with the profile and the key colour that its file has.

    `data` is what was opened.

    Raises:
        PictureError: how white its numbers are cannot be known.
    """
    image = LOADERS.get(image.format or "", _load)(image, data)
    if image.mode == "F":
        raise PictureError("unknown range of pixels: floating point")
    if image.mode.startswith("I"):
        return _grey(image, 65535)
    return _straight(image)


def in_srgb(image: Image.Image, mode: str) -> Image.Image:
    """A loaded image in mode L or RGB, transparent parts white.

    An ICC profile is applied where it is whole and fits the pixels, and says nothing otherwise.
    """
    return by_strips(image, mode, lambda strip: _shown(strip).convert(mode))


def by_strips(image: Image.Image, mode: str, made: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What is made of an image pixel by pixel, some rows at a time: what is needed on the way stays small.

    Args:
        image: it is loaded.
        mode: of what is made.
        made: from a part of it.
    """
    across, down = image.size
    wide = min(across, STRIP)
    high = max(1, STRIP // across)
    if wide == across and high >= down:
        return made(image)
    found = Image.new(mode, image.size)
    for top, left in itertools.product(range(0, down, high), range(0, across, wide)):
        box = (left, top, min(left + wide, across), min(top + high, down))
        found.paste(made(image.crop(box)), box)
    return found


def _shown(image: Image.Image) -> Image.Image:
    """An image in sRGB, transparent parts white."""
    clear = image.has_transparency_data
    shown = image.convert("RGBA" if clear else "RGB")
    if (profiled := _profiled(image)) is not None:
        if clear:
            profiled.putalpha(shown.getchannel("A"))
        shown = profiled
    if clear:
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return shown.convert("RGB")


def _load(image: Image.Image, data: object) -> Image.Image:
    del data
    image.load()
    return image


def _load_png(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    packed, key = image.tile[0].args, image.info.get("transparency")
    image.load()
    if packed == "LA;16B":  # Pillow makes colours of it
        return image.convert("LA")
    if key is not None and packed in KEY_LEVELS:
        levels = KEY_LEVELS[packed]
        image.info["transparency"] = (key & levels) * 255 // levels
    elif key is not None and packed == "RGB;16B":
        return _without_key(image, data, key)
    return image


def _without_key(image: Image.Image, data: bytes, key: tuple[int, int, int]) -> Image.Image:
    """16-bit colours as RGBA: Pillow keeps their high bytes alone, and the key is found by both."""
    low = Image.open(io.BytesIO(data), formats=["PNG"])
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # of two bytes, what is high here is low there
    alpha = Image.new("L", image.size)
    for part, levels in ((image, [level >> 8 for level in key]), (low, [level & 255 for level in key])):
        for band, level in enumerate(levels):
            other = part.getchannel(band).point([255 * (found != level) for found in range(256)])
            alpha = ImageChops.lighter(alpha, other)
    del image.info["transparency"]
    image.putalpha(alpha)
    return image


def _load_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes) -> Image.Image:
    del data
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    planes = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    extra = image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, ())
    if planes and len(bits) == 2 and any(extra):
        raise PictureError("unsupported image: TIFF with grey and alpha in separate planes")
    order = image.tag_v2.prefix if image.tile[0].codec_name == "raw" else NATIVE
    image.tile = [_unpacked(tile, bits, planes, order) for tile in image.tile]
    image.load()
    if bits == (16, 16) and image.mode == "RGBA":
        found = by_strips(image, "LA", lambda strip: _grey_alpha(strip, order, GREY_ALPHA[extra[0]], inverted))
        found.info = dict(image.info)
        return found
    if image.mode in ("LA", "La"):
        return _inverted(_straight(image)) if inverted else image
    if not image.mode.startswith("I"):
        return image
    if bits[0] < 32:
        return _grey(image, (1 << bits[0]) - 1, inverted)
    counted = 255 if image.getextrema()[1] < 256 else 65535  # type: ignore[operator]  # the file does not say how far
    return _grey(image, counted, inverted)


def _unpacked(tile: ImageFile._Tile, bits: tuple[int, ...], planes: bool, order: bytes) -> ImageFile._Tile:
    """A tile as Pillow should unpack it, where its own choice is the wrong byte order or the wrong depth."""
    if not isinstance(tile.args, tuple):
        return tile
    packed, *more = tile.args
    if tile.codec_name == "libtiff":
        packed = packed.replace("BS", "NS")
    elif planes and bits[0] == 16:
        packed += ";16L" if order == II else ";16B"
    return tile._replace(args=(packed, *more))


def _grey_alpha(image: Image.Image, order: bytes, mode: str, inverted: bool) -> Image.Image:
    """Grey and alpha of 16 bits, read as four bands of 8: two low bytes and two high ones."""
    bands = image.split()
    found = _straight(Image.merge(mode, bands[1::2] if order == II else bands[::2]))
    return _inverted(found) if inverted else found


def _straight(image: Image.Image) -> Image.Image:
    """An image whose colours are not multiplied by alpha."""
    return image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image


def _inverted(image: Image.Image) -> Image.Image:
    """Grey and alpha, counted from white to black, the other way round."""
    grey, alpha = image.split()
    found = Image.merge("LA", (ImageChops.invert(grey), alpha))
    found.info = dict(image.info)
    return found


def _load_jpeg2000(image: Image.Image, data: bytes) -> Image.Image:
    image.load()
    header = next((body for kind, body in jpeg2000_boxes(data) if kind == b"jp2h"), b"")
    colours = (body for kind, body in jpeg2000_boxes(header) if kind == b"colr")
    profile = next((body[3:] for body in colours if body[:1] == b"\2"), None)
    if profile is None:
        return image
    if image.mode == "RGBA" and profile[16:20] == b"CMYK":  # Pillow takes any four channels so
        image = Image.merge("CMYK", image.split())
    image.info["icc_profile"] = profile
    return image


def jpeg2000_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """JPEG 2000's boxes: kinds and contents."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1 and at + 16 <= len(data):
            (size,), begin = struct.unpack_from(">Q", data, begin), at + 16
        end = at + size if size else len(data)
        if end < begin:
            return
        yield kind, data[begin:end]
        at = end


def _load_bmp(image: Image.Image, data: bytes) -> Image.Image:
    image.load()
    if data[14:18] == struct.pack("<I", 124) and data[70:74] == b"DEBM":  # a header of version 5 with a profile
        begin, size = struct.unpack_from("<II", data, 126)
        image.info["icc_profile"] = data[14 + begin : 14 + begin + size]
    return image


LOADERS: dict[str, Callable[..., Image.Image]] = {
    "PNG": _load_png,
    "TIFF": _load_tiff,
    "JPEG2000": _load_jpeg2000,
    "BMP": _load_bmp,
}


def _grey(image: Image.Image, white: int, inverted: bool = False) -> Image.Image:
    """Grey of 8 bits from grey that reaches up to `white`; Pillow's own conversion clips."""
    key = image.info.get("transparency")

    def made(strip: Image.Image) -> Image.Image:
        pixels = np.asarray(strip)
        if pixels.min() < 0 or pixels.max() > white:
            raise PictureError("unknown range of pixels: 32 bits")
        levels = ((pixels.astype(np.int32) * 255 + white // 2) // white).astype(np.uint8)
        grey = Image.fromarray(255 - levels if inverted else levels)
        if key is not None:
            grey.putalpha(Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8)))
        return grey

    found = by_strips(image, "L" if key is None else "LA", made)
    found.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return found


def _profiled(image: Image.Image) -> Image.Image | None:
    """The image's colours by its profile, in RGB; None where that says nothing or changes nothing."""
    profile = image.info.get("icc_profile")
    found = _to_srgb(profile) if isinstance(profile, bytes) else None
    if found is None:
        return None
    space, transform = found
    mode, fitting = SPACES[space]
    return transform.apply(image.convert(mode)) if image.mode in fitting else None


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """A profile's colour space and its transform to sRGB; None where it is broken, or sRGB itself."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = own.profile.xcolor_space.strip()
        if space not in SPACES:
            return None
        mode = SPACES[space][0]
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
    except BROKEN_PROFILE:
        return None
    if mode in PROBES:
        probe = Image.fromarray(PROBES[mode])
        moved = np.asarray(transform.apply(probe)).astype(np.int16) - np.asarray(probe.convert("RGB"))
        if abs(moved).max() <= SAME:
            return None
    return space, transform
