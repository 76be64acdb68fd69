"""The command `autoencoder`, from training to a folder that `prepare --encode` reads."""

import numpy as np
import pytest
from PIL import Image

from transfusion_jax import autoencoder as autoencoders
from transfusion_jax import cli

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg):
    return ConfigDict(dict(
        name="tiny", seed=0, steps=2, batch_rows=8, image_size=8,
        architecture=dict(
            kind="vq", image_channels=1, channels=4, multipliers=(1,), blocks=1, groups=2, latent_channels=2,
            codebook=8, middle_attention=False,
        ),
        data=dict(sources=dict(digits=arg)),
        losses=dict(lpips=0.0, gan=0.0, identity=0.0),
        optimizer=dict(warmup_steps=1),
        loop=dict(log_every=1, save_every=2, evaluate_every=2, sample_every=2),
        held_out_images=8,
    ))
"""


@pytest.mark.slow
def test_a_run_becomes_a_folder_and_a_sheet(digits_folder, tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG)
    workdir, folder, drawn = (str(tmp_path / name) for name in ("run", "vq-tiny", "sheet.png"))
    command = ["autoencoder", "train", "--config", f"{tmp_path / 'tiny.py'}:{digits_folder}", "--workdir", workdir]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "held_out/psnr" in said
    assert "held_out/codes_used" in said
    assert (tmp_path / "run/samples/00000002.png").is_file()
    assert cli.main(["doctor", workdir]) == 0
    assert "step 2 of 2" in capsys.readouterr().out
    assert cli.main(["autoencoder", "reconstruct", "--workdir", workdir, "--output", drawn]) == 0
    assert "psnr" in capsys.readouterr().out
    assert Image.open(drawn).size[0] > 8 * 8
    assert cli.main(["autoencoder", "export", "--workdir", workdir, "--name", "vq-tiny", "--output", folder]) == 0
    found = autoencoders.load_autoencoder(folder)
    assert found.name == "vq-tiny"
    codes = np.asarray(found.encode(np.zeros((1, 8, 8, 1), np.float32)).codes)
    assert codes.shape == (1, 8, 8)


def test_a_term_without_its_network_ends_the_command(digits_folder, tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG)
    command = ["autoencoder", "train", "--config", f"{tmp_path / 'tiny.py'}:{digits_folder}"]
    assert cli.main([*command, "--workdir", str(tmp_path / "run"), "--config.losses.lpips=1.0"]) != 0
    assert "losses.lpips_weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_each_kind_of_config_is_sent_to_its_command(capsys):
    assert cli.main(["train", "--config", "configs/autoencoder.py:kl,small", "--dry-run"]) != 0
    assert "transfusion autoencoder" in capsys.readouterr().err
    assert cli.main(["autoencoder", "train", "--config", "configs/debug.py", "--dry-run"]) != 0
    assert "transfusion train" in capsys.readouterr().err
