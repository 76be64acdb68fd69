"""Small files that would make long work, within and beyond their bounds; what is beyond is refused undecoded."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from data.readers.samples import encoded, noise
from transfusion_jax.data.readers import effort
from transfusion_jax.data.readers.pictures import PictureError, area, decode

PIXELS = noise(64, 64)
TOO_MANY_SCANS = effort.PASSES + 1


@pytest.fixture
def small(monkeypatch):
    """Bounds that a picture of 64×64 may reach."""
    monkeypatch.setattr(effort, "LARGEST", 64 * 64)


@pytest.fixture
def undecoded(monkeypatch):
    def decoded(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)


def jpeg(mode="RGB", **how):
    return encoded(Image.fromarray(PIXELS).convert(mode), "JPEG", **how)


def rescanned(data, scans):
    """A JPEG whose last scan is repeated until it has so many."""
    begin, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[begin:end] * (scans - data.count(b"\xff\xda")) + data[end:]


JPEGS = {
    f"{mode}, {how}": jpeg(mode, **how) for mode in ("L", "RGB", "CMYK") for how in ({}, {"progressive": True})
}


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_scans_are_bounded(data, small, undecoded):
    with pytest.raises(AssertionError, match="decoded"):
        decode(rescanned(data, effort.PASSES), 8, 3)
    with pytest.raises(PictureError, match=f"too many scans: {TOO_MANY_SCANS} of 64×64"):
        decode(rescanned(data, TOO_MANY_SCANS), 8, 3)


def test_small_images_may_have_more_scans(small):
    half = encoded(Image.fromarray(PIXELS[:32]), "JPEG", progressive=True)
    assert decode(rescanned(half, 2 * effort.PASSES), 8, 3).shape == (8, 8, 3)
    with pytest.raises(PictureError, match="too many scans"):
        decode(rescanned(half, 2 * effort.PASSES + 1), 8, 3)


@pytest.mark.parametrize("kept", [b"\xff\xe2", b"\xff\xfe"])
def test_what_only_looks_like_scans_is_none(kept, small):
    looks = b"\xff\xda" * 500
    segment = kept + struct.pack(">H", len(looks) + 2) + looks
    data = jpeg(progressive=True)
    np.testing.assert_array_equal(decode(data[:2] + segment + data[2:] + looks, 8, 3), decode(data, 8, 3))


@given(st.integers(0, 60), st.booleans(), st.integers(0, 3))
def test_scans_are_counted_whatever_stands_between(restarts, progressive, fill):
    data = jpeg(progressive=progressive, restart_marker_blocks=restarts)
    padded = data.replace(b"\xff\xda", b"\xff" * fill + b"\xff\xda")
    assert effort._scans(padded) == data.count(b"\xff\xda")
    assert effort._scans(padded[:-20]) == data.count(b"\xff\xda")  # cut off


@given(st.binary(max_size=100).map(lambda rest: b"\xff\xd8" + rest))
def test_counting_scans_ends(data):
    assert effort._scans(data) <= data.count(b"\xff\xda")


def test_profiles_of_a_png_are_bounded(monkeypatch):
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1000)))
    data = encoded(Image.fromarray(PIXELS), "PNG")
    head = 8 + 25
    several = data[:head] + profile * effort.PROFILES + data[head:]
    np.testing.assert_array_equal(decode(several, 64, 1)[..., 0], PIXELS)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    more = data[:head] + profile * (effort.PROFILES + 1) + data[head:]
    with pytest.raises(PictureError, match="too many profiles: 9"):
        decode(more, 64, 3)
    assert area(more) == 0


def beside(data, at, part, times):
    """A file with a part, many times over, at a place of it."""
    return data[:at] + part * times + data[at:]


PNG, GIF = encoded(Image.fromarray(PIXELS), "PNG"), encoded(Image.fromarray(PIXELS), "GIF")
BLOCKS = GIF.index(b",", 13 + 3 * 256)  # where a GIF's picture begins
PARTS = {
    "segments": (jpeg(), 2, b"\xff\xe5\0\2", 1),
    "comments": (jpeg(), 2, b"\xff\xfe\0\3x", 1),
    "bytes between segments": (jpeg(), 2, b"\xff", 1),
    "marks without a length": (jpeg(), 2, b"\xff\xd0", 1),
    "chunks": (PNG, 33, b"\0\0\0\0abCd" + struct.pack(">I", zlib.crc32(b"abCd")), 1),
    "texts": (PNG, 33, b"\0\0\0\3tEXtk\0v" + struct.pack(">I", zlib.crc32(b"tEXtk\0v")), 1),
    "chunks behind the pixels": (PNG, -12, b"\0\0\0\0abCd" + struct.pack(">I", zlib.crc32(b"abCd")), 1),
    "comments of a GIF": (GIF, BLOCKS, b"\x21\xfe\1x\0", 2),
    "blocks of an extension": (GIF, BLOCKS, b"\x21\xff" + b"\1x" * 100 + b"\0", 101),
    "bytes between blocks": (GIF, BLOCKS, b"x", 1),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_around_pixels_are_bounded(kind, monkeypatch):
    data, at, part, counts = PARTS[kind]
    monkeypatch.setattr(effort, "PARTS", 1000)
    assert decode(beside(data, at, part, 900 // counts), 8, 3).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    more = beside(data, at, part, 1001 // counts + 1)
    with pytest.raises(PictureError, match=r"too many parts: .* may have 1,000"):
        decode(more, 8, 3)
    assert area(more) == 0


PACKED = {
    "damaged": b"zTXtk\0\0" + zlib.compress(bytes(1000))[:-1] + b"\7",  # which Pillow unpacks and forgets
    "whole": b"zTXtk\0\0" + zlib.compress(b"x"),
    "international": b"iTXtk\0\1\0\0\0" + zlib.compress(b"x"),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_texts_of_a_png_are_bounded(kind):
    body = PACKED[kind]
    text = chunk(body[:4], body[4:])
    np.testing.assert_array_equal(decode(beside(PNG, 33, text, effort.PACKED), 64, 1)[..., 0], PIXELS)
    with pytest.raises(PictureError, match=f"too many packed texts: {effort.PACKED + 1}"):
        decode(beside(PNG, 33, text, effort.PACKED + 1), 64, 1)


@pytest.mark.parametrize("magic", ["P1", "P2", "P3"])
def test_comments_of_a_plain_ppm_are_bounded(magic):
    def plain(comments):
        head = "2 2" if magic == "P1" else "2 2 1"
        return (f"{magic}\n{head}\n" + "#x\n" * comments + "1 " * 12).encode()

    assert decode(plain(effort.COMMENTS), 2, 3).shape == (2, 2, 3)
    with pytest.raises(PictureError, match="too many comments: 4,097"):
        decode(plain(effort.COMMENTS + 1), 2, 3)


@pytest.mark.parametrize("order", "<>")
def test_values_in_tags_of_a_tiff_are_bounded(order, monkeypatch):
    monkeypatch.setattr(effort, "VALUES", 1000)

    def strips(count):
        tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1)]
        tags += [(273, 4, count, 122), (278, 4, 1, 8), (279, 4, 1, 64), (700, 7, 2000, 122)]
        listed = b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags)
        head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
        return head + listed + bytes(4) + struct.pack(f"{order}I", 8) * count + bytes(2000)

    assert decode(strips(900), 8, 1).shape == (8, 8, 1)
    with pytest.raises(PictureError, match="too many values in tags: 1,007"):
        decode(strips(1000), 8, 1)
    assert area(strips(1000)) == 0


@pytest.mark.parametrize("cut", range(2, 40))
@pytest.mark.parametrize("data", [jpeg(), PNG, GIF], ids=["JPEG", "PNG", "GIF"])
def test_counting_parts_of_what_is_cut_ends(data, cut):
    effort.check_file(data[:cut])


def test_exif_is_bounded(monkeypatch):
    segment = b"\xff\xe1\0\x09Exif\0\0x"
    assert decode(beside(jpeg(), 2, segment, effort.EXIFS), 8, 3).shape == (8, 8, 3)
    with pytest.raises(PictureError, match="too much EXIF: 65 segments"):
        decode(beside(jpeg(), 2, segment, effort.EXIFS + 1), 8, 3)
    monkeypatch.setattr(effort, "EXIF", 1000)
    with pytest.raises(PictureError, match="too much EXIF: 1,006 bytes, and an image may have 1,000"):
        decode(beside(PNG, 33, chunk(b"eXIf", bytes(1000)), 1), 8, 3)


@pytest.mark.parametrize(("side", "refused"), [(64, False), (80, True)])
def test_a_tile_larger_than_an_image_is_no_larger_than_an_image_may_be(side, refused, small, undecoded):
    data = tiled(16, side)
    with pytest.raises(
        PictureError if refused else AssertionError, match="a tile of 80×80" if refused else "decoded"
    ):
        decode(data, 8, 1)


def coded(coding, size=64, tiles=(0, 0)):
    """A JPEG 2000 of grey with another way of coding: levels, layers and precincts."""
    data = encoded(Image.new("L", (size, size)), "JPEG2000", no_jp2=True, tile_size=tiles if tiles[0] else None)
    begin = data.index(b"\xff\x52")
    layers, precincts = coding
    new = bytes([bool(precincts), 0]) + struct.pack(">H", layers) + data[begin + 8 : begin + 14] + precincts
    return data[:begin] + b"\xff\x52" + struct.pack(">H", len(new) + 2) + new + data[begin + 14 :]


@pytest.mark.parametrize(
    ("coding", "refused"),
    [((1, b""), False), ((30, b"\x77" * 6), False), ((65535, b""), False), ((65535, b"\x33" * 6), True)],
)
def test_packets_of_a_jpeg_2000_are_bounded(coding, refused, undecoded):
    with pytest.raises(
        PictureError if refused else AssertionError, match="too many packets" if refused else "decoded"
    ):
        decode(coded(coding), 8, 1)


@pytest.mark.parametrize("more", [{}, {"tile_size": (32, 32)}, {"quality_layers": [20, 10, 1]}, {"no_jp2": True}])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_jpeg_2000s_of_encoders_are_within(mode, more, undecoded):
    with pytest.raises(AssertionError, match="decoded"):
        decode(encoded(Image.new(mode, (200, 100)), "JPEG2000", **more), 8, 1)


def tiled(side, tile):
    """A TIFF of one tile."""
    pixels = zlib.compress(bytes(tile * tile))
    tags = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 8)]
    tags.append((325, len(pixels)))
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + listed + bytes(4)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
