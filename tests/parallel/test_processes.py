import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import transfusion_jax
from transfusion_jax.config import ConfigError
from transfusion_jax.errors import LostProcess, StorageError
from transfusion_jax.parallel import processes
from transfusion_jax.parallel.processes import each, first, how_to_connect, on_first
from transfusion_jax.storage.atomic import DamagedFile
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint, DeletedCheckpoint

PACKAGE = Path(transfusion_jax.__file__).parent
LOST = LostProcess.exit_code


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (
            dict(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1"),
            dict(coordinator_address="a:1", num_processes=2, process_id=1),
        ),
        (
            dict(JAX_COORDINATOR_ADDRESS="127.0.0.1:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1"),
            dict(
                coordinator_address="127.0.0.1:1",
                num_processes=2,
                process_id=1,
                coordinator_bind_address="127.0.0.1:1",  # no other machine is to reach it
            ),
        ),
        (dict(SLURM_JOB_ID="7", SLURM_NTASKS="4"), None),  # a batch script is no step
        (dict(SLURM_STEP_NUM_TASKS="1"), None),
        (
            dict(SLURM_STEP_NUM_TASKS="2", SLURM_STEP_TASKS_PER_NODE="1(x2)"),
            dict(cluster_detection_method="slurm", local_device_ids=[]),
        ),
        (
            dict(SLURM_STEP_NUM_TASKS="8", SLURM_STEP_TASKS_PER_NODE="4(x2)"),
            dict(cluster_detection_method="slurm"),
        ),
    ],
)
def test_how_processes_find_each_other(environment, expected):
    assert how_to_connect(environment) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        *(dict(JAX_PROCESS_ID=word) for word in ("2", "x", "²", "-1", "9" * 30)),
        *(dict(JAX_NUM_PROCESSES=word) for word in ("", "²")),
        dict(JAX_COORDINATOR_ADDRESS="a"),
    ],
)
def test_half_an_address_is_refused(wrong):
    whole = dict(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")
    with pytest.raises(ConfigError, match="and a number below it each"):
        how_to_connect(whole | wrong)


class Unknown(DamagedFile):
    """What another process does not know."""


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (ConfigError("no such thing"), ConfigError),
        (StorageError("full"), StorageError),
        (DamagedCheckpoint(3, "torn"), DamagedCheckpoint),
        (DeletedCheckpoint(4), DeletedCheckpoint),
        (Unknown("odd"), DamagedFile),
        (ConfigError(Path("a")), ConfigError),
    ],
)
def test_an_error_travels_as_json_and_is_the_same_one(raised, arrives, monkeypatch):
    """With a stand-in for the other process, whose outcome comes first."""

    def fail():
        raise raised

    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_gather", lambda text: [text.replace("Unknown", "Elsewhere"), '{"value": 1}'])
    with pytest.raises(arrives) as error:
        each(fail)
    assert type(error.value) is arrives
    assert str(error.value) == str(raised)
    assert vars(error.value) == vars(raised)


def test_a_value_that_is_no_json_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_gather", lambda text: [text, text])
    with pytest.raises(TypeError, match="not JSON serializable"):
        each(lambda: Path("a"))
    assert each(lambda: {"a": [1, None, 0.5, "é"]}) == [{"a": [1, None, 0.5, "é"]}] * 2


def test_nothing_between_processes_is_a_pickle():
    """But what the standard library and Ray send to processes that they start themselves."""
    users = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(import|from) (pickle|cloudpickle|marshal|shelve)\b", path.read_text(), re.MULTILINE)
    ]
    assert users == ["autoencoder/pickles.py"]  # which reads checkpoints of others, and executes nothing of them


def test_alone_nothing_is_asked_of_others():
    assert first()
    assert each(lambda: 3) == [3]
    assert on_first(lambda: 4) == 4


def together(script, processes=3, devices=8):
    """Exit codes and outputs of processes that run a script once they have found each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    start = "import os, sys, signal, time\nfrom transfusion_jax.parallel import processes as p\np.connect()\n"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", start + script],
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(processes)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in running]
    return [process.returncode for process in running], outputs


def test_processes_hear_of_each_other():
    codes, outputs = together("""
print(p.each(lambda: p.index() * 10))
print(p.on_first(lambda: f"of {p.index()}"))
""")
    assert codes == [0, 0, 0], outputs
    assert all("[0, 10, 20]\nof 0\n" in output for output in outputs)


def test_what_one_raises_all_raise():
    codes, outputs = together("""
from transfusion_jax.config import ConfigError
def check():
    if p.index() == 1:
        raise ConfigError("no such thing")
try:
    p.each(check)
except ConfigError as error:
    print("raised", error)
""")
    assert codes == [0, 0, 0], outputs
    assert all("raised process 1: no such thing" in output for output in outputs)


@pytest.mark.parametrize("failing", [0, 2])
def test_one_that_fails_tells_the_others(failing):
    codes, outputs = together(f"""
p.GRACE = 1.5 if p.index() == 1 else 0.0  # the first one hears before another does, and has to stay for it
if p.index() == {failing}:
    raise RuntimeError("alas")
time.sleep(200)
""")
    assert codes == [1 if number == failing else LOST for number in range(3)], outputs
    for number, output in enumerate(outputs):
        expected = "RuntimeError: alas" if number == failing else f"process {failing} has ended: alas"
        assert expected in output


def test_one_that_is_killed_is_missed():
    """At once where each has one device; of several, some may wait until JAX aborts them after 100 s."""
    script = """
import numpy as np
from jax.experimental import multihost_utils
multihost_utils.process_allgather(np.zeros(1))
if p.index() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
multihost_utils.process_allgather(np.zeros(1))
"""
    codes, outputs = together(script, devices=1)
    assert codes == [LOST, -signal.SIGKILL, LOST], outputs
    for output in (outputs[0], outputs[2]):
        assert re.search("another process is gone|process [02] has ended", output)
        assert "Traceback" not in output


@pytest.mark.slow
def test_once_all_are_reached_one_may_come_late():
    """Later than the 30 s that Gloo would wait for it in its first collective."""
    codes, outputs = together(
        """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from transfusion_jax.config import MeshConfig
from transfusion_jax.parallel.mesh import make_mesh, reach_all
mesh = make_mesh(MeshConfig(data=2, context=2, tensor=-1))
reach_all(mesh)
p.each(lambda: None)
if p.index() == 1:
    time.sleep(33)
ones = jax.make_array_from_callback((8, 8), NamedSharding(mesh, P("tensor", "data")), lambda i: jnp.ones((8, 8))[i])
replicated = jax.jit(lambda x: x @ x.T, out_shardings=NamedSharding(mesh, P()))(ones)
print("sum", float(replicated.sum()))
""",
        processes=2,
    )
    assert codes == [0, 0], outputs
    assert all("sum 512.0" in output for output in outputs)
