import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from transfusion_jax import config as configs
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.scaling import reference
from transfusion_jax.scaling.reference import OWN, SEEDS, LossCurve, Reference

ROOT = Path(__file__).parents[2]
WRONG = Path(__file__).parent / "wrong.py"
MANIFEST = {"history": [{"event": "start"}], "codec": {}, "skip_rows": []}
STEPS = 80


@pytest.fixture
def run(tmp_path):
    """Writes a run of the debug config with given losses; returns its workdir."""

    def write(seed, loss_text, steps=STEPS, data="documents", **facts):
        config = configs.load("configs/debug.py", [f"steps={STEPS}", f"seed={seed}"])
        workdir = tmp_path / f"run{seed}"
        workdir.mkdir(exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(configs.to_dict(config)))
        (workdir / "manifest.json").write_text(json.dumps({"data_hash": data} | MANIFEST | facts))
        lines = [json.dumps({"step": s, "loss_text": loss_text(s)}) for s in range(1, steps + 1)]
        (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return workdir

    return write


@pytest.fixture
def known():
    """A reference whose seeds differ by some 1 % and whose ways differ by 0.1 %."""
    config = configs.load("configs/debug.py", [f"steps={STEPS}"])
    windows = reference.windows_of(STEPS)
    falling = np.linspace(3, 2, len(windows))
    scales = [1 + 0.01 * (seed - 2) for seed in range(5)]
    curves = [LossCurve(seed, "", "documents", {"loss_text": tuple(falling * s)}) for seed, s in enumerate(scales)]
    ways = [LossCurve(0, "accumulation=2", "documents", {"loss_text": tuple(falling * 0.98 * 1.001)})]
    return Reference("known", "transfusion train", reference.recipe_of(config), windows, (*curves, *ways))


def straight(factor):
    ends = np.linspace(3, 2, reference.WINDOWS)
    return lambda step: float(ends[(step - 1) * reference.WINDOWS // STEPS] * factor)


def test_another_seed_within_the_seeds_passes(run, known):
    verdict = reference.hold_to_bands(run(7, straight(1.01)), known)
    assert verdict.passes
    assert (verdict.held_to, verdict.step, verdict.losses) == ((SEEDS,), STEPS, ("loss_text",))


def test_a_known_seed_is_held_to_its_own_curve(run, known):
    assert reference.hold_to_bands(run(0, straight(0.98 * 1.002)), known).held_to == (SEEDS, OWN)
    verdict = reference.hold_to_bands(run(0, straight(0.98 * 1.006)), known)
    assert [(d.band, d.step) for d in verdict.departures] == [(OWN, 10)]


def test_with_other_documents_no_seed_has_a_curve_of_its_own(run, known, tmp_path, capsys):
    workdir, file = run(0, straight(0.98 * 1.006), data="others"), tmp_path / "known.json"
    reference.store_reference(known, file)
    assert main(["scale", "compare", "--run", str(workdir), "--reference", str(file)]) == 0
    assert "its documents are not those of known, so only the seeds' band applies" in capsys.readouterr().out


def test_with_rows_of_another_plan_no_seed_has_a_curve_of_its_own(run, known, tmp_path, capsys):
    workdir, file = run(0, straight(0.98 * 1.006), row_plan=3), tmp_path / "known.json"
    reference.store_reference(known, file)
    assert main(["scale", "compare", "--run", str(workdir), "--reference", str(file)]) == 0
    assert (
        "rows come from another version of the row plan than those of known, so only the seeds' band"
        in capsys.readouterr().out
    )
    again = replace(known, curves=tuple(replace(curve, row_plan=3) for curve in known.curves))
    assert reference.hold_to_bands(workdir, again).held_to == (SEEDS, OWN)


def test_the_first_step_outside_is_named(run, known):
    def jumps(step):
        return straight(1.0)(step) * (1.5 if step > 40 else 1.0)

    (departure,) = reference.hold_to_bands(run(7, jumps), known).departures
    assert (departure.step, departure.band, departure.loss) == (50, SEEDS, "loss_text")
    assert departure.low < departure.high < departure.value


def test_a_run_under_way_is_compared_as_far_as_it_is(run, known):
    assert reference.hold_to_bands(run(7, straight(1.0), steps=34), known).step == 30
    with pytest.raises(ConfigError, match="from step 10 on"):
        reference.hold_to_bands(run(7, straight(1.0), steps=9), known)


def test_a_run_that_records_too_seldom_is_refused(run, known):
    workdir = run(0, straight(1.0))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text(lines[-1] + "\n")
    with pytest.raises(ConfigError, match="has no loss for each 10 steps"):
        reference.hold_to_bands(workdir, known)


def test_where_a_reference_goes_is_known_before_it_is_made(tmp_path, capsys):
    words = ["scale", "reference", "--config", "configs/debug.py:reference", "--workdir", str(tmp_path)]
    for output in ("none/a.json", "a.txt"):
        assert main([*words, "--output", str(tmp_path / output)]) == 2
        assert "must end in .json, in a folder that exists" in capsys.readouterr().err
    assert main([*words[:-1], "gs://bucket/runs", "--output", str(tmp_path / "a.json")]) == 2
    assert "must be a folder here" in capsys.readouterr().err


def test_another_recipe_is_refused(run, known):
    with pytest.raises(ConfigError, match="another recipe than known, which is: transfusion train"):
        reference.hold_to_bands(run(0, straight(1.0)), replace(known, recipe="other"))


def test_what_is_stored_is_loaded(tmp_path, known):
    reference.store_reference(known, tmp_path / "known.json")
    assert reference.load_reference(str(tmp_path / "known.json")) == known
    with pytest.raises(ConfigError, match="no reference unknown: one of debug"):
        reference.load_reference("unknown")


def test_right_runs_seldom_leave_the_band_of_the_seeds(known):
    """Of 2,000 references with runs of the same scatter about 0.1 % may; a band of four deviations fails 4 %."""
    rng = np.random.default_rng(0)
    left = 0
    for _ in range(2000):
        values = 1 + 0.01 * rng.standard_normal((6, len(known.windows)))
        curves = tuple(LossCurve(seed, "", "documents", {"loss_text": tuple(v)}) for seed, v in enumerate(values))
        low, high = reference.seeds_band(replace(known, curves=curves[:5]))
        left += not np.all((low["loss_text"] <= values[5]) & (values[5] <= high["loss_text"]))
    assert left <= 8


@pytest.mark.parametrize("name", reference.packaged_references().split(", "))
def test_packaged_references_are_of_their_config_as_it_is(name):
    packaged = reference.load_reference(name)
    _, _, _, config, *overrides = shlex.split(packaged.command)
    assert packaged.recipe == reference.recipe_of(configs.load(config, [o[len("--config.") :] for o in overrides]))
    assert sum(curve.way == "" for curve in packaged.curves) >= 5


def train(tmp_path, *before, name="debug", more=()):
    """A run of a packaged reference's recipe, in a folder with `configs/` and perhaps `data/`."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = [
        "train",
        *reference.load_reference(name).command.split()[2:],
        "--workdir",
        str(tmp_path / "run"),
        "--config.loop.evaluate_every=0",
        *more,
    ]
    quick = {
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }  # one device, and quick steps
    environment = os.environ | quick | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *before, *words]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return tmp_path / "run"


@pytest.mark.slow
def test_debug_trains_as_its_reference_says(tmp_path, capsys):
    workdir = train(tmp_path, "-m", "transfusion_jax.cli")
    assert main(["scale", "compare", "--run", str(workdir), "--reference", "debug"]) == 0
    assert "stay within the bands of debug: that of the seeds and that of its own seed" in capsys.readouterr().out


@pytest.mark.slow
def test_digits_begin_as_their_reference_says(tmp_path, capsys):
    digits = ["--image-size", "8", "--channels", "1", "--held-out", "0.15"]
    assert main(["prepare", "digits", "--output", str(tmp_path / "data/digits"), *digits]) == 0
    assert main(["prepare", "prose", "--output", str(tmp_path / "data/prose"), "--held-out", "0.05"]) == 0
    first = reference.load_reference("digits").windows[0]
    workdir = train(tmp_path, "-m", "transfusion_jax.cli", name="digits", more=[f"--config.loop.stop_at={first}"])
    assert main(["scale", "compare", "--run", str(workdir), "--reference", "digits"]) == 0
    assert f"up to step {first}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake", ["causal_images", "shifted_targets", "no_text_loss", "no_image_loss", "linear_schedule"]
)
def test_mistakes_are_caught(mistake, tmp_path, capsys):
    workdir = train(tmp_path, str(WRONG), mistake)
    assert main(["scale", "compare", "--run", str(workdir), "--reference", "debug"]) == 1
    assert "this is not how debug trains" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reference_of_a_runs_beginning(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    made, runs = tmp_path / "begin.json", tmp_path / "runs"
    recipe = ["--config", "configs/debug.py", "--config.steps=80", "--config.loop.log_every=1"]
    command = ["scale", "reference", *recipe, "--workdir", str(runs), "--output", str(made), "--seeds", "3"]
    assert main([*command, "--until", "81"]) == 2
    assert "--until 81 must lie between 8, so" in capsys.readouterr().err
    assert main([*command, "--until", "8", "--jobs", "2"]) == 0
    found = reference.load_reference(str(made))
    assert found.windows == tuple(range(1, 9))
    assert [curve.way for curve in found.curves] == ["", "", "", "model.compute_dtype=bfloat16", "accumulation=2"]
    assert found.command == shlex.join(["transfusion", "train", *recipe])
    assert main(["scale", "compare", "--run", str(runs / "seed1"), "--reference", str(made)]) == 0
