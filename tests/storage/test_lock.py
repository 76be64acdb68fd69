import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from transfusion_jax.config import ConfigError
from transfusion_jax.storage import lock
from transfusion_jax.training.run_dir import Workdir

HOLD = textwrap.dedent(
    """
    import sys, time
    from transfusion_jax.storage.paths import place
    from transfusion_jax.storage import lock
    lock.BEAT = float(sys.argv[2])
    with lock.leased(place(sys.argv[1]), print):
        print("held", flush=True)
        time.sleep(600)
    """
)


def hold(path, beat=0.2):
    """A process that holds a lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(beat)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.2)


@pytest.fixture
def clock(monkeypatch):
    """A clock for the lease, which nothing but waiting moves."""
    result = SimpleNamespace(now=0.0, time=time.time, monotonic=lambda: result.now)
    result.sleep = lambda seconds: setattr(result, "now", result.now + seconds)
    monkeypatch.setattr(lock, "time", result)
    return result


def test_one_process_at_a_time_trains_in_a_workdir_of_a_bucket(remote):
    workdir, said = Workdir(remote), []
    with workdir.locked(said.append):
        assert (remote / "lock").is_file()
        with pytest.raises(ConfigError, match="another process trains in gs://"), workdir.locked(said.append):
            pass
    assert not (remote / "lock").exists()
    with workdir.locked(said.append):
        pass
    assert len(said) == 1
    assert f"is held by process {os.getpid()} of" in said[0]


def test_a_killed_process_of_this_machine_holds_nothing(remote):
    process = hold(remote / "lock", beat=600)
    process.kill()
    process.wait()
    with lock.leased(remote / "lock", pytest.fail):  # it would say that it waits
        pass


def test_another_machines_silence_is_waited_for(remote, clock):
    process = hold(remote / "lock", beat=600)
    process.kill()
    process.wait()
    held = json.loads((remote / "lock").read_text())
    (remote / "lock").write_text(json.dumps(held | {"machine": "another", "host": "far-away"}))
    said = []
    with lock.leased(remote / "lock", said.append):
        assert clock.now >= lock.SILENT
    assert "held by process" in said[0]
    assert "far-away" in said[0]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"{}"])
def test_a_damaged_lease_runs_out_as_anothers(remote, content, clock):
    (remote / "lock").write_bytes(content)
    said = []
    with Workdir(remote).locked(said.append):
        assert clock.now >= lock.SILENT
    assert "is held by process ? of an unknown machine" in said[0]


def test_a_process_that_has_lost_its_lease_ends(remote):
    process = hold(remote / "lock")
    (remote / "lock").write_text(json.dumps({"id": "another"}))
    assert process.wait(600) == 74


def test_of_many_that_ask_at_once_one_takes_the_lease(remote):
    refused = threading.Semaphore(0)

    def take(_):
        try:
            with lock.leased(remote / "lock", lambda line: None):
                return all(refused.acquire(timeout=600) for _ in range(3))
        except ConfigError:
            refused.release()
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(4))) == [False, False, False, True]
