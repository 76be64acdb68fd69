"""Safetensors files, one or many with an index, as Hugging Face writes them: read and written part by part."""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data.marks import read_object
from transfusion_jax.errors import whole_number
from transfusion_jax.storage.atomic import whole, write_whole
from transfusion_jax.training.checkpoint.checksums import Box
from transfusion_jax.training.checkpoint.chunks import Leaf, boxes

NAME, INDEX = "model.safetensors", "model.safetensors.index.json"
BEGUN = "convert.unfinished"  # in a folder that a conversion of ours has not ended
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
MMAP_THRESHOLD = -3  # mallopt's name for it in glibc's malloc.h
LARGE = 2**20  # bytes
Part = tuple[str, Box, np.ndarray]  # a tensor's name, a place in it, and what is there
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # those of the format


class Tensors(Protocol):
    """Tensors by name, read part by part."""

    @property
    def files(self) -> Mapping[str, Path]:
        """The file of each tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        ...

    def read(self, name: str, box: Box) -> np.ndarray:
        """A part of a tensor."""
        ...


@dataclass(frozen=True)
class Shards:
    """Tensors by name, each in its file; none is in memory until it is asked for."""

    files: dict[str, Path]  # by tensor
    _open: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Shards:
        """A safetensors file, or a folder with one, or with an index of several.

        Raises:
            ConfigError: there is none, or a file of the index is missing or damaged, or the folder is unfinished.
        """
        if path.is_file():
            return cls(_names(path))
        require(not (path / BEGUN).exists(), f"a conversion has not ended in {path}: give its command once more")
        if (path / INDEX).is_file():
            index = read_fields(path / INDEX, "weight_map")["weight_map"]
            there = {
                name: file for part in sorted(set(index.values())) for name, file in _names(path / part).items()
            }
            missing = sorted(index.keys() - there.keys())
            require(not missing, f"{path / INDEX} names tensors that no file holds: {', '.join(missing[:3])}")
            return cls(there)
        if (path / NAME).is_file():
            return cls(_names(path / NAME))
        raise ConfigError(f"{path} holds no {NAME} and no {INDEX}")

    def leaf(self, name: str, dtype: str | None = None) -> Leaf:
        """A tensor, in pieces; in another dtype, where one is given."""
        shape = self.shape(name)
        found = dtype or str(self.read(name, tuple(slice(0, 1) for _ in shape)).dtype)
        return Leaf(found, shape, lambda: ((box, self.read(name, box).astype(found)) for box in boxes(shape)))

    def read(self, name: str, box: Box) -> np.ndarray:
        """A part of a tensor, in the dtype in which it is stored."""
        part: np.ndarray = self._slice(name)[box]
        return part

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        path = self.files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="np")
        return self._open[path].get_slice(name)


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Iterable[Part],
    dtype: str,
    largest: int,
) -> None:
    """Writes tensors in files of `largest` bytes at most, a single tensor excepted, and their index.

    The files are mapped to memory, where the system keeps as much of them as it has room for; besides, one part is
    in memory at a time.

    Args:
        folder: made where it is not there.
        shapes: all tensors, in the order in which they are put into files.
        parts: in any order.
        dtype: one of `DTYPES`, which all values are converted to.
        largest: bytes.

    Raises:
        OSError: there is no room for the files.
    """
    files = _files(shapes, dtype, largest)
    where: dict[str, tuple[Path, int]] = {}  # the file of a tensor, and where it begins there
    index: dict[str, str] = {}
    with ExitStack() as stack:
        for number, tensors in enumerate(files):
            name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else NAME
            path = stack.enter_context(whole(folder / name))
            where |= {name: (path, begin) for name, begin in _begin(path, tensors, dtype).items()}
            index |= dict.fromkeys(tensors, name)
        for name, box, value in parts:
            path, begin = where[name]
            np.memmap(path, DTYPES[dtype], "r+", begin, shapes[name])[box] = value
    if len(files) > 1:
        total = sum(_bytes(shape, dtype) for shape in shapes.values())
        about = {"metadata": {"total_size": total}, "weight_map": index}
        write_whole(folder / INDEX, json.dumps(about, indent=2) + "\n")


def read_fields(path: Path, *keys: str) -> dict[str, Any]:
    """An object of a JSON file that has these keys.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    require(path.is_file(), f"{path.parent} holds no {path.name}")
    values = read_object(path)
    missing = [key for key in keys if key not in values]
    require(not missing, f"{path} lacks {', '.join(missing)}")
    return values


def parse_bytes(text: str) -> int:
    """Bytes of `5GB`, `200MB` or `64KB`.

    Raises:
        ConfigError: it is not of this form.
    """
    number = whole_number(text[:-2])
    if not number or text[-2:] not in UNITS:
        raise ConfigError(f"--max-shard-size {text} should be a size such as 5GB or 200MB")
    return number * UNITS[text[-2:]]


def _names(path: Path) -> dict[str, Path]:
    require(path.is_file(), f"{path} is missing")
    try:
        with safe_open(path, framework="np") as file:
            return dict.fromkeys(file.keys(), path)
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error


def _files(shapes: Mapping[str, tuple[int, ...]], dtype: str, largest: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of each file."""
    files: list[dict[str, tuple[int, ...]]] = [{}]
    room = largest
    for name, shape in shapes.items():
        size = _bytes(shape, dtype)
        if files[-1] and size > room:
            files.append({})
            room = largest
        files[-1][name] = shape
        room -= size
    return files


def _begin(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> dict[str, int]:
    """Makes a file of zeros with its header, and says at which byte each tensor begins."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name, shape in tensors.items():
        begins[name], end = end, end + _bytes(shape, dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begins[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    before = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        os.posix_fallocate(
            file.fileno(), 0, before + end
        )  # on a full disk, this fails; a write to memory would kill
    return {name: before + begin for name, begin in begins.items()}


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize


def give_back() -> None:
    """Has glibc return large blocks once they are freed, where it keeps them for each of its threads otherwise.

    TensorStore's threads would hold several pieces each that nobody needs any more. Other C libraries have no such
    setting, and need none.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, LARGE)
