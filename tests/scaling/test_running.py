import os
import sys

import pytest

from transfusion_jax.scaling import running


@pytest.mark.parametrize(
    ("system", "jobs", "cores"),
    [
        ("linux", 1, [()]),
        ("linux", 2, [[4, 6], [5]]),
        ("linux", 4, [[4], [5], [6], [4]]),
        ("darwin", 2, [(), ()]),
    ],
)
def test_each_job_has_cores_of_its_own_where_a_system_can_bind_them(system, jobs, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6}, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    assert running._cores(jobs) == cores
