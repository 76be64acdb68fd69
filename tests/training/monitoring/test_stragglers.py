import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from transfusion_jax.training.monitoring.stragglers import describe_straggler, gather_names, gather_numbers, slowest

PROGRAM = """
import json, sys, time
from transfusion_jax.parallel.processes import connect, index
connect()
from pathlib import Path
from types import SimpleNamespace
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from transfusion_jax.training.monitoring.throughput import Timer
from transfusion_jax.training.monitoring.telemetry import Watch, Watching
from transfusion_jax.training.monitoring.watchdog import Beat
from transfusion_jax.training.run_dir import Workdir

mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
add_up = jax.jit(lambda x: x.sum(), out_shardings=whole)  # every process waits for the others here
timer, said = Timer(0, 1.0, 2, sum), []
with Watch(Workdir(Path(sys.argv[1])), 0, 11, timer, Watching(), Beat(), said.append) as watch:
    for step in range(1, 12):
        with watch.waiting():
            if index() == 1 and step > 1:
                time.sleep(0.5)
            batch = jax.make_array_from_process_local_data(split, np.ones(1, np.float32))
        with watch.step(step):
            report = SimpleNamespace(verdict=add_up(batch))
        watch.stepped(report)
        report.verdict.block_until_ready()
        watch.free()
    timer.seconds_per_step = 0.6
    values = watch.read(11)
if index() == 0:
    print(json.dumps({"values": values, "said": said}))
"""


def test_the_process_that_delays_its_devices_most_is_named():
    late, data_wait = np.array([0.02, 0.3, 0.01]), np.array([0.0, 0.25, 0.0])
    slow = slowest(late, data_wait, seconds_per_step=1.0)
    assert (slow.process, slow.seconds, slow.for_data) == (1, 0.3, 0.25)
    assert slow.ratio == pytest.approx(1 / (1 - 0.28))  # beside the median process
    assert "process 1 (b) keeps the others waiting: 0.300 s of each step's 1.000 s, 0.250 s" in describe_straggler(
        slow, "b", 1.0
    )


def test_all_alike_slow_none_down():
    assert slowest(np.full(4, 0.5), np.zeros(4), 1.0).ratio == 1
    assert slowest(np.zeros(2), np.zeros(2), 0.0).ratio == 1  # nothing was measured yet
    assert slowest(np.array([0.0, 9.0]), np.zeros(2), 1.0).ratio == pytest.approx(100)


def test_a_process_alone_gathers_itself():
    assert gather_numbers([1.0, 2.0]).tolist() == [[1.0, 2.0]]
    assert gather_names() == [socket.gethostname()]


def test_of_two_processes_the_one_without_batches_is_named(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env=common | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    result = json.loads(outputs[0].splitlines()[-1])
    values = result["values"]
    assert values["host/slowest"] == 1
    assert values["host/slowest_idle_per_step"] > 0.4
    assert values["data_wait_per_step"] > 0.4
    assert values["host/slowest_ratio"] > 1.5
    assert values["goodput/data_wait"] > 0.3  # the first process waited for the other one's data
    assert any(line.startswith(f"process 1 ({socket.gethostname()})") for line in result["said"])
    assert len(list((tmp_path / "attempts").iterdir())) == 1  # the first process writes for both
