"""From pixels to a model on latents, or on codes, by the commands alone."""

import json
import shutil

import pytest

from helpers import prepare
from transfusion_jax.cli import main
from transfusion_jax.training.facts import codec_of
from transfusion_jax.training.run_dir import Workdir

SMALL = [
    "--config.steps=2",
    "--config.batch_rows=8",
    "--config.image_size=16",
    "--config.architecture.channels=8",
    "--config.architecture.multipliers=(1,2)",
    "--config.architecture.groups=4",
    "--config.loop.evaluate_every=2",
    "--config.loop.sample_every=2",
    "--config.held_out_images=3",
]
MODEL = [
    "--config.model.latent_shape=(8,8,4)",
    "--config.model.width=16",
    "--config.model.layers=1",
    "--config.batch_rows=8",
    "--config.steps=1",
    "--config.data.context_length=256",
    "--config.loop.evaluate_every=0",
]
KINDS = {
    "kl": (["--config.architecture.latent_channels=4"], ["--config.model.patch_size=4"]),
    "vq": (
        ["--config.architecture.codebook=16"],
        [
            "--config.model.patch_size=1",
            "--config.model.images=codes",
            "--config.model.codebook=16",
            "--config.model.image_attention=causal",
            "--config.diffusion.image_first_limit=1000",
            "--config.sampling.steps=250",
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_autoencoder_is_trained_exported_and_modelled(kind, tmp_path, capsys):
    architecture, model = KINDS[kind]
    data, run, folder = (tmp_path / name for name in ("data", "run", "folder"))
    prepare(data, ["shapes:40"], held_out=0.2, image_size=16)
    train = ["autoencoder", "train", "--workdir", str(run), f"--config.data.sources.shapes={data}", *SMALL]
    assert main([*train, "--config", f"configs/autoencoder.py:{kind},small", *architecture]) == 0
    assert "held_out/psnr" in capsys.readouterr().out
    assert list((run / "samples").glob("*.png"))
    assert main(["autoencoder", "reconstruct", "--workdir", str(run), "--output", str(tmp_path / "x.png")]) == 0
    assert ("perplexity" in capsys.readouterr().out) == (kind == "vq")
    assert main(["autoencoder", "export", "--workdir", str(run), "--name", "mine", "--output", str(folder)]) == 0

    again = ["prepare", "shapes:40", "--output", str(data), "--image-size", "16", "--held-out", "0.2"]
    assert main([*again, "--workers", "1", "--encode", str(folder)]) == 0
    capsys.readouterr()
    assert main(["doctor", str(data), "--output", str(tmp_path / "doctor.png")]) in (
        0,
        1,
    )  # tiny images are found fault with
    assert ("mine 8×8: codes" in capsys.readouterr().out) == (kind == "vq")
    shutil.rmtree(folder)  # prepared data has its own copy
    workdir = tmp_path / "model"
    command = ["train", "--config", "configs/debug.py", "--workdir", str(workdir), *MODEL, *model]
    sources = ["--config.data.sources={}", f"--config.data.sources.shapes.path={data}"]
    assert main([*command, *sources, "--config.data.encoding=mine"]) == 0
    shutil.rmtree(data)  # and so has the run
    draw = [
        "sample",
        "--workdir",
        str(workdir),
        "--prompt",
        "a red circle",
        "--output",
        str(tmp_path / "drawn.png"),
    ]
    assert main(draw + (["--sampling-steps", "3"] if kind == "kl" else [])) == 0
    assert (tmp_path / "drawn.png").exists()
    about = json.loads((workdir / "manifest.json").read_text())["codec"]
    assert about["autoencoder_hash"] == codec_of(Workdir(workdir)).autoencoder.hash()
