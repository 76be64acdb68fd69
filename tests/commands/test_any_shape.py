"""Commands on a run whose pictures keep their proportions."""

import numpy as np
import pytest
from PIL import Image

from helpers import begin_run, prepare, tiny_config
from transfusion_jax import config as configs
from transfusion_jax.cli import main
from transfusion_jax.config import SUITES, ConfigError
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.training.facts import trained_shapes
from transfusion_jax.training.run_dir import Workdir

SHAPES = ((8, 8), (4, 16), (12, 4), (4, 4))


def folder_of(path, shapes, words):
    """Pictures of these shapes by turns, one for each number of words of its caption."""
    path.mkdir()
    random = np.random.default_rng(0)
    for number, count in enumerate(words):
        shape = shapes[number % len(shapes)]
        Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8)).save(path / f"{number:02}.png")
        (path / f"{number:02}.txt").write_text("ab " * count + str(number))
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A prepared folder of small pictures."""
    path = tmp_path_factory.mktemp("shapes")
    native = Proportions(area=64, multiple=4)
    return prepare(path / "data", [folder_of(path / "in", SHAPES, [1] * 24)], held_out=0.4, native=native)


def config_of(path, held_out=None, **changes):
    source = {"path": str(path)} | ({"held_out": str(held_out)} if held_out else {})
    return tiny_config(
        model__vocabulary=256,
        model__latent_shape=(8, 8, 3),
        model__max_side=16,
        model__patch_size=4,
        data__max_images=6,
        data__sources={"pictures": source},
        optimizer__ema_decay=0.0,
        **changes,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["told", "marked"])
def run(request, pictures, tmp_path_factory):
    """A run on them that has learnt nothing, and one whose images have marks of their shapes."""
    path = tmp_path_factory.mktemp("run") / "run"
    begin_run(path, config_of(pictures.folder, model__shape_marks=request.param))
    return str(path)


def test_held_out_pictures_of_several_shapes_are_captioned_and_shown(run, tmp_path, capsys):
    command = ["sample", "--workdir", run, "--held-out", "4", "--max-tokens", "2", "--output"]
    assert main([*command, str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 1 + 4
    assert sum(line.startswith("ab ") for line in lines) == 4
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 144  # four pictures in a row, each with room for its caption
    assert main([*command, str(tmp_path / "sheet.html")]) == 2
    assert "--held-out writes a sheet: --output FILE.png" in capsys.readouterr().err


@pytest.mark.slow
def test_training_draws_a_sheet_and_keeps_the_sizes_of_its_images(pictures, tmp_path):
    changes = dict(steps=2, batch_rows=8, mesh__data=8, loop__sample_every=2, sampling__steps=2)
    values = configs.to_dict(config_of(pictures.folder, **changes))
    (tmp_path / "config.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config(arg=''):\n    return ConfigDict({values!r})\n"
    )
    assert main(["train", "--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]) == 0
    assert Image.open(tmp_path / "run/samples/00000002.png").size[0] > 64
    sizes = {"height": [4, 12], "width": [4, 16], "area": [16, 64]}
    assert trained_shapes(Workdir(tmp_path / "run").manifest()) == sizes


def test_a_folder_that_is_held_out_must_hold_shapes_of_the_model(pictures, tmp_path):
    native = Proportions(area=256, multiple=4)
    larger = prepare(tmp_path / "larger", [folder_of(tmp_path / "in", ((16, 16),), [1] * 2)], native=native)
    with pytest.raises(ConfigError, match=r"the images in .*larger .* have up to 256 places, .*latent_shape 64"):
        load_data(config_of(pictures.folder, held_out=larger.folder))


def test_held_out_documents_that_fit_no_row_are_named_before_training(pictures, tmp_path):
    longer = prepare(
        tmp_path / "longer",
        [folder_of(tmp_path / "in", SHAPES, [1, 20])],
        native=Proportions(area=64, multiple=4),
    )
    config = config_of(pictures.folder, held_out=longer.folder)
    data = load_data(config)
    with pytest.raises(ConfigError, match=r"held-out documents make no rows: .* data\.context_length is 48"):
        SUITES["loss"].check(config, data)
    config = config_of(pictures.folder)
    SUITES["loss"].check(config, load_data(config))
