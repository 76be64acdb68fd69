"""Every kind of picture against what the formats' and profiles' own formulas say of it."""

import colorsys
import io
import itertools
import struct
from importlib.resources import files

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, features

from data.readers import profiles
from data.readers.image_files import INTERLACED, ORIENTED, SIDE, Kind, packed, png, tiff
from data.readers.profiles import PROFILES
from data.readers.samples import encoded, noise
from transfusion_jax.data.readers import colours
from transfusion_jax.data.readers.colours import in_srgb, read_pixels
from transfusion_jax.data.readers.pictures import PictureError, decode

ROUNDING = 1.01  # levels of 255 that a right answer may be off, without a profile
PROFILED = 3.5  # with one: its curves are steep where it is dark
CUT = 1  # more where Pillow keeps the high bytes of 16 bits
ASSOCIATED = 3  # times as much where colours are multiplied by alpha, and rounded
PNG_KINDS = [
    *(Kind("grey", bits, alpha) for bits in (1, 2, 4, 8, 16) for alpha in ("", "key")),
    *(Kind("RGB", bits, alpha) for bits in (8, 16) for alpha in ("", "key", "straight")),
    *(Kind("palette", bits, alpha) for bits in (1, 2, 4, 8) for alpha in ("", "palette")),
    *(Kind("grey", bits, "straight") for bits in (8, 16)),
]
TIFF_KINDS = [
    *(Kind("grey", bits, inverted=inverted) for bits in (1, 2, 4, 8, 12, 16) for inverted in (False, True)),
    *(
        Kind("grey", 32, signed=signed, largest=white, inverted=inverted)
        for signed, white, inverted in itertools.product((False, True), (255, 65535), (False, True))
    ),
    *(
        Kind("grey", bits, alpha, inverted)
        for bits, alpha, inverted in itertools.product((8, 16), ("straight", "associated"), (False, True))
        if (alpha, inverted) != ("associated", True)
    ),
    *(Kind("RGB", bits, alpha) for bits in (8, 16) for alpha in ("", "straight", "associated")),
    *(Kind("palette", bits) for bits in (1, 2, 4, 8)),
    Kind("palette", 8, "straight"),
    *(Kind("CMYK", bits) for bits in (8, 16)),
    Kind("YCbCr", 8),
    Kind("Lab", 8),
]


def check(data, kind, name, parts, orientation=1):
    """The file's pixels are those that its kind and its profile say, upright."""
    expected = ORIENTED[orientation](kind.colours(name, *parts))
    found = decode(data, SIDE, 3)
    profiled = profiles.SPACES.get(name) == kind.fitting or kind.space == "Lab"
    cut = CUT * (kind.bits == 16 and (kind.space != "grey" or bool(kind.alpha)))
    allowed = (PROFILED if profiled else ROUNDING) * (1 + cut)
    if kind.alpha == "associated":
        visible = ORIENTED[orientation](parts[1]) > 0.5
        found, expected, allowed = found[visible], expected[visible], allowed * ASSOCIATED
    assert abs(found - expected).max() <= allowed, (kind, name, orientation)
    grey = expected @ [0.299, 0.587, 0.114]
    if kind.alpha != "associated":
        assert abs(decode(data, SIDE, 1)[..., 0] - grey).max() <= allowed + 0.5


@pytest.mark.parametrize("kind", PNG_KINDS, ids=str)
def test_every_png(kind):
    for seed, (name, profile) in enumerate(PROFILES.items()):
        parts = kind.samples(name, seed)
        for orientation in (None, 1 + seed, 8 - seed):
            check(png(kind, *parts, profile, orientation), kind, name, parts, orientation or 1)
        check(png(kind, *parts, profile, passes=INTERLACED), kind, name, parts)


@pytest.mark.parametrize("kind", TIFF_KINDS, ids=str)
def test_every_tiff(kind):
    turns = itertools.cycle(ORIENTED)
    stored = itertools.product("<>", (False, True))
    for seed, ((name, profile), (order, deflate)) in enumerate(itertools.product(PROFILES.items(), stored)):
        parts, orientation = kind.samples(name, seed), next(turns)
        check(tiff(kind, *parts, profile, orientation, order, deflate), kind, name, parts, orientation)


@pytest.mark.parametrize("strip", [SIDE - 1, 3 * SIDE])  # parts of rows, and rows
def test_an_image_is_the_same_in_strips_none_of_which_is_larger(strip, monkeypatch):
    made = [(png, kind) for kind in PNG_KINDS] + [(tiff, kind) for kind in TIFF_KINDS]
    turns = itertools.cycle(PROFILES.values())
    files = [
        write(kind, *kind.samples("none"), profile) for (write, kind), profile in zip(made, turns, strict=False)
    ]
    whole = [[decode(file, SIDE, channels) for channels in (1, 3)] for file in files]
    monkeypatch.setattr(colours, "STRIP", strip)
    sizes, by_strips = set(), colours.by_strips

    def seen(image, mode, made):
        return by_strips(image, mode, lambda part: sizes.add(part.width * part.height) or made(part))

    monkeypatch.setattr(colours, "by_strips", seen)
    for file, pixels in zip(files, whole, strict=True):
        for channels, expected in zip((1, 3), pixels, strict=True):
            np.testing.assert_array_equal(decode(file, SIDE, channels), expected)
    assert max(sizes) <= strip


def blocks(channels, seed=0):
    """Flat squares of 8 pixels, which lossy formats keep: `[16, 16, channels]`."""
    return noise(2, 2, channels, seed=seed).repeat(8, 0).repeat(8, 1)


WRITERS = {  # format and mode: the options of Pillow's writer, and levels that it may move
    ("JPEG", "L"): (dict(quality=100), 2),
    ("JPEG", "RGB"): (dict(quality=100, subsampling=0), 4),
    ("WEBP", "RGB"): (dict(lossless=True), 1),
    ("WEBP", "RGBA"): (dict(lossless=True, exact=True), 1),
    ("AVIF", "RGB"): (dict(quality=100, subsampling="4:4:4"), 3),
    ("AVIF", "RGBA"): (dict(quality=100, subsampling="4:4:4"), 3),
    ("TIFF", "RGB"): (dict(compression="jpeg", quality=100), 4),
}


@pytest.mark.parametrize(("format", "mode"), WRITERS)
@pytest.mark.parametrize("name", PROFILES)
def test_other_formats_with_profiles_turned_in_every_way(format, mode, name):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    options, allowed = WRITERS[format, mode]
    pixels = blocks(len(mode))
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode)
    kind = Kind("grey" if mode == "L" else "RGB", 8, "straight" if mode == "RGBA" else "")
    alpha = pixels[..., 3] / 255 if kind.alpha else np.ones((SIDE, SIDE))
    expected = kind.colours(name, pixels[..., : kind.channels].astype(int), alpha, None)
    for orientation in ORIENTED if format != "TIFF" else (1,):
        exif = Image.Exif()
        exif[0x112] = orientation
        more = {} if PROFILES[name] is None else {"icc_profile": PROFILES[name]}
        data = encoded(image, format, exif=exif, **options, **more)
        steep = 3 if profiles.SPACES.get(name) == kind.fitting else 1  # a profile's curve enlarges what is lost
        assert abs(decode(data, SIDE, 3) - ORIENTED[orientation](expected)).max() <= steep * allowed + PROFILED


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("stored", ["CMYK", "YCCK"])
def test_inks_in_a_jpeg_are_inverted_as_adobe_does_it(name, stored):
    inks = np.where(blocks(4) > 127, 255, 0).astype(np.uint8)
    profile = {} if PROFILES[name] is None else {"icc_profile": PROFILES[name]}
    image = Image.fromarray(inks, "CMYK")
    if stored == "YCCK":  # cyan, magenta and yellow as if they were red, green and blue
        turned = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
        image = Image.fromarray(np.concatenate([255 - turned, inks[..., 3:]], -1), "CMYK")
    data = bytearray(encoded(image, "JPEG", quality=100, subsampling=0, **profile))
    marker = data.index(b"Adobe\0")
    data[marker + 11] = 2 if stored == "YCCK" else data[marker + 11]
    expected = Kind("CMYK", 8).colours(name, inks.astype(int), np.ones((SIDE, SIDE)), None)
    assert abs(decode(bytes(data), SIDE, 3) - expected).max() <= 8


def jpeg2000(mode, pixels, profile=None):
    """A JPEG 2000 file; a profile takes the place of its colour space."""
    data = encoded(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels, mode), "JPEG2000")
    if profile is None:
        return data
    header, colour = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    size = struct.unpack_from(">I", data, colour)[0]
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
    whole = struct.unpack_from(">I", data, header)[0] + len(box) - size
    return data[:header] + struct.pack(">I", whole) + data[header + 4 : colour] + box + data[colour + size :]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("name", PROFILES)
def test_jpeg_2000(mode, name):
    alpha = mode in ("LA", "RGBA")
    kind = Kind({"L": "grey", "LA": "grey", "CMYK": "CMYK"}.get(mode, "RGB"), 8, "straight" if alpha else "")
    values, clear, _ = kind.samples(name)
    parts = [values, *([np.round(clear[..., None] * 255)] if alpha else [])]
    if (mode == "CMYK") != (name == "inks") and (mode == "RGBA" or name != "none") and mode in ("CMYK", "RGBA"):
        return
    check(
        jpeg2000(mode, np.concatenate(parts, -1).astype(np.uint8), PROFILES[name]),
        kind,
        name,
        (values, clear, None),
    )


def test_jpeg_2000_of_sixteen_bits():
    values = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
    assert abs(decode(encoded(Image.fromarray(values), "JPEG2000"), SIDE, 1)[..., 0] - values / 257).max() <= 1


def bitmap(pixels, profile=b""):
    """A BMP file of version 5, with alpha."""
    rows = pixels[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 124, SIDE, SIDE, 1, 32, 3, len(rows), 2835, 2835, 0, 0) + masks
    head += b"DEBM" + b"\0" * 48 + struct.pack("<4I", 4, 124 + len(rows), len(profile), 0)
    return b"BM" + struct.pack("<IHHI", 138 + len(rows) + len(profile), 0, 0, 138) + head + rows + profile


@pytest.mark.parametrize("name", PROFILES)
def test_a_bitmap_of_version_5(name):
    kind = Kind("RGB", 8, "straight")
    values, alpha, _ = kind.samples(name)
    pixels = np.concatenate([values, np.round(alpha[..., None] * 255)], -1).astype(np.uint8)
    check(bitmap(pixels, PROFILES[name] or b""), kind, name, (values, alpha, None))


@pytest.mark.parametrize(
    ("white", "top"), [(255, 255), (1, 1), (100, 100), (4095, 4095), (65535, 65535), (65535, 255)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_portable_maps_say_how_white_they_are(white, top, channels):
    """A dark picture stays dark: nothing is guessed where the file says it."""
    values = np.random.default_rng(0).integers(0, top + 1, (SIDE, SIDE, channels))
    head = f"P{5 if channels == 1 else 6}\n{SIDE} {SIDE}\n{white}\n".encode()
    data = head + b"".join(packed(values, 16 if white > 255 else 8))
    assert abs(decode(data, SIDE, 3) - 255 * values / white).max() <= ROUNDING


def of_bands(mode, bands):
    """What the numbers of a mode are in RGB, and their alpha."""
    first, whole = bands[..., :3].astype(float), np.ones(bands.shape[:2])
    if mode == "1":
        return (first[..., :1] > 127) * 255.0, whole
    if mode in ("LA", "PA", "RGBA"):
        return bands[..., :-1].astype(float), bands[..., -1] / 255
    if mode in ("La", "RGBa"):
        return np.minimum(bands[..., :-1] / np.maximum(bands[..., -1:] / 255, 1 / 255), 255), bands[..., -1] / 255
    if mode == "HSV":
        pixels = (first / 255).reshape(-1, 3)
        return np.array([colorsys.hsv_to_rgb(*p) for p in pixels]).reshape(first.shape) * 255, whole
    if mode in ("CMYK", "YCbCr", "LAB"):
        kind = Kind({"LAB": "Lab"}.get(mode, mode), 8)
        return kind.colours("none", bands.astype(int), whole, None), whole
    return first, whole


EIGHT_BITS = ["1", "L", "P", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "La", "RGBa"]
SIXTEEN_BITS = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2", "I": "=i4"}
HOLDING = ("PNG", "TIFF", "GIF", "BMP", "JPEG2000", "PPM")  # formats that keep pixels as they are


def test_every_mode_of_pillow_is_in_these_tables():
    assert {*EIGHT_BITS, *SIXTEEN_BITS, "F"} >= set(Image.MODES)


@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_every_mode_in_memory_and_in_every_file_that_keeps_it(mode):
    bands = noise(SIDE, SIDE, Image.getmodebands(mode))
    if mode == "LAB":
        bands = Kind("Lab", 8).samples("none")[0].astype(np.uint8)
    if mode in ("La", "RGBa"):  # associated colours are no lighter than their alpha
        bands = np.concatenate([np.minimum(bands[..., :-1], bands[..., -1:]), bands[..., -1:]], -1)
    if mode == "1":
        image = Image.fromarray(bands[..., 0] > 127)
    else:
        image = Image.frombytes(mode, (SIDE, SIDE), bands.tobytes())
    if mode in ("P", "PA"):
        image.putpalette(np.arange(256).repeat(3).astype(np.uint8).tobytes())
    colours, alpha = of_bands(mode, bands)
    expected = 255 + (colours - 255) * alpha[..., None]
    allowed = 2.5 if mode in ("HSV", "LAB") else 1.6 if mode in ("La", "RGBa") else ROUNDING
    assert abs(np.asarray(in_srgb(read_pixels(image, b""), "RGB")) - expected).max() <= allowed
    for format in HOLDING:
        try:
            data = encoded(image, format)
        except (OSError, KeyError, ValueError):
            continue  # it holds no such mode
        if Image.open(io.BytesIO(data)).mode == mode:
            assert abs(decode(data, SIDE, 3) - expected).max() <= allowed, format


@pytest.mark.parametrize("mode", SIXTEEN_BITS)
def test_every_mode_of_more_than_eight_bits(mode):
    values = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE))
    image = Image.frombytes(mode, (SIDE, SIDE), values.astype(SIXTEEN_BITS[mode]).tobytes())
    np.testing.assert_array_equal(np.asarray(in_srgb(read_pixels(image, b""), "L")), np.round(values / 257))


@pytest.mark.parametrize(
    "values",
    [np.full((4, 4), 65536, np.int32), np.full((4, 4), -1, np.int32), np.full((4, 4), 0.5, np.float32)],
    ids=["beyond 16 bits", "negative", "fractions"],
)
def test_a_range_that_nobody_can_know_is_refused(values):
    with pytest.raises(PictureError, match="unknown range of pixels"):
        decode(encoded(Image.fromarray(values), "TIFF"), 4, 3)


@pytest.mark.parametrize(
    "profile",
    [PROFILES["sRGB"], ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["by hand", "LittleCMS"],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_srgbs_own_profile_leaves_every_pixel(profile, format):
    image = Image.fromarray(noise(SIDE, SIDE, 3))
    plain = decode(encoded(image, format), SIDE, 3)
    np.testing.assert_array_equal(decode(encoded(image, format, icc_profile=profile), SIDE, 3), plain)


def test_a_photograph_with_adobes_own_profile_is_what_its_formula_says():
    data = files("skimage.data").joinpath("rocket.jpg").read_bytes()
    photograph = Image.open(io.BytesIO(data))
    stored = np.asarray(photograph).astype(float)
    found = np.asarray(in_srgb(read_pixels(photograph, data), "RGB"))
    expected = profiles.in_srgb(stored, "Adobe")
    assert abs(found - expected).mean() < 0.5
    assert abs(found - expected).max() <= 6  # where it is darkest
    assert abs(found - stored).max() > 20


@pytest.mark.parametrize("cut", [0, 1, 40, 131, 140, 200, 300, 400])
def test_a_damaged_profile_leaves_every_pixel(cut):
    pixels = noise(SIDE, SIDE, 3)
    data = encoded(Image.fromarray(pixels), "PNG", icc_profile=PROFILES["Adobe"][:cut] + b"\xff" * 9)
    np.testing.assert_array_equal(decode(data, SIDE, 3), pixels)


def test_a_large_profile_is_no_reason_to_lose_the_image():
    pixels = noise(SIDE, SIDE, 3)
    profile = PROFILES["Adobe"] + noise(3 << 20).tobytes()
    found = decode(encoded(Image.fromarray(pixels), "PNG", icc_profile=profile), SIDE, 3)
    assert abs(found - profiles.in_srgb(pixels.astype(float), "Adobe")).max() <= PROFILED


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("photometric", "channels"), [("rgb", 3), ("separated", 4)])
def test_planes_of_sixteen_bits_are_right_or_refused(order, photometric, channels):
    values = np.random.default_rng(0).integers(0, 65536, (channels, SIDE, SIDE)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, planarconfig="separate", byteorder=order)
    if photometric == "rgb":
        assert abs(decode(file.getvalue(), SIDE, 3) - values.transpose(1, 2, 0) / 257).max() <= ROUNDING
    else:
        with pytest.raises(PictureError, match="raw mode"):
            decode(file.getvalue(), SIDE, 3)


def test_planes_of_grey_and_alpha_are_refused():
    """Pillow takes the one for the other."""
    file = io.BytesIO()
    planes = {"planarconfig": "separate", "extrasamples": ["unassalpha"], "compression": "zlib"}
    tifffile.imwrite(file, noise(2, SIDE, SIDE), photometric="minisblack", **planes)
    with pytest.raises(PictureError, match="separate planes"):
        decode(file.getvalue(), SIDE, 3)


def test_a_kind_of_a_format_that_cannot_be_read_is_named():
    data = bytearray(tiff(Kind("grey", 8), *Kind("grey", 8).samples("none")))
    place = data.index(struct.pack("<HHI", 262, 3, 1))
    data[place + 8] = 200  # no photometric interpretation
    with pytest.raises(PictureError, match="not an image: damaged, or a kind of TIFF that cannot be read"):
        decode(bytes(data), SIDE, 3)
