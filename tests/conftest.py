"""Eight host devices for the sharding tests (everything else computes on the first), and caches of their own."""

import atexit
import os
import shutil
import sys
import tempfile
import uuid

import pytest

import shapes

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# The tests compile far more than they compute: with it off, the suite takes half as long again.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would report, from threads that outlive their test

# Many tests start processes that compile the same programs; workers and processes inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

plans = tempfile.mkdtemp(prefix="plans-")
atexit.register(shutil.rmtree, plans, ignore_errors=True)
os.environ["TRANSFUSION_CACHE"] = plans

shapes.install()

pytest_plugins = ["drills.table"]


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """JAX holds each program that it compiled in memory maps, of which Linux gives a process 65,530."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """scikit-learn's digits, prepared."""
    from helpers import prepare  # not before the variables above are set: JAX reads them when it is imported

    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(folder, ["digits"], held_out=0.15, channels=1)
    return folder


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
