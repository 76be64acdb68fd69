import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from emulator import bucket
from transfusion_jax.storage import cache_dirs

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, jax
from transfusion_jax import cli
from transfusion_jax.storage import cache_dirs
cache_dirs.KEPT = ("cpu",)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
code = cli.main(sys.argv[1:])
print("hits", events.count("cache_hits"), "misses", events.count("cache_misses"))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_again_and_computes_the_same(tmp_path):
    environment = os.environ | {
        "TRANSFUSION_CACHE": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # what is kept must not hang on the machine's speed
        "XLA_FLAGS": "",  # one device
    }
    del environment["JAX_COMPILATION_CACHE_DIR"]
    said, losses = [], []
    for name in ("first", "second"):
        workdir = tmp_path / name
        command = ["train", "--config", "configs/debug.py", "--workdir", str(workdir), "--config.steps=3"]
        options = ["--config.loop.log_every=1", "--config.loop.evaluate_every=0"]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *command, *options],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
        )
        assert done.returncode == 0
        said.append(done.stdout.splitlines()[-1])
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses.append([(line["loss"], line["grad_norm"]) for line in lines])
    kept = [path.name.partition("-")[0] for path in (tmp_path / "xla").iterdir()]
    assert kept.count("jit_step") == 1
    assert said == [f"hits 0 misses {len(kept)}", f"hits {len(kept)} misses 0"]
    assert losses[0] == losses[1]


KEEP_ONE = """
import jax
from transfusion_jax.storage import cache_dirs
cache_dirs.KEPT = ("cpu",)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
cache_dirs.keep_programs()
jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))
print("hits", events.count("cache_hits"), "misses", events.count("cache_misses"))
"""


def test_programs_kept_in_a_bucket_are_found_by_another_machine():
    with bucket("kept") as url:
        environment = os.environ | {
            "TRANSFUSION_CACHE": f"{url}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR")
        said = [
            subprocess.run(
                [sys.executable, "-c", KEEP_ONE], env=environment, text=True, stdout=subprocess.PIPE
            ).stdout
            for _ in range(2)
        ]
    programs = said[0].split()[-1]
    assert int(programs) > 0
    assert said == [f"hits 0 misses {programs}\n", f"hits {programs} misses 0\n"]


def test_what_must_lie_on_a_disk_does_so_beside_a_bucket(monkeypatch):
    monkeypatch.setenv("TRANSFUSION_CACHE", "gs://bucket/cache/")
    assert cache_dirs.cache_folder() == Path.home() / ".cache/transfusion_jax"
    assert cache_dirs.program_cache() == "gs://bucket/cache/xla"


@pytest.mark.parametrize(
    ("backend", "named", "expected"),
    [
        ("tpu", None, "/somewhere/xla"),
        ("gpu", None, "/somewhere/xla"),
        ("cpu", None, None),
        ("gpu", "/mine", "/mine"),
        ("gpu", "", ""),
    ],
)
def test_accelerators_programs_are_kept_unless_the_user_says_where(backend, named, expected, monkeypatch):
    monkeypatch.setenv("TRANSFUSION_CACHE", "/somewhere")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", named)
    try:
        cache_dirs.keep_programs()
        assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_many_processes_on_cpu_keep_no_programs(monkeypatch):
    kept = []
    monkeypatch.setattr(cache_dirs, "process_count", lambda: 2)
    monkeypatch.setattr(jax.config, "update", lambda name, value: kept.append((name, value)))
    cache_dirs.keep_programs()
    assert kept == [("jax_enable_compilation_cache", False)]
