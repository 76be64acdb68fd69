"""Autoencoders of others: diffusers' `AutoencoderKL` and `VQModel` in and out, CompVis's checkpoints in.

The architecture is read off the tensors' shapes; a folder's `config.json` only adds what shapes do not show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as tensors

from transfusion_jax.autoencoder import names, pickles
from transfusion_jax.autoencoder.kinds.trained import Trained, check_name, flat
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.config import ConfigError, require
from transfusion_jax.config.autoencoder import Architecture
from transfusion_jax.parallel.tree import nested
from transfusion_jax.storage.atomic import read_json, write_whole

WEIGHTS = "diffusion_pytorch_model.safetensors"
VARIANTS = (  # names that diffusers gives, first those in whole precision; `*` is its `variant`, such as fp16
    WEIGHTS,
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.*.safetensors",
    "diffusion_pytorch_model.*.bin",
)
PREFIX = "first_stage_model."
OWN = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")  # the rest is losses and counters
GROUPS = 32  # of a norm in every layout but where a config.json says otherwise
Tensors = Mapping[str, np.ndarray]


def read_autoencoder(path: Path, name: str) -> Trained:
    """The autoencoder of a diffusers folder or a file in it, or of a CompVis checkpoint (`.safetensors`, `.ckpt`).

    Raises:
        ConfigError: there is none, or more than one, its weights are damaged, or parts of it are none of ours.
    """
    check_name(name)
    weights = _weights(path) if path.is_dir() else path
    require(weights.is_file(), f"{weights} is not there: name a diffusers folder with {WEIGHTS}, or a checkpoint")
    about = weights.parent / "config.json" if any(map(weights.match, VARIANTS)) else path / "config.json"
    config = read_json(about, "copy it again from where it is from") if about.is_file() else {}
    found = {key.removeprefix(PREFIX): value for key, value in read_tensors(weights)}
    found = {key: value for key, value in found.items() if key.startswith(OWN)}
    require(bool(found), f"{weights} holds no autoencoder: no tensor is named encoder.… or {PREFIX}encoder.…")
    if any(key.startswith("encoder.down.") for key in found):
        numbers = (int(number) for key in found for number in re.findall(r"^encoder\.down\.(\d+)\.", key))
        levels = 1 + max(numbers, default=-1)
        found = {names.from_compvis(key, levels): value for key, value in found.items()}
    architecture = _architecture(found, config.get("norm_num_groups", GROUPS))
    params = dict(names.from_diffusers(key, value) for key, value in found.items())
    _check(params, architecture, weights)
    return Trained(name, architecture, nested(params), origin=path.name)


def _weights(folder: Path) -> Path:
    """The file of a folder's weights."""
    found = next((files for name in VARIANTS if (files := sorted(folder.glob(name)))), [folder / WEIGHTS])
    names = ", ".join(file.name for file in found)
    require(len(found) == 1, f"{folder} holds several variants ({names}): give one of these files instead")
    return found[0]


def write_diffusers(autoencoder: Trained, folder: Path) -> None:
    """A folder that diffusers' `AutoencoderKL.from_pretrained` or `VQModel.from_pretrained` reads.

    Raises:
        ConfigError: diffusers has no such architecture.
    """
    config = diffusers_config(autoencoder.architecture)
    leaves = dict(names.to_diffusers(name, value) for name, value in flat(autoencoder.params).items())
    write_whole(folder / WEIGHTS, tensors.save(leaves, metadata={"format": "pt"}))
    write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")


def diffusers_config(a: Architecture) -> dict[str, Any]:
    """The `config.json` that gives diffusers this architecture.

    Raises:
        ConfigError: it has none such.
    """
    is_kl, levels = a.kind == "kl", range(len(a.widths))
    require(
        not is_kl or a.encoded_channels == a.latent_channels,
        "diffusers' AutoencoderKL has no projection to fewer channels (encoder_channels): it cannot be written so",
    )
    require(is_kl or a.projections, "diffusers' VQModel always has projections: it cannot be written so")
    require(is_kl or a.middle_attention, "diffusers' VQModel always attends in the middle: it cannot be written so")
    attends = ["Attn" if level in a.attention else "" for level in levels]
    shared = {
        "_class_name": "AutoencoderKL" if is_kl else "VQModel",
        "in_channels": a.image_channels,
        "out_channels": a.image_channels,
        "block_out_channels": list(a.widths),
        "down_block_types": [f"{word}DownEncoderBlock2D" for word in attends],
        "up_block_types": [f"{word}UpDecoderBlock2D" for word in reversed(attends)],
        "layers_per_block": a.blocks,
        "latent_channels": a.encoded_channels,
        "norm_num_groups": a.groups,
        "act_fn": "silu",
    }
    if is_kl:
        projections = {"use_quant_conv": a.projections, "use_post_quant_conv": a.projections}
        return shared | projections | {"mid_block_add_attention": a.middle_attention}
    return shared | {"num_vq_embeddings": a.codebook, "vq_embed_dim": a.latent_channels}


def _architecture(found: Tensors, groups: int) -> Architecture:
    """From the shapes of tensors under diffusers' names."""

    def width(key: str, axis: int = 0) -> int:
        require(key in found, f"a tensor of the autoencoder is missing: {key}")
        shape = found[key].shape
        require(len(shape) > axis, f"a tensor of the autoencoder has another shape: {key} is {list(shape)}")
        return int(shape[axis])

    def count(pattern: str) -> int:
        return 1 + max((int(n) for key in found for n in re.findall(pattern, key)), default=-1)

    levels = count(r"^encoder\.down_blocks\.(\d+)\.")
    require(levels > 0, "tensors of the autoencoder are missing: encoder.down_blocks.0.…")
    widths = [width(f"encoder.down_blocks.{level}.resnets.0.conv1.weight") for level in range(levels)]
    codebook = found.get("quantize.embedding.weight")
    moments = 1 if codebook is not None else 2
    projections = "post_quant_conv.weight" in found
    encoded = width("encoder.conv_out.weight") // moments
    channels = int(np.gcd.reduce(widths))
    return Architecture(
        kind="vq" if codebook is not None else "kl",
        image_channels=width("encoder.conv_in.weight", axis=1),
        channels=channels,
        multipliers=tuple(w // channels for w in widths),
        blocks=count(r"^encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        latent_channels=width("post_quant_conv.weight", axis=1) if projections else encoded,
        codebook=0 if codebook is None else len(codebook),
        encoder_channels=encoded,
        groups=groups,
        attention=tuple(
            level
            for level in range(levels)
            if any(key.startswith(f"encoder.down_blocks.{level}.attentions.") for key in found)
        ),
        middle_attention=any(key.startswith("encoder.mid_block.attentions.") for key in found),
        projections=projections,
    )


def _check(params: Tensors, architecture: Architecture, path: Path) -> None:
    wanted = flat(Network(architecture).abstract_params())
    for what, keys in (("lacks", wanted.keys() - params.keys()), ("has, and we do not,", params.keys() - wanted)):
        require(not keys, f"{path} {what} {', '.join(sorted(keys)[:5])}{' …' if len(keys) > 5 else ''}")
    for key, value in params.items():
        require(
            value.shape == wanted[key].shape,
            f"{path}: {key} is {value.shape}, and should be {wanted[key].shape} beside the others",
        )


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor in float32, one after the other."""
    if path.suffix == ".safetensors":
        yield from _safetensors(path)
        return
    for key, value in pickles.read_pickle(path):
        yield key, value.astype(np.float32)


def _safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - a file is no mapping
                yield key, file.get_tensor(key).astype(np.float32)
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
