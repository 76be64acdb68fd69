"""A ladder's run is done when its scores are there, wherever it was cut short."""

import functools
import shutil

import pytest

from helpers import tiny_config, tiny_run
from transfusion_jax.scaling.ladder import LadderRun, record_of_run
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.loop import Hook
from transfusion_jax.training.monitoring.metrics import MetricsWriter
from transfusion_jax.training.run_dir import Workdir

STEPS = 2
CONFIG = tiny_config(steps=STEPS, loop__save_every=1, loop__log_every=1, loop__evaluate_every=STEPS)
RUN = LadderRun("tiny", "s", 0, 1e3, "run", "tiny.py", CONFIG, ())
STAGES = [
    (MetricsWriter, "record"),
    (MetricsWriter, "flush"),
    (Checkpoints, "save"),
    (Checkpoints, "wait"),
    (Checkpoints, "conclude"),
]
SCORES = {"held_out/loss": 2.0, "held_out/shapes/generation_accuracy": 0.0}
HOOK = Hook(STEPS, lambda step, weights, writer: SCORES)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Copies of a run's folder from before and after everything that writes, and of the finished run at last."""
    folder, found = tmp_path_factory.mktemp("stages"), {}

    def keep(*, last=False):
        while True:
            copy = folder / f"{len(found)}"
            shutil.rmtree(copy, ignore_errors=True)
            try:
                shutil.copytree(folder / "run", copy / "run", ignore=shutil.ignore_patterns("tensorboard", "lock"))
            except shutil.Error:  # a save in the background has just moved a folder
                continue
            found.setdefault("whole" if last else state_of(copy / "run"), copy)
            return

    def staged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            keep()
            value = function(*args, **kwargs)
            keep()
            return value

        return wrapper

    def evaluate(step, weights, writer):
        keep()
        return SCORES

    with pytest.MonkeyPatch.context() as patch:
        for of, name in STAGES:
            patch.setattr(of, name, staged(getattr(of, name)))
        tiny_run(folder / "run", CONFIG, hooks=(Hook(STEPS, evaluate),))
    keep(last=True)
    return found


def state_of(path):
    """What tells one stage from another."""
    workdir = Workdir(path)
    files = sorted(str(file.relative_to(path)) for file in workdir.checkpoints.glob("*/*.json"))
    return (*(tuple(line) for line in read_lines(workdir.metrics)), *Checkpoints(workdir.checkpoints).steps, *files)


def test_no_stage_counts_as_done_before_scores_and_weights_are_there(stages):
    done = []
    for copy in stages.values():
        found = RUN.measured(copy)
        done.append(bool(found))
        if found:
            assert SCORES.items() <= found.items()
            assert Checkpoints(Workdir(copy / "run").checkpoints).steps[-1] == STEPS
            assert record_of_run(RUN, copy)["loss"] == SCORES["held_out/loss"]
    assert done.count(True) >= 2  # the last of them is the whole run
    assert done.count(False) >= 5
    assert any(
        newest_step(copy) == STEPS for copy, finished in zip(stages.values(), done, strict=True) if not finished
    )


@pytest.mark.slow
def test_from_every_stage_the_same_command_ends_with_the_same_scores(stages, tmp_path):
    whole = stages["whole"]
    for number, copy in enumerate(stages.values()):
        root = tmp_path / str(number)
        shutil.copytree(copy, root)
        saved = Checkpoints(Workdir(root / "run").checkpoints).steps[-1:] == [STEPS]
        tiny_run(root / "run", CONFIG, hooks=(HOOK,))
        assert lasting(RUN.measured(root)) == lasting(RUN.measured(whole))
        trained = "first step after" in (root / "run/said").read_text()
        assert trained != saved  # what is saved is measured again, not trained again


def newest_step(copy):
    records = read_lines(Workdir(copy / "run").metrics)
    return records[-1]["step"] if records else 0


def lasting(values):
    """What does not hang on time or memory."""
    return {name: value for name, value in values.items() if name.startswith(("loss", "grad", "total", "held_out"))}
