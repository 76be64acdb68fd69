"""The size of an image that keeps its proportions: within an area, each side a multiple of a number of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from transfusion_jax.data.readers.colours import PictureError
from transfusion_jax.errors import require

LONGEST = (1 << 16) - 1  # pixels of a side, which is stored in 16 bits


@dataclass(frozen=True)
class Proportions:
    """How large images become that keep their proportions, and which images are refused."""

    area: int = 256 * 256  # pixels of an image at most
    multiple: int = 16  # pixels; each side is a multiple of it
    enlarge: bool = False  # whether small images are enlarged to the area
    max_aspect: float = 4.0  # the longer side by the shorter, above which an image is refused
    longest: int = LONGEST  # pixels of a side at most
    refuse_small: bool = True  # whether an image below one multiple is refused, or else enlarged as far as that

    def __post_init__(self) -> None:
        require(self.multiple > 0, f"--multiple must be positive, not {self.multiple}")
        require(self.max_aspect >= 1, f"--max-aspect must be at least 1, not {self.max_aspect}")
        least = self.multiple**2
        require(self.area >= least, f"--area holds {self.area:,} pixels, and one --multiple squared has {least:,}")
        require(self.multiple <= self.longest, f"--multiple is {self.multiple}, above a side's {self.longest}")

    @property
    def square(self) -> int:
        """The side of the largest square, pixels."""
        side = math.isqrt(self.area)
        return side - side % self.multiple

    def exact(self, across: int, down: int) -> tuple[int, int]:
        """The width and height of the largest image of exactly these proportions, such as 2 across and 1 down.

        Raises:
            ConfigError: there is none.
        """
        common = math.gcd(across, down) or 1
        across, down = across // common, down // common
        require(
            0 < max(across, down) <= self.max_aspect * min(across, down),
            f"proportions {across}x{down} are none, or longer than --max-aspect {self.max_aspect:g}",
        )
        scale = math.isqrt(self.area // (across * down * self.multiple**2))
        require(
            scale > 0,
            f"no picture of exactly {across}x{down} with sides that are multiples of {self.multiple} pixels has at "
            f"most {self.area:,} pixels: give a larger --area, or a smaller --multiple",
        )
        return across * scale * self.multiple, down * scale * self.multiple

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that an image becomes: it is scaled to cover them, and what juts out is cropped.

        Both are multiples of at most `longest`, their product is within the area, and neither is above the image's
        own unless `enlarge`: an image below one multiple counts as so many times larger, where it is not refused.
        An image scaled to cover w×h shows the share k = min(w/width, h/height) / max(w/width, h/height) of itself.
        Of all such pairs this is the one with the greatest k·√(w·h): one percent of the picture that is cropped
        counts as much as one percent of the resolution. The pair of the nearest proportions would often be far
        smaller than the area: for an image of 5:4 in 256×256 pixels 240×192, where this is 288×224 and crops 3 %.

        Raises:
            PictureError: the image is too long for its width, or too small for one multiple.
        """
        return _size(self, width, height)


@lru_cache(maxsize=1 << 12)
def _size(to: Proportions, width: int, height: int) -> tuple[int, int]:
    if max(width, height) > to.max_aspect * min(width, height):
        raise PictureError(f"extreme proportions: {width}×{height}, and --max-aspect is {to.max_aspect:g}")
    if (short := min(width, height)) < to.multiple and not to.enlarge:
        if to.refuse_small:
            raise PictureError(f"too small: {width}×{height}, and --multiple is {to.multiple}: --enlarge keeps it")
        width, height = (side * -(-to.multiple // short) for side in (width, height))
    widest, highest = (min(side, to.longest) for side in ((to.area, to.area) if to.enlarge else (width, height)))
    w = np.arange(to.multiple, min(to.area // to.multiple, widest) + 1, to.multiple)
    most = np.minimum(to.area // w, highest) // to.multiple  # so many multiples may h be
    exact = w * height // (width * to.multiple)  # and so many are as high as the proportions ask for, or one more
    h = to.multiple * np.clip([exact, exact + 1], 1, most)
    across, down = w / width, h / height
    score = (np.minimum(across, down) / np.maximum(across, down)) ** 2 * w * h
    more, place = np.unravel_index(np.argmax(score), h.shape)
    return int(w[place]), int(h[more, place])
