import io
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from transfusion_jax.autoencoder import importing, pickles
from transfusion_jax.config import ConfigError


class Named:
    """Pickled as a call of a function by its name, whatever that is."""

    def __init__(self, module, name, *arguments):
        self.path, self.arguments = (module, name), arguments

    def __reduce__(self):
        return Global(*self.path), self.arguments


class Global:
    """Pickled as a name."""

    def __init__(self, module, name):
        self.__module__, self.__qualname__ = module, name

    def __call__(self):
        raise AssertionError("never called")


class Storage:
    def __init__(self, key, count, kind="FloatStorage"):
        self.pid = ("storage", Global("torch", kind), key, "cpu", count)


class Pickler(pickle._Pickler):
    """Python's own in Python, which writes names of modules that are not there."""

    def persistent_id(self, found):
        return found.pid if isinstance(found, Storage) else None

    def save(self, found, save_persistent_id=True):
        if isinstance(found, Global):
            self.write(f"c{found.__module__}\n{found.__qualname__}\n".encode())
        else:
            super().save(found, save_persistent_id)


def tensor(count=6, offset=0, shape=(2, 3), strides=(3, 1)):
    return Named("torch._utils", "_rebuild_tensor_v2", Storage("0", count), offset, shape, strides, False, {})


def dumped(held):
    file = io.BytesIO()
    Pickler(file, 2).dump(held)
    return file.getvalue()


def archive(path, held):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", dumped(held) if not isinstance(held, bytes) else held)
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    return path


@pytest.fixture
def traps(monkeypatch):
    """Calls that a pickle got through, of a module that is there and of the system's."""
    calls = []
    there = types.ModuleType("trap")
    there.spring = lambda *a: calls.append(a)
    monkeypatch.setitem(sys.modules, "trap", there)
    monkeypatch.setattr(os, "system", lambda *a: calls.append(a))
    return calls


class Dictionary(Named):
    """An object of a class of its own that is filled like a dictionary, and has a state."""

    def __reduce__(self):
        return Global(*self.path), (), {"state": 1}, iter([1, 2]), iter([("key", 2)])


BESIDE = {  # what checkpoints hold beside tensors
    "a class as a key": lambda: {Global("pytorch_lightning.callbacks", "ModelCheckpoint"): {"score": tensor()}},
    "classes as keys of keys": lambda: {(Global("torch", "Tensor"), 1): {Global("enum", "Enum"): tensor()}},
    "a member as a key": lambda: {Named("pytorch_lightning.trainer.states", "TrainerFn", "fit"): 1},
    "a tensor as a key": lambda: {tensor(): {"step": 1}},
    "a set of tensors": lambda: Named("builtins", "set", [tensor(), Global("torch", "Tensor")]),
    "a dictionary with defaults": lambda: Dictionary("collections", "defaultdict"),
    "an object": lambda: Named("omegaconf.dictconfig", "DictConfig", {"a": 1}),
    "a collection": lambda: Dictionary("pytorch_lightning.utilities", "AttributeDict"),
    "a scalar of numpy's": lambda: Named("numpy.core.multiarray", "scalar", Named("numpy", "dtype", "f8"), b"1"),
    "a command": lambda: Named("os", "system", "true"),
    "a command by another name": lambda: Named("posix", "system", "true"),
    "a function": lambda: Named("trap", "spring", 1),
    "a builtin": lambda: Named("builtins", "eval", "__import__('trap').spring()"),
    "a call of what was called": lambda: Named("builtins", "getattr", Named("builtins", "__import__", "os"), "x"),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_stands_beside_tensors_is_passed_over_and_never_called(beside, tmp_path, traps):
    held = {"callbacks": BESIDE[beside](), "state_dict": {"weight": tensor(), "other": BESIDE[beside]()}}
    found = dict(importing.read_tensors(archive(tmp_path / "model.ckpt", held)))
    assert found.keys() == {"weight"}
    np.testing.assert_array_equal(found["weight"], np.arange(6).reshape(2, 3))
    assert traps == []


def test_names_are_not_looked_up(tmp_path):
    held = {"callbacks": Named("this", "s"), "weight": tensor()}
    sys.modules.pop("this", None)
    assert [name for name, _ in pickles.read_pickle(archive(tmp_path / "model.ckpt", held))] == ["weight"]
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "claim",
    [
        dict(shape=(3, 3)),
        dict(offset=1),
        dict(offset=-1),
        dict(strides=(3, 2)),
        dict(strides=(-3, 1)),
        dict(strides=(0, 0), shape=(10**6, 10**9)),
        dict(count=7),
        dict(count=-1),
        dict(shape=(2,)),
        dict(shape=("a", 3)),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(claim, tmp_path):
    path = archive(tmp_path / "model.ckpt", {"weight": tensor(**claim)})
    with pytest.raises(ConfigError, match="cannot be read"):
        dict(pickles.read_pickle(path))


def test_every_cut_of_a_file_is_refused(tmp_path):
    path = archive(tmp_path / "model.ckpt", {"weight": tensor()})
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ConfigError, match="cannot be read"):
            dict(pickles.read_pickle(path))


def test_damaged_pickles_give_tensors_or_an_error(tmp_path):
    random, whole = np.random.default_rng(0), dumped({"state_dict": {"weight": tensor()}})
    for _ in range(300):
        harmed = bytearray(whole)
        harmed[random.integers(len(whole))] = random.integers(256)
        path = archive(tmp_path / "model.ckpt", bytes(harmed))
        try:
            assert all(value.size <= 6 for _, value in pickles.read_pickle(path))
        except ConfigError:
            continue


@pytest.mark.parametrize("held", [[1, 2], None, {"state_dict": [1]}, Named("torch.nn", "Module")])
def test_a_file_without_named_tensors_is_refused(held, tmp_path):
    with pytest.raises(ConfigError, match="has no named tensors"):
        dict(pickles.read_pickle(archive(tmp_path / "model.ckpt", held)))
