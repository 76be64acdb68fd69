import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from skimage.color import rgba2rgb

from data.readers.samples import encoded, noise, photographs
from transfusion_jax.data.readers import pictures
from transfusion_jax.data.readers.pictures import PictureError, decode

PHOTOGRAPH = Image.open(io.BytesIO(photographs()["0001.png"]))  # 64×48


def test_pixels_of_the_right_size_are_left_as_they_are():
    pixels = noise(16, 16, 3)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels), "PNG"), 16, 3), pixels)
    np.testing.assert_array_equal(decode(pixels, 16, 3), pixels)
    np.testing.assert_array_equal(decode(pixels[..., :1], 16, 1), pixels[..., :1])


def test_the_middle_square_is_kept():
    pixels = noise(16, 24, 3)
    np.testing.assert_array_equal(decode(pixels, 16, 3), pixels[:, 4:20])
    np.testing.assert_array_equal(decode(pixels.transpose(1, 0, 2), 16, 3), pixels[:, 4:20].transpose(1, 0, 2))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_resizing_is_that_of_pillow_in_every_format(format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    data = encoded(PHOTOGRAPH, format)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    for size in (20, 48, 100):
        fitted = np.asarray(ImageOps.fit(whole, (size, size), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(decode(data, size, 3), fitted)


def test_shrinking_averages_all_pixels():
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))[..., None]
    assert abs(decode(stripes, 16, 1).astype(int) - 128).max() <= 3  # a resize without a filter gives 0 or 255


@pytest.mark.parametrize(("before", "after"), [(96, 32), (40, 32), (20, 32)])
def test_the_filter_is_lanczos_of_three_lobes(before, after):
    pixels = noise(before, before, 1) // 2 + 64  # so far from black and white that nothing is clipped
    scale = max(
        before / after, 1
    )  # the filter is as wide as an output pixel, or as an input pixel if that is wider
    distance = ((np.arange(after) + 0.5) * before / after)[:, None] - (np.arange(before) + 0.5)
    weights = np.sinc(distance / scale) * np.sinc(distance / scale / 3) * (abs(distance) < 3 * scale)
    weights /= weights.sum(1, keepdims=True)
    assert abs(decode(pixels, after, 1)[..., 0] - weights @ pixels[..., 0] @ weights.T).max() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_cameras_orientation_is_honoured(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTOGRAPH, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    fitted = ImageOps.fit(upright.convert("RGB"), (32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(decode(data, 32, 3), np.asarray(fitted))


def test_a_broken_orientation_is_no_reason_to_lose_the_image():
    data = encoded(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    np.testing.assert_array_equal(decode(data, 48, 3), decode(encoded(PHOTOGRAPH, "JPEG"), 48, 3))


def test_what_is_transparent_becomes_white():
    pixels = noise(16, 16, 4)
    pixels[:4, :, 3], pixels[4:8, :, 3] = 0, 255
    expected = np.round(rgba2rgb(pixels) * 255)
    for format in ("PNG", "WEBP", "TIFF"):
        found = decode(encoded(Image.fromarray(pixels), format, **{"lossless": True, "exact": True}), 16, 3)
        assert abs(found - expected).max() <= 1
        assert found[:4].min() == 255
    grey = Image.fromarray(pixels).convert("LA")
    expected = np.round(np.asarray(grey)[..., 0] * (pixels[..., 3] / 255) + 255 - pixels[..., 3])
    assert abs(decode(encoded(grey, "PNG"), 16, 1)[..., 0] - expected).max() <= 1


def test_palettes_are_looked_up_and_their_transparent_entry_is_white():
    palette, indices = noise(256, 3), noise(16, 16, seed=1)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    for format in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(image, format), 16, 3), palette[indices])
    clear = int(indices[0, 0])
    found = decode(encoded(image, "PNG", transparency=clear), 16, 3)
    np.testing.assert_array_equal(found[indices == clear], 255)
    np.testing.assert_array_equal(found[indices != clear], palette[indices[indices != clear]])


def test_one_transparent_colour_is_white():
    pixels = noise(16, 16, 3)
    found = decode(encoded(Image.fromarray(pixels), "PNG", transparency=tuple(map(int, pixels[3, 5]))), 16, 3)
    assert (found[3, 5] == 255).all()
    pixels[3, 5] = 255
    np.testing.assert_array_equal(found, pixels)


def test_ink_becomes_light():
    ink = noise(16, 16, 4)
    image = Image.fromarray(ink, "CMYK")
    found = decode(encoded(image, "TIFF"), 16, 3)
    expected = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    assert abs(found - expected).max() <= 1
    smooth = Image.new("CMYK", (32, 32), (200, 30, 0, 10))
    assert abs(decode(encoded(smooth, "JPEG", quality=100), 32, 3)[0, 0].astype(int) - [53, 216, 245]).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(format):
    values = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)
    data = encoded(Image.fromarray(values), format)
    expected = np.round(values / 257)
    np.testing.assert_array_equal(decode(data, 16, 1)[..., 0], expected)
    np.testing.assert_array_equal(decode(data, 16, 3), np.repeat(expected[..., None], 3, 2))


def test_black_and_white_is_0_and_255():
    bits = noise(16, 16) > 127
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits), format), 16, 1)[..., 0], bits * 255)


def test_grey_and_colour_become_each_other_as_in_pillow():
    data = encoded(PHOTOGRAPH, "PNG")
    fitted = ImageOps.fit(PHOTOGRAPH.convert("L"), (30, 30), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(decode(data, 30, 1)[..., 0], np.asarray(fitted))
    grey = noise(16, 16, 1)
    np.testing.assert_array_equal(decode(grey, 16, 3), np.repeat(grey, 3, 2))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert abs(decode(data, 16, 3).astype(int) - [255, 0, 0]).max() <= 3


def test_any_shape_is_cropped_and_small_ones_are_enlarged():
    assert decode(noise(1, 3000, 3), 8, 3).shape == (8, 8, 3)
    assert (decode(np.full((1, 1, 3), 77, np.uint8), 8, 3) == 77).all()
    assert decode(noise(9, 20, 3), 8, 3, min_size=9).shape == (8, 8, 3)
    with pytest.raises(PictureError, match="too small: 20×9"):
        decode(noise(9, 20, 3), 8, 3, min_size=10)


def png_header(width, height):
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 999)]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


PHOTO = encoded(PHOTOGRAPH, "PNG")
JPEG = encoded(PHOTOGRAPH, "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"\0" * 1000, "not an image"),
        (b"<html>404</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # Pillow would run Ghostscript
        (PHOTO[:20], "not an image|damaged"),
        (PHOTO[: len(PHOTO) // 2], "damaged image: .*truncated"),
        (JPEG[:-50], "damaged image: .*truncated"),
        (encoded(PHOTOGRAPH, "WEBP")[:100], "damaged|not an image"),
        (encoded(PHOTOGRAPH, "GIF")[:500], "damaged|not an image"),
        (PHOTO[:-1000] + b"\xff" * 50 + PHOTO[-950:], "damaged image"),
        (png_header(8193, 8192), "too many pixels"),
        (png_header(12000, 12000), "too many pixels"),  # Pillow warns
        (png_header(100000, 100000), "too many pixels"),  # Pillow refuses
        (png_header(0, 10), "damaged|not an image"),
        (encoded(Image.fromarray(noise(4, 4).astype(np.float32)), "TIFF"), "unknown range of pixels"),
        (encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), "unknown range of pixels"),
        (noise(4, 4), "pixels are not"),
        (noise(4, 4, 4), "pixels are not"),
        (noise(4, 4, 3).astype(np.float32), "pixels are not"),
        (noise(0, 4, 3), "pixels are not"),
    ],
)
def test_what_is_no_image_is_an_error_with_its_reason_and_no_warning(data, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match=reason) as error:
            decode(data, 8, 3)
    assert len(str(error.value)) < 200


def test_the_largest_image_is_below_pillows_own_limit():
    assert pictures.LARGEST < Image.MAX_IMAGE_PIXELS
