"""Whole commands on runs of any shape that have learnt nothing: they hold once decoding honours `Request.grid`.

To be run as `cd WORKTREE && cp /tmp/after_merge_sizes.py tests/commands/test_drawn_sizes.py && pytest …`.
"""

import json

import numpy as np
import pytest
from PIL import Image

from helpers import begin_run, tiny_config
from transfusion_jax.cli import main

SEVERAL = dict(model__latent_shape=(8, 12, 3), model__max_side=16)


@pytest.fixture(scope="module", params=[{}, {"model__shape_marks": True}], ids=["told", "marked"])
def run(request, tmp_path_factory):
    """A run on images of any shape that has learnt nothing."""
    path = tmp_path_factory.mktemp("drawn") / "run"
    config = dict(
        model__vocabulary=256, data__sources="synthetic", optimizer__ema_decay=0.0, data__context_length=96
    )
    begin_run(path, tiny_config(**config, **SEVERAL, **request.param))
    return str(path)


def drawn(folder):
    """Height and width of each image of a folder of samples, as its lines say it, and as its files have it."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    images = [segment for line in lines for segment in line["segments"] if isinstance(segment, dict)]
    for image in images:
        assert Image.open(folder / image["image"]).size == (image["width"], image["height"])
    return [(image["height"], image["width"]) for image in images]


def test_what_is_asked_for_is_drawn(run, tmp_path):
    Image.new("RGB", (160, 40), "red").save(tmp_path / "wide.png")
    prompts = [
        {"prompt": "a", "size": "4x16", "n": 2},
        {"prompt": "b", "aspect": "1:1"},
        {"prompt": [{"image": "wide.png"}, "c"], "follow": "image"},
        {"prompt": [{"image": "wide.png"}, "c"], "follow": "image", "size": "6x6"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    how = ["--sampling-steps", "2", "--guidance", "2"]
    command = ["sample", "--workdir", run, "--prompts", str(tmp_path / "prompts.jsonl"), *how]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert drawn(tmp_path / "out") == [(16, 4), (16, 4), (8, 8), (4, 16), (6, 6)]  # an edit keeps its input's shape
    assert main([*command, "--output", str(tmp_path / "sheet.png")]) == 0


def test_one_image_is_the_same_alone_and_beside_others(run, tmp_path):
    """What is drawn at a size does not depend on the sizes beside it."""
    one = {"prompt": "a", "size": "16x4", "seed": 3}
    for name, prompts in (
        ("alone", [one]),
        ("beside", [one, {"prompt": "b", "size": "4x4"}, {"prompt": "c", "size": "8x8"}]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
        command = [
            "sample",
            "--workdir",
            run,
            "--prompts",
            str(tmp_path / f"{name}.jsonl"),
            "--sampling-steps",
            "2",
        ]
        assert main([*command, "--output", str(tmp_path / name)]) == 0
    alone, beside = (np.asarray(Image.open(tmp_path / n / "0000-0.png")).astype(int) for n in ("alone", "beside"))
    assert alone.shape == (4, 16, 3)
    assert np.abs(alone - beside).max() <= 1


def test_without_a_size_something_that_the_model_draws_comes(run, tmp_path):
    command = ["sample", "--workdir", run, "--prompt", "a", "-n", "3", "--sampling-steps", "2"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    for height, width in drawn(tmp_path / "out"):
        assert height % 2 == width % 2 == 0
        assert height * width <= 96
        assert max(height, width) <= 16
