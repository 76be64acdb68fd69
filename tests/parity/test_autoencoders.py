"""Autoencoders beside diffusers' with the same weights, both ways, and CompVis's layout."""

import re
import sys
import types

import jax
import numpy as np
import pytest

from transfusion_jax.autoencoder import importing, pickles
from transfusion_jax.autoencoder.kinds import trained
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.config.autoencoder import Architecture

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
SHARED = dict(block_out_channels=(32, 64), layers_per_block=1)
DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
LAYOUTS = {  # Stable Diffusion's, SD3's and FLUX's, and one that attends at its second resolution
    "kl-4": (dict(latent_channels=4), "AutoencoderKL"),
    "kl-16": (dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False), "AutoencoderKL"),
    "vq": (dict(latent_channels=4, num_vq_embeddings=32, vq_embed_dim=3), "VQModel"),
    "vq-attends": (
        dict(
            latent_channels=4,
            num_vq_embeddings=32,
            vq_embed_dim=4,
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        ),
        "VQModel",
    ),
}


def theirs(layout, groups=4):
    options, kind = LAYOUTS[layout]
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(
        **(SHARED | dict(down_block_types=DOWN, up_block_types=UP, norm_num_groups=groups) | options)
    ).eval()
    with torch.no_grad():  # norms and biases that are not ones and zeros
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if kind == "VQModel":
            model.quantize.embedding.weight.normal_()
    return model


def image():
    return np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def channels_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def check_equal(model, ours):
    """Encoding and decoding."""
    found = Network(ours.architecture).encode(ours.params, image())
    with torch.no_grad():
        encoded = model.encode(channels_first(image()))
        if ours.architecture.kind == "kl":
            np.testing.assert_allclose(found.mean, channels_last(encoded.latent_dist.mean), atol=1e-4)
            np.testing.assert_allclose(found.log_variance, channels_last(encoded.latent_dist.logvar), atol=1e-4)
            latents = found.mean
            decoded = model.decode(channels_first(latents)).sample
        else:
            np.testing.assert_allclose(found.mean, channels_last(encoded.latents), atol=1e-4)
            _, _, (_, _, codes) = model.quantize(encoded.latents)
            np.testing.assert_array_equal(np.asarray(found.codes).ravel(), codes.numpy().ravel())
            assert len(np.unique(found.codes)) > 3
            latents = Network(ours.architecture).lookup(ours.params, found.codes)
            decoded = model.decode(encoded.latents).sample
    np.testing.assert_allclose(
        Network(ours.architecture).decode(ours.params, latents), channels_last(decoded), atol=1e-4
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_models_come_in_and_go_out(layout, tmp_path):
    model = theirs(layout)
    model.save_pretrained(tmp_path / "theirs")
    ours = importing.read_autoencoder(tmp_path / "theirs", "kept")
    check_equal(model, ours)
    ours.save(tmp_path / "ours")
    importing.write_diffusers(trained.open_folder(tmp_path / "ours"), tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value, err_msg=name)


@pytest.mark.parametrize("layout", ["kl-4", "vq-attends"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_compvis_checkpoints_come_in(layout, suffix, tmp_path):
    model = theirs(layout, groups=32)  # which a CompVis file does not say: all that were published have them
    state = {f"first_stage_model.{compvis(k)}": compvis_shape(k, v) for k, v in model.state_dict().items()}
    state |= {"first_stage_model.loss.logvar": torch.zeros(()), "model.diffusion_model.out.weight": torch.zeros(3)}
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state}, path)
    else:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in state.items()}, path)
    ours = importing.read_autoencoder(path, "kept")
    check_equal(model, ours)


def compvis(name):
    """diffusers' name as CompVis has it, for two resolutions."""
    name = re.sub(r"up_blocks\.(\d)\.", lambda m: f"up.{1 - int(m[1])}.", name).replace("down_blocks", "down")
    for theirs_, ours in {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1",
        "resnets": "block",
        "attentions": "attn",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "group_norm": "norm",
        "to_out.0": "proj_out",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
    }.items():
        name = name.replace(theirs_, ours)
    return name


def compvis_shape(name, value):
    is_projection = re.search(r"\.to_(q|k|v|out\.0)\.weight$", name)
    return value[:, :, None, None] if is_projection else value


class Callback:
    """Of a package that is not there when the file is read."""


Callback.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
BESIDE = {"callbacks": {Callback: {"score": torch.tensor(1.0)}}, "hyper_parameters": Callback(), "epoch": 3}


@pytest.fixture
def lightning(monkeypatch):
    """Lets the callback be pickled."""
    *parents, module = (Callback.__module__.rsplit(".", n)[0] for n in (2, 1, 0))
    for name in (*parents, module):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[module].Callback = Callback
    return monkeypatch


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_hold_what_pytorch_wrote(zipped, lightning, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    kinds = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    state = {kind: (whole % 5).to(getattr(torch, kind)) for kind in kinds}
    state |= {"turned": whole.T, "part": whole[1:3, ::2], "scalar": whole[2, 3], "none": whole[:0]}
    state |= {"learnt": torch.nn.Parameter(whole), "buffer": torch.nn.Parameter(whole, requires_grad=False)}
    torch.save({"state_dict": state, **BESIDE}, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    lightning.undo()
    found = dict(pickles.read_pickle(tmp_path / "model.ckpt"))
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert str(found[name].dtype) == str(value.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found[name].astype(np.float32), value.detach().float().numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False])
def test_callbacks_in_a_compvis_checkpoint_are_passed_over(zipped, lightning, tmp_path):
    model, path = theirs("kl-4", groups=32), tmp_path / "model.ckpt"
    torch.save({"state_dict": model.state_dict(), **BESIDE}, path, _use_new_zipfile_serialization=zipped)
    lightning.undo()
    command = ["convert", "autoencoder-in", str(path), "--name", "kept", "--output", str(tmp_path / "ours")]
    assert main(command) == 0
    check_equal(model, trained.open_folder(tmp_path / "ours"))


def test_what_is_missing_or_too_much_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    theirs("kl-4").save_pretrained(tmp_path)
    path = tmp_path / importing.WEIGHTS
    whole = load_file(path)
    save_file({k: v for k, v in whole.items() if k != "decoder.conv_norm_out.bias"}, path)
    with pytest.raises(ConfigError, match="lacks decoder/conv_norm_out/bias"):
        importing.read_autoencoder(tmp_path, "kept")
    save_file(whole | {"decoder.more.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(ConfigError, match="has, and we do not, decoder/more/scale"):
        importing.read_autoencoder(tmp_path, "kept")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match="is damaged"):
        importing.read_autoencoder(tmp_path, "kept")
    with pytest.raises(ConfigError, match="is not there"):
        importing.read_autoencoder(tmp_path / "nowhere", "kept")


def test_what_diffusers_cannot_hold_is_refused(tmp_path):
    a = Architecture("kl", channels=8, multipliers=(1,), groups=4, blocks=1, encoder_channels=16)
    ours = trained.Trained("kept", a, jax.jit(Network(a).init)(jax.random.key(0)))
    with pytest.raises(ConfigError, match="no projection to fewer channels"):
        importing.write_diffusers(ours, tmp_path)
