"""What a format is, and the options of reading."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument
from transfusion_jax.errors import require


class UnfitFile(ConfigError):
    """A file that does not hold what its format asks for: an error, or a fault where it came with others."""


@dataclass(frozen=True)
class ReadOptions:
    """How inputs are read. A format refuses an option that means nothing to it."""

    image_column: str | None = None  # column, field, feature, or extension of a tar's member; None: found by name
    text_column: str | None = None  # the same for captions and texts
    images: str | None = None  # the folder of relative image paths; None: the folder that the file lies in
    image_size: int = 256  # pixels of a side: what images are cropped and resized to, unless they are `native`
    native: Proportions | None = None  # how images keep their proportions; None: they become squares
    shard_size: int = 4096  # records per shard, about
    split: str | None = None  # of a Karpathy file, such as "train,restval"; None: all
    languages: str = "en"  # of captions, such as "en,fr", or "all"
    data_dir: str | None = None  # where TFDS keeps its data sets; None: its default
    allow_paths: bool = False  # whether data may name files outside the input's folder, or `images`, and in buckets

    def __post_init__(self) -> None:
        for name in ("image_size", "shard_size"):
            require(getattr(self, name) > 0, f"{flag(name)} must be positive, not {getattr(self, name)}")

    @property
    def size(self) -> int | Proportions:
        """What images become: squares of this side, or of their own proportions."""
        return self.native or self.image_size

    @property
    def side(self) -> int:
        """The side of the largest square, which scenes are drawn at, pixels."""
        return self.native.square if self.native else self.image_size

    @property
    def area(self) -> int:
        """Pixels of the largest image."""
        return self.native.area if self.native else self.image_size**2


@dataclass(frozen=True)
class Format:
    """A way in which documents are stored; its name is that of the table `READERS`.

    `shards(path, options)` lists the parts of an input in a fixed order. `read(shard, options)` yields what one
    part holds, always the same and in the same order. Both raise `ConfigError` where an option does not fit.
    """

    shards: Callable[[str, ReadOptions], list[InputShard]]
    read: Callable[[InputShard, ReadOptions], Iterator[RawDocument | Fault]]
    suffixes: tuple[str, ...] = ()  # of its files, in lower case
    options: tuple[str, ...] = ()  # fields of `ReadOptions` that it honours
    is_set: bool = False  # an input is its name, and what may follow it, as in shapes:20000, not a file


def flag(name: str) -> str:
    """The command line's option that sets a field."""
    return f"--{name.replace('_', '-')}"


def package(name: str, install: str) -> ModuleType:
    """An optional package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"this input needs a package that is missing: pip install '{install}' ({error})"
        ) from error
