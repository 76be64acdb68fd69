"""`transfusion sample` with shapes: what it asks the decoding for, refuses, warns of and writes."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers import begin_run, tiny_config
from transfusion_jax.cli import main
from transfusion_jax.commands import sample
from transfusion_jax.generation.interleaved import Sample
from transfusion_jax.storage.atomic import read_json, write_json

SEVERAL = dict(model__latent_shape=(8, 12, 3), model__max_side=16)
TRAINED = {"height": [4, 8], "width": [4, 12], "area": [16, 96]}


def begun(path, shapes=None, **changes):
    """The directory of a run that has learnt nothing; `shapes` are what it says that it was trained on."""
    config = dict(model__vocabulary=256, data__sources="synthetic", optimizer__ema_decay=0.0)
    begin_run(path, tiny_config(**config, **changes))
    if shapes:
        write_json(path / "manifest.json", read_json(path / "manifest.json", "") | {"shapes": shapes})
    return str(path)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return begun(tmp_path_factory.mktemp("several") / "run", TRAINED, **SEVERAL)


@pytest.fixture(scope="module")
def one_size(tmp_path_factory):
    return begun(tmp_path_factory.mktemp("one") / "run", model__latent_shape=(8, 12, 3))


@pytest.fixture
def asked(monkeypatch):
    """The requests that the decoding gets, which draws a grey image of each one's shape."""
    requests = []

    def generate(task, params, codec, given, *how, watch):
        requests.extend(given)
        made = []
        for request in given:
            grid = request.grid or task.config.model.patch_grid
            image = np.zeros([side * task.config.model.patch_size for side in grid] + [3], np.float32)
            made.append(Sample(() if request.follow == "text" else (image,), "images"))
        return made

    monkeypatch.setattr(sample, "generate", generate)
    return requests


def run(workdir, *words):
    return main(["sample", "--workdir", workdir, *map(str, words)])


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        ([], None),
        (["--size", "12x8"], (4, 6)),
        (["--size", "16x4"], (2, 8)),
        (["--aspect", "1:1"], (4, 4)),
        (["--aspect", "4:1"], (2, 8)),
        (["--aspect", "2:3"], (6, 4)),
    ],
)
def test_a_shape_is_asked_for_in_patches(words, grid, several, asked, tmp_path, capsys):
    assert run(several, "--prompt", "a", "-n", 2, *words, "--output", tmp_path / "out") == 0
    assert [request.grid for request in asked] == [grid, grid]
    height, width = (2 * side for side in grid or (4, 6))
    lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [line["segments"] for line in lines] == [
        [{"image": f"000{n}-0.png", "width": width, "height": height}] for n in range(2)
    ]
    assert Image.open(tmp_path / "out/0001-0.png").size == (width, height)
    page = (tmp_path / "out/samples.html").read_text()
    assert all(f"{name[2:]} {value}" in page for name, value in zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("words", [["--size", "12x8"], ["--aspect", "3:2"], []])
def test_a_model_of_one_size_may_be_asked_for_it(words, one_size, asked, tmp_path):
    assert run(one_size, "--prompt", "a", *words, "--output", tmp_path / "out.png") == 0
    assert [request.grid for request in asked] == [(4, 6) if words else None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "8x12"], "draws images of 12x8 pixels alone, not of 8x12"),
        (["--aspect", "1:1"], "draws images of 12x8 pixels alone, not of 1:1"),
    ],
)
def test_a_model_of_one_size_refuses_others(words, message, one_size, asked, tmp_path, capsys):
    assert run(one_size, "--prompt", "a", *words, "--output", tmp_path / "out.png") == 2
    assert message in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--size", "7x8"],
            "no images of 7x8 pixels: sides are multiples of 2, at most 16, and an image has at most 96",
        ),
        (["--size", "18x2"], "nearest: 16x2"),
        (["--size", "12x10"], "nearest: "),
        (["--aspect", "9:1"], "no images of 9:1: the longer side is at most 8 times the shorter one"),
        (["--size", "12"], "a size is WIDTHxHEIGHT in pixels, such as 320x192, not '12'"),
        (["--aspect", "16x9"], "an aspect is WIDTH:HEIGHT in whole numbers, such as 16:9, not '16x9'"),
        (["--size", "12x8", "--aspect", "3:2"], "a size has an aspect already: give either size or aspect"),
    ],
)
def test_what_is_beyond_the_model_is_refused(words, message, several, asked, tmp_path, capsys):
    assert run(several, "--prompt", "a", *words, "--output", tmp_path / "out.png") == 2
    assert message in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize("words", [["--size", "12x8"], ["--aspect", "1:1"]])
@pytest.mark.parametrize(
    ("of", "message"),
    [
        (["--prompt", "a", "--follow", "text"], "nothing is drawn: leave out "),
        (["--prompt", "a", "--score", "b"], "--score prints numbers: leave out "),
        (["--held-out", "2"], "--held-out captions images: leave out "),
    ],
)
def test_a_shape_goes_with_drawing_alone(words, of, message, tmp_path, capsys):
    assert run(str(tmp_path), *of, *words) == 2
    assert message + words[0] in capsys.readouterr().err


def test_what_a_run_never_saw_is_warned_of_once_for_each_shape(several, asked, tmp_path, capsys):
    prompts = [{"prompt": "a", "size": size, "n": 2} for size in ("16x4", "12x8", "16x4", "2x2")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    assert run(several, "--prompts", tmp_path / "prompts.jsonl", "--output", tmp_path / "out") == 0
    theirs = "theirs are 4 to 12 wide, 4 to 8 high, and 16 to 96 in area"
    assert capsys.readouterr().err.splitlines() == [
        f"this run was trained on no images of {size} pixels: {theirs}" for size in ("16x4", "2x2")
    ]


def test_a_run_that_does_not_say_what_it_was_trained_on_warns_of_nothing(asked, tmp_path, capsys):
    workdir = begun(tmp_path / "run", **SEVERAL)
    assert run(workdir, "--prompt", "a", "--size", "2x2", "--output", tmp_path / "out.png") == 0
    assert capsys.readouterr().err == ""


def test_each_line_of_prompts_may_name_a_shape(several, asked, tmp_path):
    prompts = [
        {"prompt": "a", "size": "4x16"},
        {"prompt": "a", "aspect": "1:1", "follow": "any"},
        {"prompt": "a"},
        {"prompt": "a", "follow": "text"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    command = ["--prompts", tmp_path / "prompts.jsonl", "--output", tmp_path / "out"]
    assert run(several, *command, "--size", "16x4") == 0
    assert [request.grid for request in asked] == [(8, 2), (4, 4), (2, 8), None]
    assert run(several, *command) == 0
    assert [request.grid for request in asked[4:]] == [(8, 2), (4, 4), None, None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"size": "big"}, "a size is WIDTHxHEIGHT in pixels, such as 320x192, not 'big'"),
        ({"size": 12}, "size is a text, not 12"),
        ({"aspect": [16, 9]}, "aspect is a text, not [16, 9]"),
        ({"size": "12x8", "aspect": "1:1"}, "a size has an aspect already: give either size or aspect"),
        ({"size": "12x8", "follow": "text"}, "nothing is drawn where a text follows: leave out size and aspect"),
        ({"sise": "12x8"}, "unknown key 'sise'; did you mean 'size'"),
    ],
)
def test_a_wrong_shape_of_a_line_is_named(line, message, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "b"} | line))
    assert run("nowhere", "--prompts", tmp_path / "prompts.jsonl", "--output", "x") == 2
    assert f"line 2: {message}" in capsys.readouterr().err


def test_a_shape_of_a_line_is_refused_where_texts_are_scored(tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a pond", "aspect": "2:1"}\n')
    assert run(str(tmp_path), "--prompts", tmp_path / "prompts.jsonl", "--score", "x") == 2
    assert "--score prints numbers: leave out size and aspect of a pond" in capsys.readouterr().err


def test_a_file_keeps_its_proportions_and_an_edit_is_told_a_shape_only_if_asked(several, asked, tmp_path):
    Image.new("RGB", (320, 80), "red").save(tmp_path / "wide.png")
    edit = ["--image", tmp_path / "wide.png", "--prompt", "a", "--edit", "--output", tmp_path / "out.png"]
    assert run(several, *edit) == 0
    assert run(several, *edit, "--size", "8x8") == 0
    assert [request.grid for request in asked] == [None, (4, 4)]
    assert [request.document.segments[0].latent.shape for request in asked] == [(4, 16, 3)] * 2


def test_a_sheet_holds_images_of_several_shapes(several, asked, tmp_path):
    prompts = [{"prompt": name, "size": size} for name, size in (("wide", "16x4"), ("tall", "4x16"))]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    assert run(several, "--prompts", tmp_path / "prompts.jsonl", "--output", tmp_path / "out.png") == 0
    sheet = np.asarray(Image.open(tmp_path / "out.png"))
    assert len(sheet) == 6 + 4 * 4 + 6 + 16 * 4 + 6
    assert ((sheet == 128).all(2)).sum() == 2 * 16 * 4 * 4 * 4
