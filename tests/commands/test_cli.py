"""The commands as a user runs them: real processes, real files."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xla
from transfusion_jax.cli import main
from transfusion_jax.commands import evaluate, sample
from transfusion_jax.errors import INTERRUPTED
from transfusion_jax.storage.atomic import read_json
from transfusion_jax.storage.jsonl import read_lines
from transfusion_jax.training.monitoring.heartbeat import read_heartbeat

ROOT = Path(__file__).parents[2]
STEPS = 20  # of configs/debug.py
SPLIT = ["--config.mesh.data=2", "--config.mesh.context=4"]  # its four rows over eight devices
DEBUG = ["train", "--config", "configs/debug.py", "--config.loop.log_every=1", "--config.loop.sample_every=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of the debug config, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "debug"
    result = transfusion(*DEBUG, "--workdir", str(workdir))
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_training_says_where_it_runs_first_and_shows_progress(trained):
    lines = trained[1].splitlines()
    assert lines[0].startswith("backend cpu, 1 device(s)")
    progress = [line for line in lines if line.startswith("step 10/")]
    assert len(progress) == 1
    for part in ("text", "image", "elements/s", "left"):
        assert part in progress[0]


def test_every_step_stands_once_in_the_metrics(trained):
    records = steps_of(trained[0])
    assert sorted(records) == list(range(1, STEPS + 1))
    for name in ("loss_text", "loss_image", "grad_norm", "learning_rate", "elements_per_second", "mfu"):
        assert name in records[STEPS]
    assert {"loss_image/caption_first", "loss_text/source_text", "loss_image/noise_0"} <= set().union(
        *records.values()
    )
    assert any((trained[0] / "tensorboard").iterdir())
    assert Image.open(trained[0] / f"samples/{STEPS:08d}.png").size[0] > 300  # ten prompts on a sheet


def test_a_finished_run_says_that_it_is_done(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")  # the split is kept with the run
    result = here("train", "--workdir", str(workdir), *SPLIT)
    assert result.returncode == 0, result.stderr
    assert f"is done: {STEPS} of {STEPS} steps" in result.stdout


def test_a_signal_saves_and_the_same_command_goes_on_with_equal_losses(trained, tmp_path):
    command = [*DEBUG, "--workdir", str(tmp_path), "--config.data.workers=1", "--config.loop.sample_every=0"]
    process = start(*command)
    for line in process.stdout:
        if line.startswith("step  7/"):
            alive = read_heartbeat(tmp_path / "heartbeat.json")
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait() == INTERRUPTED, rest
    assert (alive.process["process"], alive.patience) == (process.pid, 1800)
    assert read_heartbeat(tmp_path / "heartbeat.json") is None  # it said how it ended
    assert "run the same command to go on" in rest
    again = transfusion(*command)
    assert again.returncode == 0, again.stderr
    assert "resumed from step" in again.stdout
    exact = ("loss_text", "loss_image", "grad_norm", "learning_rate")
    once, resumed = steps_of(trained[0]), steps_of(tmp_path)
    assert [[resumed[s][n] for n in exact] for s in once] == [[once[s][n] for n in exact] for s in once]


def test_a_run_goes_on_where_nobody_listens_any_more(tmp_path):
    alone = ["--config.loop.evaluate_every=0", "--config.loop.sample_every=0"]
    process = start(*DEBUG, "--workdir", str(tmp_path), *alone, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=600) == 0, process.stderr.read()
    process.stderr.close()
    assert sorted(steps_of(tmp_path)) == list(range(1, STEPS + 1))


def test_another_recipe_is_refused_with_its_differences_and_a_new_cadence_is_not(trained, tmp_path):
    command = ["train", "--workdir", str(shutil.copytree(trained[0], tmp_path / "run")), *SPLIT]
    changed = here(*command, "--config.optimizer.beta1=0.8", "--config.seed=3")
    assert changed.returncode == 2
    assert "optimizer.beta1: 0.9 -> 0.8" in changed.stderr
    assert "seed: 0 -> 3" in changed.stderr
    free = here(*command, "--config.loop.log_every=7")
    assert free.returncode == 0, free.stderr


def test_sample_draws_the_same_picture_for_the_same_seed_and_step(trained, tmp_path):
    pictures = []
    for name, seed, run in (("a", "1", transfusion), ("b", "1", here), ("c", "2", here)):
        output = tmp_path / f"{name}.png"
        result = run(
            *("sample", "--workdir", str(trained[0]), "--prompt", "a handwritten four", "-n", "3"),
            *("--output", str(output), "--seed", seed, "--step", "best", "--weights", "raw"),
        )
        assert result.returncode == 0, result.stderr
        assert "raw weights" in result.stdout
        pictures.append(np.asarray(Image.open(output)))
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_sample_captions_files_and_held_out_images(trained, tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "red").save(file)
    captioned = here("sample", "--workdir", str(trained[0]), "--image", str(file))
    assert captioned.returncode == 0, captioned.stderr
    assert f"{file}: " in captioned.stdout
    held_out = here("sample", "--workdir", str(trained[0]), "--held-out", "3")
    assert held_out.returncode == 0, held_out.stderr
    assert held_out.stdout.count("\n") == 1 + 1 + 3


def test_sample_reads_prompts_with_images_and_writes_what_it_made(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample, "EVERY", 0.0)  # seconds between two reports
    Image.new("L", (8, 8), 100).save(tmp_path / "grey.png")
    prompts = [
        {"prompt": "a four", "n": 2},
        {"prompt": [{"image": "grey.png"}, "in black"], "seed": 7},
        {"prompt": {"image": "grey.png"}},
        {"prompt": "once", "follow": "any"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    how = [
        "--sampling-steps",
        "4",
        "--sampler",
        "ddim",
        "--spacing",
        "trailing",
        "--max-tokens",
        "6",
        "--text-temperature",
        "1.0",
        "--seed",
        "1",
    ]
    command = ["sample", "--workdir", str(trained[0]), "--prompts", str(tmp_path / "prompts.jsonl"), *how]
    assert main([*command, "--output", str(tmp_path / "made")]) == 0
    assert re.search(r"^5/5 samples, [\d.]+ images/s$", capsys.readouterr().err, re.MULTILINE)
    lines = [json.loads(line) for line in (tmp_path / "made/samples.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines][:2] == ["a four", "a four"]
    assert [(line["seed"], line["number"]) for line in lines] == [(1, 0), (1, 1), (7, 0), (1, 3), (1, 4)]
    assert [line["reason"] for line in lines[:3]] == ["images"] * 3
    images = [np.asarray(Image.open(tmp_path / "made" / line["segments"][0]["image"])) for line in lines[:3]]
    assert images[0].shape == (8, 8, 3)
    assert isinstance(lines[3]["segments"][0], str)
    page = (tmp_path / "made/samples.html").read_text()
    drawn = sum(isinstance(segment, dict) for line in lines for segment in line["segments"])
    assert page.count("data:image/png;base64,") == drawn == len(list((tmp_path / "made").glob("*.png")))
    assert "ddim" in page

    alone = ["sample", "--workdir", str(trained[0]), "--image", str(tmp_path / "grey.png"), "--prompt", "in black"]
    output = str(tmp_path / "edited.png")
    assert main([*alone, "--edit", *how[:4], "--seed", "7", "--output", output]) == 0
    sheet = np.asarray(Image.open(output)).astype(int)  # one image, enlarged, in a frame
    assert np.abs(sheet[6:-6:8, 6:-6:8][:8, :8] - images[2]).max() <= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ('{"text": "x"}', 'line 2: each line is an object with the key "prompt"'),
        ('{"prompt": "x", "folow": "any"}', "unknown key 'folow'; did you mean 'follow'"),
        ('{"prompt": "x", "follow": "images"}', "did you mean 'image'"),
        ('{"prompt": ["x", 3]}', "a prompt is made of strings"),
        ('{"prompt": "x", "n": 0}', "n must be a whole number from 1 to 1,000,000"),
        ('{"prompt": "x", "seed": -1}', "seed must be below"),
    ],
)
def test_a_wrong_line_of_prompts_is_named(line, message, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "good"}\n' + line)
    command = ["sample", "--workdir", "nowhere", "--output", "x", "--prompts", str(tmp_path / "prompts.jsonl")]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_sample_says_how_likely_texts_are(trained, capsys):
    command = [
        "sample",
        "--workdir",
        str(trained[0]),
        "--prompt",
        "a handwritten",
        "--score",
        "zq",
        "--score",
        " four",
    ]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert {line.split("nats of ")[1] for line in lines} == {"5 tokens   four", "2 tokens  zq"}
    chances = [float(line.split()[0]) for line in lines]
    assert chances == sorted(chances, reverse=True)


def test_evaluate_prints_a_table_or_json_and_writes_the_same(trained):
    result = here("evaluate", "--workdir", str(trained[0]), "--suite", "loss", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == read_json(trained[0] / "evaluation.json", "")
    (entry,) = report["evaluations"]
    assert entry["step"] == STEPS
    assert entry["weights"] == "ema"
    assert 0 < entry["metrics"]["bits_per_byte"] < 10


def test_a_damaged_checkpoint_is_not_read_and_the_others_are_named(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    next((workdir / "checkpoints/20/state").glob("ocdbt*/d/*")).write_bytes(b"")
    assert main(["evaluate", "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert "checkpoint 20 is damaged: " in error
    assert "choose another --step: 10" in error
    assert error.count("\n") == 1


def test_what_cannot_be_read_is_one_sentence(trained, tmp_path, capsys):
    workdir = str(trained[0])
    output = str(tmp_path / "x.png")
    for arguments, message in [
        (["sample", "--workdir", "nowhere", "--prompt", "x", "--output", output], "no run in nowhere"),
        (["sample", "--workdir", workdir, "--prompt", "x"], "images are drawn: say where to"),
        (["sample", "--workdir", workdir, "--prompt", "x" * 200, "--output", output], "the model's context is 128"),
        (
            ["sample", "--workdir", workdir, "--prompt", "x", "--output", output, "--sampling-steps", "0"],
            "--sampling-steps: 0 must be at least 1",
        ),
        (["sample", "--workdir", workdir, "--prompt", "x", "--output", output, "-n", "0"], "-n: 0 must be"),
        (["sample", "--workdir", workdir, "--image", "no.png"], "cannot read image no.png"),
        (
            ["sample", "--workdir", workdir, "--held-out", "3", "--edit"],
            "--held-out captions images: leave out --edit",
        ),
        (["sample", "--workdir", workdir, "--held-out", "3", "--guidance", "2"], "leave out --guidance"),
        (["sample", "--workdir", workdir, "--prompt", "x", "--score", "y", "--stop", "z"], "leave out --stop"),
        (["sample", "--workdir", workdir, "--image", "x.png", "--max-images", "3"], "leave out --max-images"),
        (["sample", "--workdir", workdir], "say what to begin with"),
        (["sample", "--workdir", workdir, "--prompt", "x", "--edit"], "--edit needs --image and --prompt"),
        (["sample", "--workdir", workdir, "--prompt", "x", "--output", "x.gif"], "--output ends with .gif"),
        (
            ["sample", "--workdir", workdir, "--image", "x.png", "--sampling-steps", "2"],
            "leave out --sampling-steps",
        ),
        (
            ["sample", "--workdir", workdir, "--prompt", "x", "--output", output, "--stop", "x"],
            "nothing is written",
        ),
        (
            ["sample", "--workdir", workdir, "--prompt", "x", "--output", output, "--sampler", "heun"],
            "'heun' does not go with diffusion.objective 'epsilon'",
        ),
        (
            ["sample", "--workdir", workdir, "--prompt", "x", "--output", output, "--spacing", "even"],
            "sampling.spacing is 'even'; valid: auto, trailing",
        ),
        (
            ["sample", "--workdir", workdir, "--prompt", "x", "--follow", "any", "--output", output],
            "a sheet shows one image",
        ),
        (["sample", "--workdir", workdir, "--prompt", "x", "--score", "y", "--output", output], "--score prints"),
        (["sample", "--workdir", workdir, "--step", "7", "--held-out", "3"], "no checkpoint 7: there are 10, 20"),
        (["evaluate", "--workdir", workdir, "--config.seed=1"], "goes with commands that take --config"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_what_cannot_be_trained_is_one_sentence(tmp_path, capsys):
    config = ["train", "--config", str(ROOT / "configs/debug.py"), "--config.batch_rows=8"]
    workdir = ["--workdir", str(tmp_path / "run")]
    for arguments, message in [
        ([*config, *workdir, "--config.model.widht=8"], "unknown config key model.widht: did you mean 'width'?"),
        ([*config, *workdir, "--config.data.context_length=6"], "an image takes 7 elements"),
        ([*config, *workdir, "--config.data.sources.pairs.path=none"], "none does not exist"),
        ([*config, *workdir, "--config.batch_rows=4"], "cannot be split over data × fsdp = 8 devices"),
        ([*config, *workdir, "--config.data.max_images=1"], "images on average and data.max_images is 1"),
        ([*config, *workdir, "--config.data.sources={}"], "names no data"),
        ([*config, *workdir, "--config.mesh.data=3"], "does not cover 8 devices"),
        (config, "train needs --workdir"),
        (["train", *workdir], "no run in"),
        (["train"], "train needs --config"),
        (["train", "--config", "configs/none.py", *workdir], "no config file configs/none.py"),
        (["train", "--config", str(ROOT / "configs/paper.py:8b"), *workdir], "unknown size '8b'"),
        ([*config, *workdir, "--json"], "--json goes with --dry-run"),
        ([*config, *workdir, "--weights", "raw"], "--weights goes with --init-from"),
        ([*config, *workdir, "--init-map", "x=grow"], "--init-map goes with --init-from"),
        ([*config, *workdir, "--skip-rows", "3:4"], "--skip-rows goes with --rewind-to"),
        ([*config, *workdir, "--rewind-to", "4", "--skip-rows", "3-4"], "--skip-rows 3-4 must be A:B"),
        ([*config, *workdir, "--rewind-to", "4", "--skip-rows", "4:4"], "--skip-rows 4:4 holds no row"),
        ([*config, *workdir, "--rewind-to", "4"], "to rewind"),
        ([*config, *workdir, "--init-from", "nowhere"], "nowhere is neither a run"),
        (["train", *workdir, "--fork-from", "nowhere:3"], "nowhere:3 is neither a run"),
    ]:
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error


@pytest.mark.slow
def test_training_says_where_every_device_holds_all_keys(tmp_path, capsys):
    config = [
        "train",
        "--config",
        str(ROOT / "configs/debug.py"),
        "--config.steps=1",
        "--config.loop.evaluate_every=0",
    ]
    grouped = [
        "--config.model.heads=8",
        "--config.model.kv_heads=2",
        "--config.mesh.data=2",
        "--config.mesh.tensor=4",
    ]
    assert main([*config, *grouped, "--workdir", str(tmp_path / "run")]) == 0
    line = "model.kv_heads 2 does not divide by mesh.tensor 4: every device of tensor holds all keys and values\n"
    assert capsys.readouterr().out.count(line) == 1


def test_dry_run_of_the_largest_size_allocates_nothing(capsys):
    assert main(["train", "--config", str(ROOT / "configs/paper.py:7b"), "--dry-run", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["parameters"]["paper_count"] == 6_738_415_616
    assert summary["elements_per_step"] == 2_097_152
    assert summary["config"]["steps"] == 250_000
    assert main(["train", "--config", str(ROOT / "configs/paper.py:7b"), "--dry-run"]) == 0
    assert "6,738.4M" in capsys.readouterr().out


def test_ctrl_c_in_a_command_with_nothing_to_save_ends_it_without_a_traceback(monkeypatch, capsys):
    def interrupted(arguments, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "run", interrupted)
    assert main(["evaluate", "--workdir", "runs/any"]) == 130
    assert capsys.readouterr().err == "transfusion: interrupted\n"


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["evaluate"], ["scale"], ["scale", "fit"]])
def test_help_says_what_a_command_does(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "usage: transfusion" in capsys.readouterr().out


def here(*arguments):
    """In this process, which has imported everything; it has eight devices."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def transfusion(*arguments):
    process = start(*arguments, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start(*arguments, stderr=subprocess.STDOUT):
    environment = os.environ | xla.ONE_DEVICE
    command = [sys.executable, "-u", "-m", "transfusion_jax.cli", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)


def steps_of(workdir):
    """Records of training steps by step; the evaluations between them are left out."""
    records = read_lines(workdir / "metrics.jsonl")
    steps = [r for r in records if "loss_text" in r]
    assert len({r["step"] for r in steps}) == len(steps)
    return {r["step"]: r for r in steps}
