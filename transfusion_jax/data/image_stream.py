"""The images of prepared data as rows, for training autoencoders: row r is one image, a function of (seed, r).

Where images keep their proportions, a row is a square of one, and the place of the square is such a function, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from transfusion_jax.config import AutoencoderRun, require
from transfusion_jax.data.datasets import plain_statistics
from transfusion_jax.data.packing.shuffle import shuffled
from transfusion_jax.data.store.dataset import Prepared, PreparedDocuments
from transfusion_jax.data.stream import LAST_ROW
from transfusion_jax.storage.paths import Place

FLIP, PLACE = 1, 2  # tell the draws of a flip and of a square's place from others of the seed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageBatch:
    """B images; arrays are NumPy on the host, JAX on devices."""

    image: Any  # [B, H, W, C] float32 in [−1, 1]
    row: Any  # [B] int32, the row's number in the stream


@dataclass(frozen=True, repr=False)
class Images:
    """All images of one part of some prepared folders, by number."""

    parts: tuple[PreparedDocuments, ...]
    size: int  # pixels of a side; no image has a shorter one

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, number: int) -> np.ndarray:
        """The middle square of an image, `[size, size, C]` in [−1, 1]."""
        return self.square(number, 0.5, 0.5)

    def square(self, number: int, down: float, across: float) -> np.ndarray:
        """A square of an image, `[size, size, C]` in [−1, 1], so far down and across: from 0 to below 1."""
        part = int(np.searchsorted(self._offsets, number, side="right")) - 1
        ends, number = self._ends[part], number - int(self._offsets[part])
        document = int(np.searchsorted(ends, number, side="right"))
        before = int(ends[document - 1]) if document else 0
        documents = self.parts[part]
        image = documents.latents(documents.first_record(document))[number - before]
        top, left = (int(at * (n - self.size + 1)) for at, n in zip((down, across), image.shape[:2], strict=True))
        return image[top : top + self.size, left : left + self.size]

    @property
    def remote(self) -> bool:
        """Whether they are read over a network."""
        return any(part.remote for part in self.parts)

    @cached_property
    def hash(self) -> str:
        """Of every image, in order."""
        return hashlib.sha256(";".join(part.hash for part in self.parts).encode()).hexdigest()[:16]

    @cached_property
    def _ends(self) -> list[np.ndarray]:
        return [np.cumsum(part.images.astype(np.int64)) for part in self.parts]

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *(int(ends[-1]) if len(ends) else 0 for ends in self._ends)])


@dataclass(frozen=True, repr=False)
class ImageRows:
    """The endless stream of images: each epoch reads every image once, in an order of its own."""

    corpus: Images
    seed: int
    flip: bool = False

    def __len__(self) -> int:
        return LAST_ROW

    def __getitem__(self, row: int) -> ImageBatch:
        """A batch of one, without the leading B."""
        epoch, place = divmod(int(row), len(self.corpus))
        number = int(shuffled(place, len(self.corpus), (self.seed, 0), epoch))
        image = self.corpus.square(number, *np.random.default_rng([self.seed, PLACE, row]).random(2))
        if self.flip and np.random.default_rng([self.seed, FLIP, row]).random() < 0.5:
            image = image[:, ::-1]
        return ImageBatch(np.ascontiguousarray(image), np.int32(row))

    def after(self, row: int, count: int) -> int:
        """The row that is `count` rows further on."""
        return row + count


@dataclass(frozen=True)
class ImageData:
    """Images to train on, and images kept out."""

    train: Images
    held_out: Images

    def keep(self, folder: Place) -> None:
        """A run of images needs nothing more to be read again."""

    def facts(self, config: AutoencoderRun) -> dict[str, Any]:
        """What a manifest says of the data."""
        del config
        return {"data_hash": self.train.hash, "codec": {}}


def load_images(config: AutoencoderRun) -> ImageData:
    """Opens the pixels of every source.

    Raises:
        ConfigError: a source holds no images, or images of another size, or of too small a one to be cropped.
    """
    a, size = config.architecture, config.image_size
    folders = {name: Prepared.open(path) for name, path in sorted(config.data.sources.items())}
    for name, prepared in folders.items():
        *sides, channels = prepared.encoding("pixels")["shape"]
        if prepared.native:
            sides = [size, size]  # of the squares that are cropped from them
            _require_room(name, prepared, size)
        require(
            (*sides, channels) == (size, size, a.image_channels),
            f"the images of source {name!r} are {(*sides, channels)}, and the config asks for "
            f"{(size, size, a.image_channels)}: set image_size and architecture.image_channels, or prepare them so",
        )
    statistics = plain_statistics(a.image_channels)

    def images(split: str) -> Images:
        parts = (PreparedDocuments(prepared, split, "pixels", statistics) for prepared in folders.values())
        return Images(tuple(part.make_ready() for part in parts), size)

    data = ImageData(images("train"), images("held_out"))
    require(len(data.train) > 0, f"there are no images in {', '.join(config.data.sources.values())}")
    return data


def _require_room(name: str, prepared: Prepared, size: int) -> None:
    """Raises ConfigError where squares of this size cannot be cropped from all images of a source."""
    shapes = prepared.shapes("pixels")
    small = sum(count for shape, count in shapes.items() if min(shape) < size)
    require(
        not small,
        f"{small:,} of the images of source {name!r}, which keep their proportions, have a side below image_size "
        f"{size}: set image_size to {min(map(min, shapes), default=size)} or less, or prepare them with a larger "
        "--area and a smaller --max-aspect, and with --min-size or --enlarge",
    )
