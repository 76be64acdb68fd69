"""What a bad step is said to be: which rows, which gradients, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from transfusion_jax.errors import some
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.step.bad_step_guard import NOT_FINITE, VERDICTS
from transfusion_jax.training.step.step import Report

Diagnosis = dict[str, Any]
FIELDS = {"step", "verdict", "loss", "grad_norm", "rows", "batch", "leaves", "in_a_row"}


def diagnose(step: int, report: Report, leaves: Sequence[str]) -> Diagnosis:
    """One bad step as JSON values.

    Args:
        step: its number.
        report: what it reported.
        leaves: names of the parameters' leaves.
    """
    report = jax.tree.map(np.asarray, report)
    if report.verdict == NOT_FINITE:
        rows: Any = report.row[~np.isfinite(report.row_loss)]
        wrong: Any = ~np.isfinite(report.leaf_squares)
    else:
        rows = report.row[[np.argmax(np.abs(report.row_loss - np.median(report.row_loss)))]]
        wrong = report.leaf_squares == report.leaf_squares.max()
    return {
        "step": step,
        "verdict": VERDICTS[int(report.verdict)],
        "loss": str(report.values["loss"]),  # as text: JSON has no NaN
        "grad_norm": str(report.values["grad_norm"]),
        "rows": rows.tolist(),
        "batch": [int(report.row.min()), int(report.row.max()) + 1],
        "leaves": [name for name, is_wrong in zip(leaves, wrong, strict=True) if is_wrong],
        "in_a_row": int(report.in_a_row),
    }


def read_diagnoses(path: Place) -> list[Diagnosis]:
    """The diagnoses of a file, in order; what is none is left out."""
    return [bad for bad in read_lines(path) if bad.keys() >= FIELDS]


def describe_bad_step(bad: Diagnosis) -> str:
    """A diagnosis as a line for the user."""
    first, end = bad["batch"]
    rows = f"row {some(bad['rows'])}" if bad["rows"] else f"no row's own loss, of rows {first} to {end - 1}"
    leaves = f"gradient of {some(bad['leaves'])}" if bad["leaves"] else "no gradient"
    return (
        f"step {bad['step']} skipped, {bad['verdict']}: loss {bad['loss']} ({rows}), "
        f"gradient norm {bad['grad_norm']} ({leaves}); {bad['in_a_row']} in a row"
    )


def verdict_on_run(bad: Sequence[Diagnosis], checkpoints: Sequence[int]) -> str:
    """Why training stopped, and how to go on.

    Args:
        bad: all bad steps of the run; the last stretch of them stopped it.
        checkpoints: the steps that have one.
    """
    stretch = [bad[-1]]
    for earlier in reversed(bad[:-1]):
        if earlier["step"] == stretch[0]["step"] - 1:
            stretch.insert(0, earlier)
    first, last = stretch[0]["step"], stretch[-1]["step"]
    rows = [row for step in stretch for row in step["rows"] or range(*step["batch"])]
    skip = f"{min(rows)}:{max(rows) + 1}"
    from_before = [step for step in checkpoints if step < first]
    rewind = f", --rewind-to {max(from_before)} --skip-rows {skip} leaves those rows out" if from_before else ""
    steps = f"step {first} was" if first == last else f"steps {first} to {last} were"
    return (
        f"training stopped itself at step {last}: {steps} bad ({stretch[-1]['verdict']}); the same command tries "
        f"again from step {max(checkpoints, default=0)}{rewind}; where every row is bad a lower "
        "optimizer.learning_rate may help (--accept-changes optimizer.learning_rate)"
    )
