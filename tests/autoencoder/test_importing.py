"""Folders of diffusers' in every variant that it writes, and files of tensors that are no autoencoder."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transfusion_jax.autoencoder import importing
from transfusion_jax.autoencoder.kinds.trained import Trained, flat
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.config.autoencoder import Architecture

SMALL = Architecture(
    "kl", channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3, encoder_channels=3
)
HALF = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An autoencoder, and a folder with its weights in whole precision."""
    ours = Trained("small", SMALL, jax.jit(Network(SMALL).init)(jax.random.key(0)))
    folder = tmp_path_factory.mktemp("vae")
    importing.write_diffusers(ours, folder)
    return ours, folder


@pytest.fixture
def half(written, tmp_path):
    """The same folder as `save_pretrained(variant="fp16")` leaves it."""
    _, folder = written
    weights = load_file(folder / importing.WEIGHTS)
    save_file({name: value.astype(np.float16) for name, value in weights.items()}, tmp_path / HALF)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    return tmp_path


@pytest.mark.parametrize("named", ["", HALF], ids=["folder", "file"])
def test_a_variant_in_half_precision_is_read(named, written, half):
    found = importing.read_autoencoder(half / named, "kept")
    assert found.architecture == SMALL
    for name, value in flat(found.params).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, flat(written[0].params)[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_command_reads_it(half, tmp_path, capsys):
    command = ["convert", "autoencoder-in", str(half), "--name", "kept", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert "kept: kl" in capsys.readouterr().out


def test_weights_in_whole_precision_come_first(written, half):
    save_file(load_file(written[1] / importing.WEIGHTS), half / importing.WEIGHTS)
    found = flat(importing.read_autoencoder(half, "kept").params)
    for name, value in flat(written[0].params).items():
        np.testing.assert_array_equal(found[name], value)


def test_of_several_variants_one_is_to_be_named(half):
    other = half / "diffusion_pytorch_model.non_ema.safetensors"
    other.write_bytes((half / HALF).read_bytes())
    with pytest.raises(
        ConfigError, match=r"holds several variants \(diffusion_pytorch_model\.fp16\.safetensors, diff"
    ):
        importing.read_autoencoder(half, "kept")
    assert importing.read_autoencoder(other, "kept").architecture == SMALL


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"])
def test_pickled_weights_are_found(name, tmp_path):
    (tmp_path / name).write_bytes(b"no pickle")
    with pytest.raises(ConfigError, match=f"{re.escape(name)} cannot be read"):
        importing.read_autoencoder(tmp_path, "kept")


def test_a_folder_without_weights_is_told_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match=r"diffusion_pytorch_model\.safetensors is not there"):
        importing.read_autoencoder(tmp_path, "kept")


NAMES = [
    "encoder.foo",
    "encoder.conv_in.weight",
    "encoder.down.x.y",
    "encoder.down.99999999999999999.block.0.conv1.weight",
    "encoder.down_blocks.0.resnets.0.conv1.weight",
    "decoder.up_blocks.0.x",
    "quant_conv.weight",
    "other.weight",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (3,), (4, 3, 3, 3)])
def test_what_is_no_autoencoder_is_refused(name, shape, tmp_path):
    path = tmp_path / "weights.safetensors"
    for others in ((), ("encoder.conv_out.weight",), ("encoder.conv_out.weight", NAMES[4])):
        save_file({each: np.zeros(shape, np.float32) for each in (name, *others)}, path)
        with pytest.raises(ConfigError):
            importing.read_autoencoder(path, "x")
