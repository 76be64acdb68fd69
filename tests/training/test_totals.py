"""Elements, images and operations of a whole run, in every record, across resumes and forks."""

import pytest

from helpers import tiny_config, tiny_run
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import Start

NAMES = ("total_elements", "total_images", "total_flops")


def test_totals_add_up_over_a_resume_and_a_fork(tmp_path):
    def config(steps, log_every=1):
        return tiny_config(steps=steps, loop__save_every=2, loop__log_every=log_every, loop__evaluate_every=0)

    tiny_run(tmp_path / "run", config(4))
    task, expected = make_task(config(4)), dict.fromkeys(NAMES, 0.0)
    for record in records(tmp_path / "run"):
        expected["total_elements"] += record["elements"]
        expected["total_images"] += record["images"]
        expected["total_flops"] += task.flops(record)
        assert {name: record[name] for name in NAMES} == pytest.approx(expected)
    assert expected["total_images"] > 0
    tiny_run(tmp_path / "run", config(8, log_every=3), Start(accept_changes=("steps",)))
    fork = Start(fork_from=str(tmp_path / "run") + ":4", accept_changes=("steps",))
    tiny_run(tmp_path / "fork", config(8, log_every=8), fork)
    last, forked = records(tmp_path / "run")[-1], records(tmp_path / "fork")[-1]
    assert last["step"] == forked["step"] == 8
    assert [last[name] for name in NAMES] == [forked[name] for name in NAMES]
    assert last["total_elements"] > 1.5 * expected["total_elements"]


def records(path):
    return read_lines(Workdir(path).metrics)
