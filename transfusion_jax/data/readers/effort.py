"""Refuses images whose small files make long work, before they are decoded.

Work goes with the pixels, but for what a file may repeat as often as it likes: scans of a JPEG, packed texts of a
PNG, layers and precincts of a JPEG 2000, comments of a plain PPM, tiles of a TIFF that are larger than it, and the
parts that stand around pixels, which Pillow reads one by one and keeps as objects of Python.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Iterator

from PIL import Image, JpegImagePlugin, TiffImagePlugin, TiffTags

from transfusion_jax.data.readers.colours import PictureError, jpeg2000_boxes

LARGEST = 1 << 26  # pixels; below the size at which Pillow warns
PASSES = 20  # over as many pixels; encoders write 10 scans, or fewer
PROFILES = 8  # of a PNG, each of up to 16 MiB; there is to be one
PACKED = 64  # texts of a PNG that are unpacked, each of up to 16 MiB, and kept unless they are damaged
PARTS = 1 << 17  # segments of a JPEG, chunks of a PNG, blocks of a GIF before its pixels
VALUES = 1 << 20  # numbers in the tags of a TIFF: offsets and sizes of its strips, and its colours
COMMENTS = 1 << 12  # of a PPM in digits: each moves the mebibyte that it stands in
EXIF = 1 << 22  # bytes; a JPEG's segment has 64 KiB
EXIFS = 64  # segments of a JPEG that make one EXIF, which is copied for each

PACKETS = 1 << 20  # of a JPEG 2000: layers, for each level of each precinct; encoders write a quarter, or fewer

SIZ, COD, COC, PART, DATA, END_OF_IMAGE = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9  # JPEG 2000's markers
CODING = {COD: 5, COC: 2}  # and where they have the number of levels
KNOWN = {
    0xFF00 | low for low in b"\x50\x51\x52\x53\x55\x57\x58\x59\x5c\x5d\x5e\x5f\x60\x61\x63\x64\x74\x75\x77\x78\x90"
}
SCAN, END, ALONE = b"\xda", b"\xd9", (b"\x01", b"\xd8")  # JPEG's markers; the last ones have no length
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # but those that stand within a scan


def check_file(data: bytes) -> None:
    """Refuses what makes long work when a file is opened.

    Raises:
        PictureError: it has too many parts, or its tags too many values.
    """
    for begin, check in _OPENINGS.items():
        if data.startswith(begin):
            check(data)


def check_image(image: Image.Image, data: object) -> None:
    """Refuses what makes long work when an opened image is decoded.

    Raises:
        PictureError: it has too many pixels, or goes over them too often.
    """
    if image.width * image.height > LARGEST:
        raise PictureError(f"too many pixels: {image.width}×{image.height}")
    if (size := len(image.info.get("exif") or b"")) > EXIF:
        raise PictureError(f"too much EXIF: {size:,} bytes, and an image may have {EXIF:,}")
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


def _check_jpeg2000(image: Image.Image, data: bytes) -> None:
    bare = data.startswith(b"\xff\x4f")
    code = data if bare else next((body for kind, body in jpeg2000_boxes(data) if kind == b"jp2c"), b"")
    pixels, tiles, channels, layers, precincts = image.width * image.height, 1, 1, 1, 1
    for marker, body in _headers(code):
        if marker == SIZ:
            right, below, across, down = struct.unpack_from(">2I8x2I", body, 2)
            tiles, (channels,) = -(-right // across) * -(-below // down), struct.unpack_from(">H", body, 34)
        elif marker in CODING:
            at = CODING[marker]  # the number of levels; the sizes of precincts are the last thing
            layers = max(layers, struct.unpack_from(">H", body, 2)[0]) if marker == COD else layers
            told = body[at + 5 :] if body[0 if marker == COD else 1] & 1 else b"\xff" * 33
            sizes = told[: body[at] + 1]
            found = (
                pixels >> 2 * (len(sizes) - 1 - n) >> (size & 15) + (size >> 4) for n, size in enumerate(sizes)
            )
            precincts = max(precincts, sum(tiles + each for each in found))
    if (packets := layers * channels * precincts) > PACKETS:
        raise PictureError(f"too many packets: {packets} of {image.width}×{image.height} pixels")


def _headers(code: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers of a JPEG 2000 and what they say, of all and of each part of a tile."""
    at, end = 2, len(code)
    while at + 4 <= len(code):
        marker, size = struct.unpack_from(">HH", code, at)
        if marker == END_OF_IMAGE:
            return
        if marker == DATA:
            at = max(end, at + 2)
            continue
        if marker not in KNOWN or size < 2:
            raise PictureError(f"damaged image: unknown marker {marker:#x}")
        body = code[at + 4 : at + 2 + size]
        if marker == PART:
            (length,) = struct.unpack_from(">I", body, 2)
            end = at + length if length else len(code)
        yield marker, body
        at += 2 + size


def _open_png(data: bytes) -> None:
    if (profiles := data.count(b"iCCP")) > PROFILES:
        raise PictureError(f"too many profiles: {profiles}")
    if (texts := data.count(b"zTXt") + data.count(b"iTXt")) > PACKED:
        raise PictureError(f"too many packed texts: {texts}")
    _count_parts(_png_chunks(data))


def _open_jpeg(data: bytes) -> None:
    if (segments := data.count(b"Exif\0\0")) > EXIFS:
        raise PictureError(f"too much EXIF: {segments} segments")
    _count_parts(_jpeg_segments(data))


def _open_gif(data: bytes) -> None:
    _count_parts(_gif_blocks(data))


def _open_plain(data: bytes) -> None:
    if (comments := data.count(b"#")) > COMMENTS:
        raise PictureError(f"too many comments: {comments:,}")


def _open_tiff(data: bytes) -> None:
    """Counts numbers of more than one byte; Pillow makes a whole number of Python of each."""
    order = "<" if data[:1] == b"I" else ">"
    place, number, entry = (8, "Q", "HHQ8x") if data[2:3] == b"+" else (4, "H", "HHI4x")
    try:
        (at,) = struct.unpack_from(order + entry[2], data, place)
        (tags,) = struct.unpack_from(order + number, data, at)
        begin, size = at + struct.calcsize(number), struct.calcsize(order + entry)
        end = min(begin + tags * size, len(data))
        listed = struct.iter_unpack(order + entry, data[begin : end - (end - begin) % size])
        values = sum(min(count, len(data)) for _, kind, count in listed if kind not in _BYTES)
    except struct.error:  # cut off: opening it says so
        return
    if values > VALUES:
        raise PictureError(f"too many values in tags: {values:,}")


def _count_parts(parts: Iterator[None]) -> None:
    if sum(1 for _ in itertools.islice(parts, PARTS + 1)) > PARTS:
        raise PictureError(f"too many parts: an image's file may have {PARTS:,} around its pixels")


def _png_chunks(data: bytes) -> Iterator[None]:
    at = 8
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        yield
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _jpeg_segments(data: bytes) -> Iterator[None]:
    """The parts before a JPEG's first scan, a byte that is of none among them, as Pillow tells them apart."""
    at = 2
    while at + 2 <= len(data):
        yield
        marker = int.from_bytes(data[at : at + 2], "big")
        if marker == 0xFFDA:
            return
        if marker in JpegImagePlugin.MARKER:
            at += 2
            if JpegImagePlugin.MARKER[marker][2] is not None:
                at += max(2, int.from_bytes(data[at : at + 2], "big"))
        else:
            at += 1


def _gif_blocks(data: bytes) -> Iterator[None]:
    """The blocks before a GIF's first picture, a byte that is of none among them."""
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while at < len(data) and data[at] not in b",;":
        yield
        if data[at] != 0x21:  # what an extension begins with
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield
            at += 1 + data[at]
        at += 1


_BYTES = (TiffTags.BYTE, TiffTags.ASCII, TiffTags.UNDEFINED)
_OPENINGS: dict[bytes, Callable[[bytes], None]] = {
    b"\x89PNG": _open_png,
    b"\xff\xd8": _open_jpeg,
    b"GIF8": _open_gif,
    **dict.fromkeys((b"P1", b"P2", b"P3"), _open_plain),
    **dict.fromkeys(TiffImagePlugin.PREFIXES, _open_tiff),
}
_CHECKS: dict[str, Callable[..., None]] = {
    "JPEG2000": _check_jpeg2000,
    "JPEG": _check_jpeg,
    "MPO": _check_jpeg,
    "TIFF": _check_tiff,
}
