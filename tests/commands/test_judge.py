"""`transfusion judge` on a run with random weights, with networks of the judges as random."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import xla
from helpers import begin_run, digits_config
from inceptions import random_network
from transfusion_jax.cli import main
from transfusion_jax.config import SUITES
from transfusion_jax.data import datasets as data_loading
from transfusion_jax.evaluation import fid, geneval, inception
from transfusion_jax.evaluation.pictures import captioned_pictures, draw_captions, drawn_for_held_out
from transfusion_jax.evaluation.protocols import PROTOCOLS, Protocol
from transfusion_jax.evaluation.suites import frechet
from transfusion_jax.storage.paths import sha256
from transfusion_jax.tasks.base import make_task


@pytest.fixture(scope="module")
def run(digits_folder, tmp_path_factory):
    """A run that has learnt nothing."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = digits_config(digits_folder, optimizer__ema_decay=0.0, sampling__steps=2, evaluation__images=6)
    begin_run(path, config)
    return path, config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(random_network(), path)
    return path


@pytest.fixture
def quick(monkeypatch):
    """A mean of places in Inception's stead, which has a test of its own."""
    monkeypatch.setattr(
        fid, "_features", lambda arrays, x: x.reshape(len(x), 23, 13, 23, 13, 3).mean((2, 4, 5))[:, :5, 0]
    )
    monkeypatch.setattr("transfusion_jax.commands.judge.FEATURES", 5)
    monkeypatch.setattr(fid, "TOGETHER", 4)


def judge(run, *words):
    return main(["judge", words[0], "--workdir", str(run[0]), *map(str, words[1:])])


def test_fid_is_the_distance_of_the_captions_own_images_and_drawn_ones(run, weights, quick, capsys, tmp_path):
    path, config = run
    assert judge(run, "images", "--inception", weights, "-n", 6, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((path / "judge-images.json").read_text())
    assert report["images"] == 6
    assert report["sampling"].items() >= {"sampler": "auto", "steps": 2, "guidance": 3.0}.items()
    assert "temperature" not in report["sampling"]  # that of codes
    assert "clean-fid" in report["fid_variant"]
    assert report["fid_resizing"].startswith("from 8x8, as the captions' own images, to 299x299 by")
    assert sha256(weights) in report["inception"]

    data, task = data_loading.load_data(config), make_task(config)
    params = task.model.init(jax.random.key(0))
    shown = [
        next_one
        for next_one, _ in zip(
            captioned_pictures(data.held_out, config, data.codec, config.seed), range(6), strict=False
        )
    ]
    drawn = draw_captions(task, params, data.codec, [picture.caption for picture in shown], config.seed)
    arrays = inception.load_tensors(weights)
    theirs, ours = (fid.features_of(arrays, x) for x in ([p.image for p in shown], drawn))
    expected = frechet.distance(frechet.Statistics.of(ours), frechet.Statistics.of(theirs))
    assert report["metrics"]["fid"] == pytest.approx(expected, rel=1e-3)

    known = tmp_path / "known.npz"
    np.savez(known, mu=ours.mean(0), sigma=np.cov(ours, rowvar=False))
    assert judge(run, "images", "--inception", weights, "--statistics", known, "-n", 6) == 0
    said = capsys.readouterr().out
    assert "known.npz" in said
    assert json.loads((path / "judge-images.json").read_text())["metrics"]["fid"] < 1e-3 * expected


def test_a_protocol_says_how_to_draw_and_how_many(run, digits_folder, weights, quick, capsys, monkeypatch):
    asked = ["images", "--inception", weights, "--protocol", "section-4.3", "--json"]
    assert judge(run, *asked) == 2
    assert "is of 5000 images, and " in capsys.readouterr().err
    monkeypatch.setitem(PROTOCOLS, "section-4.3", Protocol(guidance=1.5, images=6, steps=1))
    assert judge(run, *asked) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["protocol"], report["images"]) == ("section-4.3", 6)
    assert report["sampling"].items() >= {"steps": 1, "guidance": 1.5}.items()


def test_pictures_of_another_folder_are_judged(run, digits_folder, weights, quick, capsys, monkeypatch):
    asked = []

    def spy(task, params, data, count):
        asked.append(data.held_out.hash)
        return drawn_for_held_out(task, params, data, count)

    monkeypatch.setattr("transfusion_jax.commands.judge.drawn_for_held_out", spy)
    words = ["images", "--inception", weights, "-n", 4]
    assert judge(run, *words) == 0
    assert judge(run, *words, "--pictures", digits_folder) == 0
    held_out, pictured = asked
    assert held_out == data_loading.load_data(run[1]).held_out.hash != pictured
    assert judge(run, *words, "--pictures", "none") == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_judge_as_one(run, tmp_path):
    prompts, output = tmp_path / "evaluation_metadata.jsonl", tmp_path / "images"
    prompts.write_text('{"tag": "single_object", "prompt": "a bench"}\n')
    words = ["judge", "geneval", str(prompts), "--workdir", str(run[0]), "--output", str(output)]
    command = [sys.executable, "-m", "transfusion_jax.cli", "launch", "local", "--processes", "2", "--", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | xla.ONE_DEVICE)
    assert done.returncode == 0, done.stderr
    assert len(list(output.glob("00000/samples/*.png"))) == 4
    assert done.stdout.count("written to") == 1


def test_images_for_genevals_prompts_lie_as_its_scorer_reads_them(run, tmp_path, capsys, monkeypatch):
    path, _ = run
    lines = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
        {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"},
        {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a red cow"},
    ]
    prompts, output = tmp_path / "evaluation_metadata.jsonl", tmp_path / "images"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    devices = []

    def spy(task, params, *others):
        devices.extend(jax.tree.leaves(params)[0].sharding.device_set)
        return write(task, params, *others)

    write = geneval.write_images
    monkeypatch.setattr(geneval, "write_images", spy)
    assert judge(run, "geneval", prompts, "--output", output, "-n", 2) == 0
    assert len(devices) > 1  # the weights are where the devices are
    assert sorted(x.name for x in output.iterdir()) == ["00000", "00001", "00002"]
    images = []
    for number, line in enumerate(lines):
        folder = output / f"{number:05}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == line
        assert sorted(x.name for x in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
        images += [np.asarray(Image.open(x)) for x in sorted((folder / "samples").iterdir())]
    assert {image.shape for image in images} == {(8, 8, 3)}
    assert len({image.tobytes() for image in images}) == 6  # each with noise of its own
    report = json.loads((path / "judge-geneval.json").read_text())
    assert report["images"] == 6
    assert report["geneval_resizing"].startswith("none: the files are 8x8, as drawn")
    capsys.readouterr()
    assert judge(run, "geneval", prompts, "--output", output) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_suite_of_small_pixels_has_its_floor(run):
    _, config = run
    task, data = make_task(config), data_loading.load_data(config)
    metrics = SUITES["frechet"].run(task, task.model.init(jax.random.key(0)), data, jax.random.key(0))
    assert set(metrics) == {"frechet_pixels", "frechet_pixels_real"}
    assert 0 < metrics["frechet_pixels_real"] < metrics["frechet_pixels"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images"], "name a judge of images"),
        (["images", "--inception", "no.pth"], "there is no file no.pth"),
        (["images", "--clip", "no", "--statistics", "x.npz"], "--statistics goes with --inception"),
        (["images", "--inception", "x.pth", "-n", "1"], "-n: 1 must be at least 2"),
        (["images", "--inception", "x.pth", "-n", "9", "--protocol", "section-4.2"], "says how many images"),
        (["harness", "--limit", "1.5"], "--limit must be a count or a share"),
        (["harness", "--include", "no"], "there is no folder no"),
        (["cider", "-n", "0"], "-n: 0 must be at least 1"),
        (["geneval", "no.jsonl", "--output", "x"], "there is no file no.jsonl"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_weights_are_read(words, message, tmp_path, capsys):
    assert judge((tmp_path / "no run",), *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 2"), ('{"prompt": "a cat"}', "needs a prompt and a tag")]
)
def test_prompts_that_the_scorer_could_not_read_are_refused(line, message, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a dog", "tag": "single_object"}\n' + line)
    assert judge((tmp_path / "no run",), "geneval", prompts, "--output", tmp_path / "x") == 2
    assert message in capsys.readouterr().err
