"""Real training processes: started, watched, harmed, and their records compared."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import xla
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.jsonl import read_lines

ROOT = Path(__file__).parents[2]
SAVE_EVERY = 4
STEPS = 24
EVERYTHING = {  # packing, mixing and caption dropout are in the config; the rest is turned on here
    "model.max_side": 16,  # images of several shapes
    "steps": STEPS,
    "accumulation": 2,
    "evaluation.rows": 64,
    "optimizer.ema_decay": 0.9,
    "loop.log_every": 1,
    "loop.save_every": SAVE_EVERY,
    "loop.evaluate_every": 8,
}
TIMINGS = ("elements_per_second", "tflops_per_second", "mfu", "seconds_per_step", "data_wait_per_step")
TIMINGS += ("goodput", "host/", "memory/", "lost_steps", "restarts")
PATIENCE = 300  # seconds for anything to happen


class Training:
    """`transfusion train` on configs/debug.py, in a session of its own."""

    def __init__(
        self, workdir, *flags, program=("-m", "transfusion_jax.cli"), devices=1, environment=(), **changes
    ):
        fields = EVERYTHING | {name.replace("__", "."): value for name, value in changes.items()}
        overrides = [f"--config.{name}={value}" for name, value in fields.items()]
        environment = os.environ | {"XLA_FLAGS": xla.flags(devices)} | dict(environment)
        command = ["train", "--config", "configs/debug.py", "--workdir", str(workdir), *overrides, *flags]
        self.workdir = Path(workdir)
        self.begun = time.monotonic()
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-u", *map(str, program), *command],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text):
        """Returns once a line holds the text."""
        with self._more:
            found = self._more.wait_for(lambda: self.says(text) or self._ended, PATIENCE)
        assert found, f"no {text!r} after {PATIENCE} s in:\n{self.text}"
        assert self.says(text), f"no {text!r} in:\n{self.text}"

    def wait_for_file(self, pattern):
        """Returns once a file of that pattern is in the workdir: looks a thousand times a second."""
        end = time.monotonic() + PATIENCE
        while not any(self.workdir.glob(pattern)):
            assert time.monotonic() < end, f"no {pattern} after {PATIENCE} s in:\n{self.text}"
            assert self._process.poll() is None, f"no {pattern} in:\n{self.text}"
            time.sleep(0.001)

    def says(self, text):
        return any(text in line for line in self.lines)

    @property
    def text(self):
        return "".join(self.lines)

    def signal(self, number, whole_group=False):
        (os.killpg if whole_group else os.kill)(self._process.pid, number)

    def kill(self):
        """kill -9; returns the last step that the metrics hold."""
        self.signal(signal.SIGKILL)
        self.end()
        return newest_step(self.workdir)

    def end(self):
        """Waits for the process to end, and returns its exit code."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def children(self):
        """Process numbers of all that it has started."""
        sessions = {int(path.name): _session(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
        return [pid for pid, session in sessions.items() if session == self._process.pid != pid]

    @property
    def resumed_from(self):
        """The step that it went on from."""
        found = re.search(r"resumed from step (\d+)", self.text)
        return int(found[1]) if found else 0

    @property
    def _ended(self):
        return not self._reader.is_alive()

    def _read(self):
        for line in self._process.stdout:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()
        with self._more:
            self._more.notify_all()


class Many:
    """The same training in several processes, which begin together; `apart` changes fields of one of them."""

    def __init__(self, workdir, processes, *flags, devices=1, apart=None, **options):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        together = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            # Many processes keep no programs: each start compiles, which takes half the time without LLVM's passes.
            "XLA_FLAGS": f"{xla.flags(devices)} --xla_backend_optimization_level=0",
        }
        self.all = [
            Training(
                workdir,
                *flags,
                environment=together | {"JAX_PROCESS_ID": str(number)},
                **options | (apart or {}).get(number, {}),
            )
            for number in range(processes)
        ]

    def __getitem__(self, number):
        return self.all[number]

    def signal(self, number):
        for training in self.all:
            training.signal(number)

    def kill(self):
        """kill -9 to all; returns the last step that the metrics hold."""
        self.signal(signal.SIGKILL)
        self.end()
        return newest_step(self[0].workdir)

    def end(self):
        """Waits for all to end, and returns their exit codes."""
        return [training.end() for training in self.all]

    @property
    def text(self):
        return "\n".join(f"process {i}:\n{training.text}" for i, training in enumerate(self.all))


def finish(workdir, *flags, **options):
    """The same command again, to its end."""
    training = Training(workdir, *flags, **options)
    assert training.end() == 0, training.text
    return training


def records(workdir):
    """What was logged at each step, timings apart."""
    lines = read_lines((workdir if isinstance(workdir, BucketPath) else Path(workdir)) / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), f"a step stands twice: {steps}"
    kept = [{name: value for name, value in line.items() if not name.startswith(TIMINGS)} for line in lines]
    return dict(zip(steps, kept, strict=True))


def newest_step(workdir):
    """The last step that the metrics hold; a torn line counts for nothing."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def newest_checkpoint(workdir):
    """The newest step with a checkpoint, 0 where there is none."""
    folder = Path(workdir) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def _session(process):
    try:
        status = (process / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return None
    return int(status.rpartition(")")[2].split()[3])


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
