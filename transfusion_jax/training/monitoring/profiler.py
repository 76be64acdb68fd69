"""A trace of some steps for XProf, by the first process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax

from transfusion_jax.config import ConfigError, require
from transfusion_jax.errors import whole_range
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.paths import Place


@dataclass(frozen=True)
class StepRange:
    """Steps `begin` to `end` - 1."""

    begin: int
    end: int

    def __contains__(self, step: int) -> bool:
        return self.begin <= step < self.end

    def __str__(self) -> str:
        return f"steps {self.begin} to {self.end - 1}" if self.end - self.begin > 1 else f"step {self.begin}"


def parse_steps(text: str, last: int) -> StepRange:
    """The steps that `A:B` names: A to B-1, as of a run of `last` steps.

    Raises:
        ConfigError: it names none, or some that the run does not have.
    """
    numbers = whole_range(text, ":")
    if numbers is None:
        raise ConfigError(f"--profile {text} must be A:B, such as 10:15, which is steps 10 to 14")
    steps = StepRange(*numbers)
    require(steps.begin >= 1, f"--profile {text}: the first step is 1")
    require(steps.begin < steps.end, f"--profile {text} holds no step: 10:15 is steps 10 to 14")
    require(steps.end <= last + 1, f"--profile {text}: the run has {last} steps, so {last + 1} is the largest end")
    return steps


@contextmanager
def traced(folder: Place) -> Iterator[None]:
    """Traces what runs within, and puts the files into a folder, which may be in a bucket."""
    with tempfile.TemporaryDirectory() as local:
        jax.profiler.start_trace(local)
        try:
            yield
        finally:
            jax.profiler.stop_trace()
        for source in Path(local).rglob("*"):
            if source.is_file():
                write_whole(folder / str(source.relative_to(local)), source.read_bytes())
