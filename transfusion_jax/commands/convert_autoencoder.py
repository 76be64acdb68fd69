"""`transfusion convert autoencoder-in` and `autoencoder-out`: autoencoders of diffusers and CompVis, and ours."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from transfusion_jax.autoencoder import importing, trained
from transfusion_jax.storage import place


def add_parsers(commands: Any) -> None:
    """Declares both."""
    into = commands.add_parser(
        "autoencoder-in",
        help="an image autoencoder of diffusers or CompVis, as a folder for prepare --encode",
        description="Reads diffusers' AutoencoderKL or VQModel (a folder), or a CompVis checkpoint.",
    )
    into.add_argument("path", type=Path, help="a folder with diffusion_pytorch_model.safetensors, or a checkpoint")
    into.add_argument("--output", type=place, required=True, help="the folder to write")
    into.add_argument("--name", required=True, help="what data.encoding will call it, such as kl-f8c4")
    into.set_defaults(run=_into, takes_overrides=False)
    out = commands.add_parser(
        "autoencoder-out",
        help="an image autoencoder as a folder that diffusers reads",
        description="Writes a folder for AutoencoderKL.from_pretrained or VQModel.from_pretrained.",
    )
    out.add_argument("path", type=place, help="a folder that autoencoder-in, or autoencoder export, wrote")
    out.add_argument("--output", type=Path, required=True, help="the folder to write")
    out.set_defaults(run=_out, takes_overrides=False)


def _into(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    found = importing.read(arguments.path, arguments.name)
    trained.save(arguments.output, found)
    a = found.architecture
    millions = sum(math.prod(leaf.shape) for leaf in trained.flat(found.params).values()) / 1e6
    what = (
        f"codes of {a.codebook:,} entries of {a.latent_channels}"
        if a.codebook
        else f"latents of {a.latent_channels}"
    )
    print(f"{found.name}: {a.kind}, {millions:.1f}M parameters, {a.factor}×{a.factor} pixels to {what} channels")
    print(f"written to {arguments.output}; transfusion prepare … --encode {arguments.output}")
    return 0


def _out(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    importing.write(trained.open_folder(arguments.path), arguments.output)
    print(f"written to {arguments.output}")
    return 0
