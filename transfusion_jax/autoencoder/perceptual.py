"""Distances of images by the features of trained networks: LPIPS (VGG16) and the identity loss (ResNet-50).

Pure functions over arrays that keep the names which torchvision, the package lpips and MoCo gave them. Files are
read by `load_lpips` and `load_identity`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.autoencoder.importing import read_tensors
from transfusion_jax.config import require

Arrays = Mapping[str, Any]  # NumPy's as they are loaded, JAX's in a step
VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's numbers of convolutions, by stage
RESNET = (3, 4, 6, 3)  # bottlenecks of each stage of ResNet-50
IMAGENET = (np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32))
TINY = 1e-8  # beside a squared norm


def lpips(arrays: Arrays, first: jax.Array, second: jax.Array) -> jax.Array:
    """LPIPS 0.1 with VGG16 (arXiv 1801.03924) between images `[B, H, W, 3]` in [−1, 1], `[B]`."""
    total = jnp.zeros(len(first))
    for stage, (one, other) in enumerate(zip(_vgg(arrays, first), _vgg(arrays, second), strict=True)):
        difference = jnp.square(_unit(one) - _unit(other))
        weight = arrays[f"lin{stage}.model.1.weight"].reshape(-1)
        total = total + jnp.mean(difference @ weight, axis=(1, 2))
    return total


def identity_distance(arrays: Arrays, first: jax.Array, second: jax.Array) -> jax.Array:
    """Mean squared distance of the stages' features of ResNet-50 between images in [−1, 1], averaged, `[B]`.

    The paper takes MoCo v2's weights and does not say which features; these are all four stages', each with unit
    vectors of channels, as in LPIPS.
    """
    pairs = list(zip(resnet_stages(arrays, first), resnet_stages(arrays, second), strict=True))
    distances = [jnp.sum(jnp.square(_unit(one) - _unit(other)), -1).mean((1, 2)) for one, other in pairs]
    return sum(distances[1:], distances[0]) / len(distances)


def resnet_stages(arrays: Arrays, images: jax.Array) -> list[jax.Array]:
    """What the four stages of ResNet-50 (v1.5) give for images in [−1, 1], norms with their running statistics."""
    x = _conv(_normalised(images), arrays["conv1.weight"], stride=2, padding=3)
    x = jax.nn.relu(_batch_norm(arrays, "bn1", x))
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    stages = []
    for stage, blocks in enumerate(RESNET, 1):
        for block in range(blocks):
            x = _bottleneck(arrays, f"layer{stage}.{block}", x, stride=2 if stage > 1 and block == 0 else 1)
        stages.append(x)
    return stages


def load_lpips(files: tuple[str, ...]) -> Arrays:
    """VGG16's convolutions and LPIPS's linear weights, of one file or two.

    torchvision's names `features.0.weight` …, and lpips's `lin0.model.1.weight` … .

    Raises:
        ConfigError: a file is not there or cannot be read, or a tensor is in none.
    """
    wanted = {f"features.{n}.{part}": None for stage in VGG for n in stage for part in ("weight", "bias")}
    wanted |= {f"lin{stage}.model.1.weight": None for stage in range(len(VGG))}
    return _chosen(files, wanted, "losses.lpips_weights")


def load_identity(files: tuple[str, ...]) -> Arrays:
    """ResNet-50's weights, torchvision's or MoCo's (`module.encoder_q.…`).

    Raises:
        ConfigError: a file is not there or cannot be read, or a tensor is in none.
    """
    return _chosen(files, dict.fromkeys(_resnet_names()), "losses.identity_weights")


def _chosen(files: tuple[str, ...], wanted: dict[str, None], option: str) -> Arrays:
    prefix, found = re.compile(r"^(module\.)?(encoder_q\.)?"), dict[str, np.ndarray]()
    for file in files:
        require(Path(file).is_file(), f"{option}: there is no file {file}")
        found |= {name: value for key, value in read_tensors(Path(file)) if (name := prefix.sub("", key)) in wanted}
    missing = sorted(wanted.keys() - found.keys())
    require(
        not missing, f"{option}: {', '.join(files)} lack {len(missing)} tensors, such as {', '.join(missing[:3])}"
    )
    return {name: found[name] for name in wanted}


def _resnet_names() -> Iterator[str]:
    yield "conv1.weight"
    norms = ["bn1"]
    for stage, blocks in enumerate(RESNET, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            yield from (f"{name}.conv{n}.weight" for n in (1, 2, 3))
            norms += [f"{name}.bn{n}" for n in (1, 2, 3)]
            if block == 0:
                yield f"{name}.downsample.0.weight"
                norms.append(f"{name}.downsample.1")
    yield from (f"{n}.{part}" for n in norms for part in ("weight", "bias", "running_mean", "running_var"))


def _bottleneck(arrays: Arrays, name: str, x: jax.Array, stride: int) -> jax.Array:
    y = jax.nn.relu(_batch_norm(arrays, f"{name}.bn1", _conv(x, arrays[f"{name}.conv1.weight"])))
    y = _conv(y, arrays[f"{name}.conv2.weight"], stride, padding=1)
    y = jax.nn.relu(_batch_norm(arrays, f"{name}.bn2", y))
    y = _batch_norm(arrays, f"{name}.bn3", _conv(y, arrays[f"{name}.conv3.weight"]))
    if f"{name}.downsample.0.weight" in arrays:
        x = _conv(x, arrays[f"{name}.downsample.0.weight"], stride)
        x = _batch_norm(arrays, f"{name}.downsample.1", x)
    return jax.nn.relu(x + y)


def _batch_norm(arrays: Arrays, name: str, x: jax.Array) -> jax.Array:
    scale = arrays[f"{name}.weight"] * jax.lax.rsqrt(arrays[f"{name}.running_var"] + 1e-5)
    return (x - arrays[f"{name}.running_mean"]) * scale + arrays[f"{name}.bias"]


def _vgg(arrays: Arrays, images: jax.Array) -> list[jax.Array]:
    """What each stage of VGG16 gives, before it is pooled."""
    x, stages = _normalised(images), []
    for stage, numbers in enumerate(VGG):
        if stage:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for number in numbers:
            weight, bias = (arrays[f"features.{number}.{part}"] for part in ("weight", "bias"))
            x = jax.nn.relu(_conv(x, weight, padding=1) + bias)
        stages.append(x)
    return stages


def _normalised(images: jax.Array) -> jax.Array:
    mean, std = IMAGENET
    return ((images + 1) / 2 - mean) / std


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + TINY)


def _conv(x: jax.Array, weight: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """By a kernel in PyTorch's layout `[out, in, y, x]`."""
    around = ((padding, padding),) * 2
    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), around, dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
