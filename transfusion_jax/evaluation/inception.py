"""The Inception v3 that FID is defined by: TensorFlow's network of 2015-12-05, up to its 2,048 features.

Weights come from a file that keeps its tensors by torchvision's names, such as pytorch-fid's
`pt_inception-2015-12-05-6726825d.pth`. From torchvision's own network it differs where it pools: averages leave the
padding out, and the last block takes the maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.autoencoder.importing import read_tensors
from transfusion_jax.config import require

SIZE = 299  # of its images
FEATURES = 2048
Arrays = Mapping[str, Any]
Part = Any  # the name of a convolution or of a pooling, or a tuple: parts side by side, each a sequence of parts

AVERAGE, LARGEST, HALVE = "average", "largest", "halve"  # of 3×3; the last a maximum in every second place
STRIDED = (  # in every second place, without padding
    "Conv2d_1a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
)
VALID = (*STRIDED, "Conv2d_2a_3x3", "Conv2d_4a_3x3")  # without padding; the others keep the size
A = (
    ("branch1x1",),
    ("branch5x5_1", "branch5x5_2"),
    ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    (AVERAGE, "branch_pool"),
)
B = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), (HALVE,))
C = (
    ("branch1x1",),
    ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
    ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
    (AVERAGE, "branch_pool"),
)
D = (
    ("branch3x3_1", "branch3x3_2"),
    ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),
    (HALVE,),
)
E = (
    ("branch1x1",),
    ("branch3x3_1", (("branch3x3_2a",), ("branch3x3_2b",))),
    ("branch3x3dbl_1", "branch3x3dbl_2", (("branch3x3dbl_3a",), ("branch3x3dbl_3b",))),
)
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", HALVE, "Conv2d_3b_1x1", "Conv2d_4a_3x3", HALVE)
BLOCKS: dict[str, Part] = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), A),
    "Mixed_6a": B,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), C),
    "Mixed_7a": D,
    "Mixed_7b": (*E, (AVERAGE, "branch_pool")),
    "Mixed_7c": (*E, (LARGEST, "branch_pool")),
}
POOLS = (AVERAGE, LARGEST, HALVE)
NORM = ("weight", "bias", "running_mean", "running_var")


def inception_features(arrays: Arrays, images: jax.Array) -> jax.Array:
    """Features `[B, 2048]` of images `[B, 299, 299, 3]`, 0 … 255."""
    x = (images - 128) / 128
    for name in STEM:
        x = _apply(arrays, "", name, x)
    for block, branches in BLOCKS.items():
        x = _apply(arrays, f"{block}.", branches, x)
    return jnp.mean(x, (1, 2))


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, `.pth` or `.safetensors`.

    Raises:
        ConfigError: there is no such file, it cannot be read, or lacks a tensor.
    """
    require(path.is_file(), f"there is no file {path}")
    wanted = set(tensor_names())
    found = {name: value for name, value in read_tensors(path) if name in wanted}
    missing = sorted(wanted - found.keys())
    require(
        not missing,
        f"{path} lacks {len(missing)} tensors of Inception v3, such as {', '.join(missing[:2])}: "
        "pytorch-fid's pt_inception-2015-12-05-6726825d.pth has them",
    )
    return found


def tensor_names() -> Iterator[str]:
    """What a file has to hold."""
    convolutions = [name for name in STEM if name not in POOLS]
    convolutions += [f"{block}.{name}" for block, part in BLOCKS.items() for name in _convolutions(part)]
    for name in convolutions:
        yield f"{name}.conv.weight"
        yield from (f"{name}.bn.{part}" for part in NORM)


def _convolutions(part: Part) -> Iterator[str]:
    if isinstance(part, str):
        yield from () if part in POOLS else (part,)
    else:
        for inner in part:
            yield from _convolutions(inner)


def _apply(arrays: Arrays, block: str, part: Part, x: jax.Array) -> jax.Array:
    if isinstance(part, str):
        return _pool(part, x) if part in POOLS else _convolution(arrays, block + part, x)
    outputs = []
    for branch in part:
        y = x
        for inner in branch:
            y = _apply(arrays, block, inner, y)
        outputs.append(y)
    return jnp.concatenate(outputs, -1)


def _convolution(arrays: Arrays, name: str, x: jax.Array) -> jax.Array:
    """With batch norm by its running statistics, and ReLU."""
    x = jax.lax.conv_general_dilated(
        x,
        arrays[f"{name}.conv.weight"],
        (2, 2) if name in STRIDED else (1, 1),
        "VALID" if name in VALID else "SAME",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    weight, bias, mean, variance = (arrays[f"{name}.bn.{part}"] for part in NORM)
    return jax.nn.relu((x - mean) * (weight * jax.lax.rsqrt(variance + 1e-3)) + bias)


def _pool(kind: str, x: jax.Array) -> jax.Array:
    window, ones = (1, 3, 3, 1), (1, 1, 1, 1)
    if kind == AVERAGE:
        inside = jnp.ones_like(x, shape=(1, *x.shape[1:3], 1))  # no larger: XLA sums it while it compiles
        total, count = (jax.lax.reduce_window(each, 0.0, jax.lax.add, window, ones, "SAME") for each in (x, inside))
        return total / count
    strides, padding = ((1, 2, 2, 1), "VALID") if kind == HALVE else (ones, "SAME")
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
