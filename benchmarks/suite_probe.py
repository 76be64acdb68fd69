"""A pytest plugin: the CPU seconds of each test, as benchmarks/suite.py adds them up."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = "SUITE_PROBE"  # the variable that names the folder to write to


def cpu_seconds() -> float:
    """User and system time of this process, and of the children that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Appends the test's file and its seconds, fixtures included, to a file of this process."""
    begin = cpu_seconds()
    result = yield
    line = json.dumps([item.nodeid.partition("::")[0], cpu_seconds() - begin])
    with (Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(line + "\n")
    return result
