"""PNG and TIFF files written by hand, of every kind that the formats have, and what their colours are."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from data.readers import profiles

SIDE = 16
ORIENTED = {  # what EXIF's orientations do to the pixels of a file
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a, 1),
}


INTERLACED = (  # PNG's passes: where each begins, and its steps, to the right and down
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


@dataclass(frozen=True)
class Kind:
    """A way to store pixels; levels are of 255."""

    space: str  # grey, RGB, CMYK, Lab, YCbCr, palette
    bits: int
    alpha: str = ""  # straight, associated, key, palette
    inverted: bool = False  # grey counts from white
    signed: bool = False
    largest: int = 0  # the file's white, where its depth does not say it

    @property
    def white(self):
        return self.largest or (1 << self.bits) - 1

    @property
    def channels(self):
        return {"grey": 1, "palette": 1, "CMYK": 4}.get(self.space, 3)

    @property
    def fitting(self):
        """The space of profiles that fit."""
        return {"YCbCr": "RGB", "palette": "RGB"}.get(self.space, self.space)

    def samples(self, name, seed=0):
        """Numbers to store, `[16, 16, channels]`, their alpha in [0, 1], and the palette."""
        random = np.random.default_rng(seed)
        palette = random.integers(0, 256, (1 << min(self.bits, 8), 3)).astype(np.uint8)
        top = len(palette) - 1 if self.space == "palette" else self.white
        values = random.integers(0, top + 1, (SIDE, SIDE, self.channels))
        if profiles.SPACES.get(name) == "CMYK" == self.space:
            values = np.where(values > top // 2, top, 0)  # whole inks: between them, a press may do anything
        if self.space == "Lab":  # colours well within sRGB
            values[..., 0] = 120 + values[..., 0] // 4
            values[..., 1:] = (values[..., 1:] // 8 - 16) % 256
        if self.space == "YCbCr":
            values[..., 0], values[..., 1:] = 100 + values[..., 0] // 6, 112 + values[..., 1:] // 8
        values[-1, -1], values[-2, -2] = values[0, 0], np.where(values[0, 0] > top // 2, 0, top)
        alpha = random.integers(0, top + 1, (SIDE, SIDE)) / top
        alpha[0], alpha[1] = 0, 1
        if self.alpha == "palette":
            alpha = random.integers(0, 256, len(palette))[values[..., 0]] / 255
        if self.alpha == "key":
            alpha = 1.0 - np.all(values == values[0, 0], -1)
        return values, alpha if self.alpha else np.ones((SIDE, SIDE)), palette

    def levels(self, values, palette):
        """Levels of 255 in the file's own colour space."""
        if self.space == "palette":
            return palette[values[..., 0]].astype(float)
        if self.space == "Lab":
            return values
        found = 255 * (self.white - values if self.inverted else values) / self.white
        return found.repeat(3, -1) if self.space == "grey" else found

    def colours(self, name, values, alpha, palette):
        """What is seen: levels of 255 in sRGB, on white."""
        seen = self.levels(values, palette)
        if self.space == "YCbCr":
            blue, red = seen[..., 1] - 128, seen[..., 2] - 128
            parts = (1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue)
            seen = np.clip(seen[..., :1] + np.stack(parts, -1), 0, 255)
        if self.space == "Lab":
            seen = profiles.of_lab(
                np.stack([seen[..., 0] / 2.55, *((seen[..., n] + 128) % 256 - 128.0 for n in (1, 2))], -1)
            )
        elif profiles.SPACES.get(name) == self.fitting:
            seen = profiles.in_srgb(seen, name)
        elif self.space == "CMYK":
            seen = (255 - seen[..., :3]) * (255 - seen[..., 3:]) / 255
        return 255 + (seen - 255) * alpha[..., None]


def packed(values, bits, order=">"):
    """Rows of numbers, each row whole bytes."""
    if bits >= 8 and bits != 12:
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in values.reshape(len(values), -1)]
    digits = (values.reshape(len(values), -1, 1) >> np.arange(bits)[::-1]) & 1
    return [np.packbits(row.ravel()).tobytes() for row in digits.astype(np.uint8)]


def png(kind, values, alpha, palette, profile=None, orientation=None, passes=((0, 0, 1, 1),)):
    """A PNG file; see `INTERLACED` for its passes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    with_alpha = kind.alpha == "straight"
    colour = 3 if kind.space == "palette" else (2 if kind.space == "RGB" else 0) + 4 * with_alpha
    if with_alpha:
        values = np.concatenate([values, np.round(alpha[..., None] * kind.white).astype(int)], -1)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, kind.bits, colour, 0, 0, len(passes) > 1))]
    if profile is not None:
        parts.append(chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)))
    if kind.space == "palette":
        parts.append(chunk(b"PLTE", palette.tobytes()))
    if kind.alpha == "palette":
        entries = np.full(len(palette), 255, np.uint8)
        entries[values[..., 0]] = np.round(alpha * 255)
        parts.append(chunk(b"tRNS", entries.tobytes()))
    if kind.alpha == "key":
        parts.append(chunk(b"tRNS", values[0, 0].astype(">u2").tobytes()))
    if orientation is not None:
        parts.append(
            chunk(b"eXIf", b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0))
        )
    parts_of = (values[top::down, left::right] for left, top, right, down in passes)
    rows = b"".join(b"\0" + row for part in parts_of for row in packed(part, kind.bits))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def tiff(kind, values, alpha, palette, profile=None, orientation=1, order="<", deflate=False):
    """A TIFF file of one strip."""
    if kind.alpha:
        values = np.round(values * alpha[..., None]).astype(int) if kind.alpha == "associated" else values
        values = np.concatenate([values, np.round(alpha[..., None] * kind.white).astype(int)], -1)
    strip = b"".join(packed(values, kind.bits, order))
    strip = zlib.compress(strip) if deflate else strip
    samples = values.shape[2]
    photometric = {"grey": 0 if kind.inverted else 1, "RGB": 2, "palette": 3, "CMYK": 5, "YCbCr": 6, "Lab": 8}
    tags = {  # tag: type, values; 3 is 16 bits, 4 is 32, 7 is bytes
        256: (3, [SIDE]),
        257: (3, [SIDE]),
        258: (3, [kind.bits] * samples),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric[kind.space]]),
        273: (4, [8]),
        274: (3, [orientation]),
        277: (3, [samples]),
        278: (3, [SIDE]),
        279: (4, [len(strip)]),
        320: (3, [int(v) * 257 for v in palette.T.ravel()] if kind.space == "palette" else []),
        338: (3, [1 if kind.alpha == "associated" else 2] if kind.alpha else []),
        339: (3, [2 if kind.signed else 1] * samples),
        530: (3, [1, 1] if kind.space == "YCbCr" else []),
        34675: (7, list(profile or b"")),
    }
    tags = {tag: found for tag, found in tags.items() if found[1]}
    at = 8 + len(strip) + len(strip) % 2
    after, entries = at + 2 + 12 * len(tags) + 4, b""
    further = b""
    for tag, (type_, found) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(found)}{ {3: 'H', 4: 'I', 7: 'B'}[type_] }", *found)
        if len(data) > 4:
            place, further = after + len(further), further + data + b"\0" * (len(data) % 2)
            data = struct.pack(f"{order}I", place)
        entries += struct.pack(f"{order}HHI", tag, type_, len(found)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, at)
    body = head + strip + b"\0" * (len(strip) % 2) + struct.pack(f"{order}H", len(tags))
    return body + entries + b"\0" * 4 + further
