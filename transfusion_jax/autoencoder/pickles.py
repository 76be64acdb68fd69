"""Tensors of PyTorch's pickled checkpoints (`.ckpt`, `.pth`, `.pt`), read without PyTorch and without running code.

A pickle names functions and classes to call. This reader knows the few that make tensors; every other name stands
for an object that does nothing, so that callbacks, hyperparameters and optimizers are passed over, and no module is
imported. Tensors are views of the file. Format: torch/serialization.py, both the zip archives (since PyTorch 1.6)
and the files before them.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from transfusion_jax.config import ConfigError, require

MAGIC = 0x1950A86A20F9469CFC6C  # begins a file that is no zip archive
LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
DTYPES = {name: np.dtype(name) for name in {*STORAGES.values()} - {"bfloat16"}} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}
WORDS = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32"}  # for dtypes
BROKEN = (  # what unpickling raises where a file is cut, altered or none of these
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
Open = Callable[[str, int], np.ndarray]  # a storage's bytes, by its key and their number


def read_pickle(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint's `state_dict`, or of the checkpoint itself, as they are stored.

    Raises:
        ConfigError: it is damaged, or holds no tensors by name.
    """
    try:
        held, storages = (_zipped if zipfile.is_zipfile(path) else _plain)(path)
        require(isinstance(held, Mapping), f"{path} has no named tensors")
        inner = held.get("state_dict", held)
        require(isinstance(inner, Mapping), f"{path} has no named tensors")
        for name, value in inner.items():
            if isinstance(value, _Tensor):
                yield str(name), value.array(storages)
    except BROKEN as error:
        raise ConfigError(f"{path} cannot be read: {error or type(error).__name__}") from error


class _Inert:
    """Stands in for any other class or function that a pickle names: accepts all calls, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore


@dataclass(frozen=True)
class _Storage:
    """A pickle's reference to a block of numbers outside it."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, not verified until it is read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str  # in which its strides count

    def array(self, storages: Open) -> np.ndarray:
        """Its numbers.

        Raises:
            ValueError: it reaches beyond its storage.
        """
        dtype = DTYPES[self.dtype]
        block = storages(self.storage.key, self.storage.count * DTYPES[self.storage.dtype].itemsize).view(dtype)
        sizes = [self.offset, *self.shape, *self.strides]
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if min(sizes) < 0 or math.prod(self.shape) > len(block) or (0 not in self.shape and last >= len(block)):
            raise ValueError("a tensor reaches beyond its storage")
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        steps = [step * dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(block[self.offset :], self.shape, steps, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers; its stand-in classes are made per file."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="latin1")  # Python 2 wrote some of them
        self.storages: dict[str, _Storage] = {}

        def tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
            return _Tensor(storage, offset, tuple(shape), tuple(strides), storage.dtype)

        def typed(storage: _Storage, offset: int, shape: Any, strides: Any, *more: Any) -> _Tensor:
            return _Tensor(storage, offset, tuple(shape), tuple(strides), more[2])

        def first(value: Any, *_: Any) -> Any:
            return value

        def subclass(make: Any, _: Any, arguments: Any, *__: Any) -> Any:
            return make(*arguments)

        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): tensor,
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._utils", "_rebuild_tensor_v3"): typed,
            ("torch._utils", "_rebuild_parameter"): first,
            ("torch._utils", "_rebuild_parameter_with_state"): first,
            ("torch._tensor", "_rebuild_from_type_v2"): subclass,
        }

    def find_class(self, module: str, name: str) -> Any:
        """A function of ours, a dtype's name, or a class that does nothing; nothing is looked up or imported."""
        if (module, name) in self._known:
            return self._known[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and (dtype := WORDS.get(name, name)) in DTYPES:
            return dtype
        return type(name, (_Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: `("storage", type, key, device, count)`, with a view's place behind it in old files."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or any(view) or count < 0:
            raise pickle.UnpicklingError("it stores tensors in an unsupported way")
        return self.storages.setdefault(str(key), _Storage(dtype, str(key), count))


def _zipped(path: Path) -> tuple[Any, Open]:
    """What a zip archive holds, and its storages: its entries `data/KEY`, which are not compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        inside = next((name for name in entries if name.endswith("data.pkl")), None)
        if inside is None:
            raise ValueError("it is a zip archive without data.pkl")
        folder = inside.removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in entries else b"little"
        if order != b"little":
            raise ValueError("its numbers are big-endian")
        with archive.open(inside) as file:
            held = _Unpickler(file).load()

    def storage(key: str, size: int) -> np.ndarray:
        info = entries[f"{folder}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < size:
            raise ValueError(f"its entry {info.filename} does not match its tensors")
        with path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return _mapped(path, info.header_offset + LOCAL_HEADER + names, size)

    return held, storage


def _plain(path: Path) -> tuple[Any, Open]:
    """What an older file holds: pickles one after the other, the storages behind them."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise ValueError("it is not a PyTorch checkpoint")
        _Unpickler(file).load()  # the format's version
        _Unpickler(file).load()  # sizes of numbers where it was written
        unpickler = _Unpickler(file)
        held = unpickler.load()
        begins = {}
        for key in map(str, _Unpickler(file).load()):
            known = unpickler.storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != known.count:
                raise ValueError(f"its storage {key} does not match its tensors")
            begins[key] = file.tell()
            file.seek(count * DTYPES[known.dtype].itemsize, 1)
    return held, lambda key, size: _mapped(path, begins[key], size)


def _mapped(path: Path, begin: int, size: int) -> np.ndarray:
    return np.memmap(path, np.uint8, "r", begin, (size,)) if size else np.empty(0, np.uint8)
