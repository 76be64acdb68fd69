"""Eight host devices for the sharding tests (everything else computes on the first), and caches of their own."""

import atexit
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
import uuid
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import shapes
import xla

MAPS = 20_000  # of a process, from which it forgets programs; one file of tests adds at most as many again

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags(8)}"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # a tenth of what it takes to trace and compile
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would report, from threads that outlive their test

# Many tests start processes that compile the same programs; workers and processes inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

plans = tempfile.mkdtemp(prefix="plans-")
atexit.register(shutil.rmtree, plans, ignore_errors=True)
os.environ["TRANSFUSION_CACHE"] = plans

shapes.install()

pytest_plugins = ["drills.table"]


def pytest_collection_finish():
    """What is collected by now stays to the end: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """JAX holds each program that it compiled in memory maps, of which Linux gives a process 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if (jax := sys.modules.get("jax")) and maps.exists() and maps.read_text().count("\n") > MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """scikit-learn's digits, prepared."""
    from helpers import prepare  # not before the variables above are set: JAX reads them when it is imported

    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(folder, ["digits"], held_out=0.15, channels=1)
    return folder


@pytest.fixture(scope="session")
def forking():
    """A context of `multiprocessing` whose workers come from one process that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transfusion_jax.data.prepare.run"])
    return SimpleNamespace(get_context=lambda method: context)


@pytest.fixture
def ready_workers(forking, monkeypatch):
    """Workers of `transfusion prepare` begin without the seconds that imports take."""
    monkeypatch.setattr(import_module("transfusion_jax.data.prepare.run"), "multiprocessing", forking)


@pytest.fixture(scope="session")
def emulated():
    """A bucket of this test process: TensorStore reads the address of its service once."""
    from emulator import bucket

    with bucket("bucket-1") as url:
        yield url


@pytest.fixture
def remote(emulated):
    """An empty folder in a bucket."""
    from transfusion_jax.storage.paths import place

    return place(f"{emulated}/{uuid.uuid4().hex}")
