"""Weights under the names of diffusers (`AutoencoderKL`, `VQModel`) and of CompVis, and under ours.

Ours are diffusers' but for the last word: `encoder.down_blocks.0.resnets.1.conv1.weight` is
`encoder/down_blocks_0/resnets_1/conv1/kernel`. CompVis counts the decoder's resolutions from the image's, and calls
parts otherwise: a table turns its names into diffusers'.
"""

from __future__ import annotations

import re

import numpy as np

COMPVIS = (  # (pattern, replacement), each tried in this order; {level} is turned round for the decoder
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"^decoder\.up\.(\d+)\.attn\.(\d+)\.", r"decoder.up_blocks.\1.attentions.\2."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.(q|k|v)\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
OLDER = {  # what diffusers once called the parts of attention
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
UPPER = re.compile(r"^decoder\.up_blocks\.(\d+)\.")


def from_compvis(name: str, levels: int) -> str:
    """CompVis's name, without `first_stage_model.`, as diffusers'."""
    is_theirs = name.startswith("decoder.up.")
    for pattern, replacement in COMPVIS:
        name = re.sub(pattern, replacement, name)
    if is_theirs:
        name = UPPER.sub(lambda found: f"decoder.up_blocks.{levels - 1 - int(found[1])}.", name)
    return name


def from_diffusers(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Our name and layout of a tensor of diffusers' (or CompVis's, whose attention is made of 1×1 convolutions)."""
    for old, new in OLDER.items():
        name = name.replace(old, new)
    *parents, last = re.sub(r"\.(\d+)\b", r"_\1", name).split(".")
    if last == "weight":
        last, value = _ours(parents, value)
    return "/".join([*parents, last]), value


def to_diffusers(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """The inverse of `from_diffusers`."""
    *parents, last = name.split("/")
    if last == "kernel":
        value = value.transpose(3, 2, 0, 1)
    elif last == "matrix":
        value = value.T
    elif last == "entries":
        parents = [*parents, "embedding"]
    last = "bias" if last == "bias" else "weight"
    return re.sub(r"_(\d+)(?=\.|$)", r".\1", ".".join(parents)) + f".{last}", np.ascontiguousarray(value)


def _ours(parents: list[str], value: np.ndarray) -> tuple[str, np.ndarray]:
    if parents[-1] == "embedding":
        parents.pop()
        return "entries", value
    if parents[-1].startswith("to_"):
        return "matrix", value.reshape(value.shape[:2]).T
    return ("kernel", value.transpose(2, 3, 1, 0)) if value.ndim == 4 else ("scale", value)
