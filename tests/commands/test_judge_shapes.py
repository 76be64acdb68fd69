"""`transfusion judge` and the suites that draw, on a run whose pictures keep their proportions."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers import begin_run, prepare, tiny_config
from transfusion_jax.cli import main
from transfusion_jax.commands import judge
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.evaluation import fid
from transfusion_jax.evaluation.pictures import drawn_for_held_out
from transfusion_jax.storage.atomic import read_json, write_json

SHAPES = ((8, 8), (4, 16), (12, 4), (4, 4))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learnt nothing; its model could choose shapes by itself."""
    path, random = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    (path / "in").mkdir()
    for number in range(24):
        pixels = random.integers(0, 256, (*SHAPES[number % len(SHAPES)], 3), np.uint8)
        Image.fromarray(pixels).save(path / f"in/{number:02}.png")
        (path / f"in/{number:02}.txt").write_text(f"ab {number}")
    native = Proportions(area=64, multiple=4)
    prepared = prepare(path / "data", [str(path / "in")], held_out=0.4, native=native)
    config = tiny_config(
        model__vocabulary=256,
        model__latent_shape=(8, 8, 3),
        model__max_side=16,
        model__patch_size=4,
        model__shape_marks=True,
        data__max_images=6,
        data__sources={"pictures": {"path": str(prepared.folder)}},
        optimizer__ema_decay=0.0,
        sampling__steps=2,
        evaluation__images=6,
        evaluation__rows=4,
    )
    begin_run(path / "run", config)
    shapes = load_data(config).facts(config)["shapes"]
    write_json(path / "run/manifest.json", read_json(path / "run/manifest.json", "") | {"shapes": shapes})
    return str(path / "run")


def test_fid_is_of_pictures_in_the_shapes_of_those_whose_captions_they_have(run, monkeypatch, tmp_path, capsys):
    """Means of places stand for Inception, which has a test of its own."""
    monkeypatch.setattr(
        fid, "_features", lambda arrays, x: x.reshape(len(x), 23, 13, 23, 13, 3).mean((2, 4))[:, 0, :5, 0]
    )
    monkeypatch.setattr(fid.inception, "load_tensors", lambda path: {})
    monkeypatch.setattr(fid, "TOGETHER", 4)
    parts = []

    def spy(*arguments):
        for part in drawn_for_held_out(*arguments):
            parts.append(part)
            yield part

    monkeypatch.setattr(judge, "drawn_for_held_out", spy)
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"none")
    assert main(["judge", "images", "--workdir", run, "--inception", str(weights), "-n", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    real, drawn = ([image.shape for part in parts for image in getattr(part, name)] for name in ("real", "drawn"))
    assert real == drawn
    assert len(set(drawn)) > 1
    assert report["metrics"]["fid"] > 0
    sizes = {f"{width}x{height}" for height, width, _ in drawn}
    assert re.fullmatch(
        r"from (\d+x\d+)((, | and )\d+x\d+)+, as the captions' own images, to 299x299 by .* not kept \(clean-fid\)",
        report["fid_resizing"],
    )
    assert set(re.findall(r"\d+x\d+", report["fid_resizing"])) == sizes | {"299x299"}


def test_suites_that_draw_for_held_out_pictures_take_their_shapes(run, capsys):
    assert main(["evaluate", "--workdir", run, "--suite", "frechet", "--suite", "loss", "--json"]) == 0
    drawn, losses = json.loads(capsys.readouterr().out)["evaluations"]
    assert drawn["metrics"].keys() == {"frechet_pixels", "frechet_pixels_real"}
    assert (drawn["settings"]["version"], losses["settings"]["version"]) == (2, 3)
    assert "loss_image/size_2" in losses["metrics"]


@pytest.mark.parametrize(
    ("words", "size", "trained"),
    [([], (8, 8), True), (["--size", "16x4"], (16, 4), True), (["--size", "4x16"], (4, 16), False)],
)
def test_genevals_images_are_squares_or_of_the_size_asked_for(run, words, size, trained, tmp_path, capsys):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "images"
    prompts.write_text('{"tag": "single_object", "prompt": "a bench"}\n')
    asked = ["judge", "geneval", str(prompts), "--workdir", run, "--output", str(output), "-n", "2"]
    assert main([*asked, *words, "--json"]) == 0
    images = [Image.open(path) for path in output.glob("00000/samples/*.png")]
    assert [image.size for image in images] == [size] * 2
    output = capsys.readouterr()
    assert ("this run was trained on no images of 4x16 pixels" in output.err) == (not trained)
    report = json.loads(output.out)
    assert report["geneval_resizing"].startswith(f"none: the files are {size[0]}x{size[1]}, as drawn")


@pytest.mark.parametrize(("size", "said"), [("16x5", "nearest: "), ("wide", "a size is WIDTHxHEIGHT")])
def test_a_size_that_the_model_does_not_draw_is_refused(run, size, said, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"tag": "single_object", "prompt": "a bench"}\n')
    output = tmp_path / "images"
    words = ["judge", "geneval", str(prompts), "--workdir", run, "--output", str(output), "--size", size]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()
