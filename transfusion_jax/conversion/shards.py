"""Safetensors files, one or many with an index, as Hugging Face writes them: read and written tensor by tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transfusion_jax.config import ConfigError, require

NAME, INDEX = "model.safetensors", "model.safetensors.index.json"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@dataclass(frozen=True)
class Shards:
    """Tensors by name, each in its file; none is in memory until it is asked for."""

    files: dict[str, Path]  # by tensor
    _open: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Shards:
        """A safetensors file, or a folder with one, or with an index of several.

        Raises:
            ConfigError: there is none, or a file of the index is missing or damaged.
        """
        if path.is_file():
            return cls(_names(path))
        if (path / INDEX).is_file():
            index = read_json(path / INDEX, "weight_map")["weight_map"]
            there = {
                name: file for part in sorted(set(index.values())) for name, file in _names(path / part).items()
            }
            missing = sorted(index.keys() - there.keys())
            require(not missing, f"{path / INDEX} names tensors that no file holds: {', '.join(missing[:3])}")
            return cls(there)
        if (path / NAME).is_file():
            return cls(_names(path / NAME))
        raise ConfigError(f"{path} holds no {NAME} and no {INDEX}")

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor as it is stored, memory-mapped where the platform can."""
        require(name in self.files, f"there is no tensor {name}")
        path = self.files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="np")
        tensor: np.ndarray = self._open[path].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        with safe_open(self.files[name], framework="np") as file:
            return tuple(file.get_slice(name).get_shape())


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], largest: int) -> None:
    """Writes tensors in files of `largest` bytes at most, a single tensor excepted, and their index.

    Only one file's tensors are in memory at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[list[str]] = []
    total = 0
    for number, part in enumerate(_parts(tensors, largest)):
        save_file(part, folder / f"part-{number}", metadata={"format": "pt"})
        parts.append(list(part))
        total += sum(value.nbytes for value in part.values())
        part.clear()  # before the next one is read
    index: dict[str, str] = {}
    for number, names in enumerate(parts):
        whole = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors" if len(parts) > 1 else NAME
        (folder / f"part-{number}").replace(folder / whole)
        index |= dict.fromkeys(names, whole)
    if len(parts) > 1:
        about = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / INDEX).write_text(json.dumps(about, indent=2) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """An object of a JSON file that has these keys.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    require(path.is_file(), f"{path.parent} holds no {path.name}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    require(isinstance(values, dict), f"{path} holds no object")
    missing = [key for key in keys if key not in values]
    require(not missing, f"{path} lacks {', '.join(missing)}")
    found: dict[str, Any] = values
    return found


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `200MB` or `64KB`.

    Raises:
        ConfigError: it is not of this form.
    """
    found = re.fullmatch(r"(\d+)(KB|MB|GB)", text)
    if found is None or not int(found[1]):
        raise ConfigError(f"--max-shard-size {text} should be a size such as 5GB or 200MB")
    return int(found[1]) * UNITS[found[2]]


def _names(path: Path) -> dict[str, Path]:
    require(path.is_file(), f"{path} is missing")
    try:
        with safe_open(path, framework="np") as file:
            return dict.fromkeys(file.keys(), path)
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error


def _parts(tensors: Iterable[tuple[str, np.ndarray]], largest: int) -> Iterator[dict[str, np.ndarray]]:
    part: dict[str, np.ndarray] = {}
    for name, value in tensors:
        if part and sum(v.nbytes for v in part.values()) + value.nbytes > largest:
            yield part
            part = {}
        part[name] = np.ascontiguousarray(value)  # safetensors writes the memory as it lies
    yield part
