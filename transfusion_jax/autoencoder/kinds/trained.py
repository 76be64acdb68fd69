"""Autoencoders with weights, each kept in a folder: `autoencoder.json` and `weights.safetensors`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as tensors

from transfusion_jax import autoencoder
from transfusion_jax.autoencoder.interface import Array, Encoding
from transfusion_jax.autoencoder.network import Network, Params
from transfusion_jax.config import ConfigError, require
from transfusion_jax.config.autoencoder import Architecture
from transfusion_jax.parallel.tree import nested
from transfusion_jax.storage.atomic import DamagedFile, read_json, write_json, write_whole
from transfusion_jax.storage.paths import Place, place

ABOUT, WEIGHTS = "autoencoder.json", "weights.safetensors"
REMEDY = "copy the folder from its origin, or run the command that wrote it again"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DECODED = 16  # images decoded at a time: activations of larger ones take gigabytes


@dataclass(frozen=True, eq=False)
class Trained:
    """An autoencoder of a folder; see `Autoencoder`."""

    name: str
    architecture: Architecture
    params: Params
    origin: str = ""  # where the weights came from, for people

    bounds: tuple[float, float] | None = None

    @property
    def codebook(self) -> int:
        """Entries of the codebook; 0 where it gives latents."""
        return self.architecture.codebook

    def encode(self, images: Array) -> Encoding:
        """Latents or codes of images `[B, H, W, C]`."""
        return _encode(self.architecture, self._here, jnp.asarray(images))

    def decode(self, latents: Array) -> Array:
        """Images `[B, H, W, C]`, limited to [−1, 1], of latents `[B, h, w, c]` or codes `[B, h, w]`."""
        parts = [latents[i : i + DECODED] for i in range(0, len(latents), DECODED)]
        return np.concatenate([np.asarray(_decode(self.architecture, self._here, part)) for part in parts])

    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """So many times the side, in the architecture's channels."""
        factor = self.architecture.factor
        return latent_shape[0] * factor, latent_shape[1] * factor, self.architecture.image_channels

    def hash(self) -> str:
        """Of architecture and weights, whatever file they were read from."""
        return self._hash

    def save(self, folder: Place) -> None:
        """Writes the folder; a folder that holds the same autoencoder, whole, is left as it is.

        Raises:
            ConfigError: the name is no word, or the folder holds another autoencoder.
        """
        check_name(self.name)
        about = {
            "name": self.name,
            "hash": self.hash(),
            "architecture": dataclasses.asdict(self.architecture),
            "origin": self.origin,
        }
        if (folder / ABOUT).exists():
            try:
                there = open_folder(folder).hash()
            except DamagedFile:
                there = None  # it is written again
            require(
                there in (None, about["hash"]),
                f"{folder} holds another autoencoder ({there}): choose another folder",
            )
            if there:
                return
        write_whole(folder / WEIGHTS, tensors.save(flat(self.params)))
        write_json(folder / ABOUT, about, indent=2)  # last: the folder is whole once this is there

    @property
    def _here(self) -> Params:
        """The parameters on the device that JAX computes on in this thread."""
        chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
        device = chosen or jax.local_devices()[0]
        if device not in self._placed:
            self._placed[device] = jax.device_put(self.params, device)
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[Any, Params]:
        return {}

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.architecture), sort_keys=True).encode())
        for name, value in flat(self.params).items():
            digest.update(f"{name}{value.shape}".encode() + np.asarray(value, np.float32).tobytes())
        return digest.hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=0)
def _encode(architecture: Architecture, params: Params, images: jax.Array) -> Encoding:
    found = Network(architecture).encode(params, images)
    return found if architecture.kind == "kl" else Encoding(codes=found.codes)


@functools.partial(jax.jit, static_argnums=0)
def _decode(architecture: Architecture, params: Params, latents: jax.Array) -> jax.Array:
    network = Network(architecture)
    if jnp.issubdtype(latents.dtype, jnp.integer):
        latents = network.lookup(params, latents)
    return jnp.clip(network.decode(params, latents), -1, 1)


def from_name(name: str) -> Trained | None:
    """The autoencoder of the folder that a name is, or None if it is no such folder."""
    folder = place(name)
    return open_folder(folder) if (folder / ABOUT).is_file() else None


def open_folder(folder: Place) -> Trained:
    """The autoencoder of a folder that `save` wrote.

    Raises:
        ConfigError: there is none.
        DamagedFile: it is not what was written.
    """
    if not (folder / ABOUT).is_file():
        raise ConfigError(
            f"{folder} holds no autoencoder: transfusion autoencoder train, then export, or transfusion convert"
        )
    about = read_json(folder / ABOUT, REMEDY)
    try:
        fields: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in about["architecture"].items()
        }
        architecture = Architecture(**fields)
        name, digest, origin = (str(about[key]) for key in ("name", "hash", "origin"))
    except (LookupError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{folder / ABOUT} is damaged ({error}): {REMEDY}") from error
    try:
        found = tensors.load((folder / WEIGHTS).read_bytes())
    except (SafetensorError, FileNotFoundError) as error:
        raise DamagedFile(f"{folder / WEIGHTS} is damaged ({error}): {REMEDY}") from error
    wanted = flat(Network(architecture).abstract_params())
    shapes = {name: value.shape for name, value in found.items()}
    for leaf in sorted(wanted.keys() | shapes.keys()):
        here, asked = shapes.get(leaf, "absent"), wanted[leaf].shape if leaf in wanted else "absent"
        if here != asked:
            raise DamagedFile(f"{folder / WEIGHTS}: {leaf} is {here}, and the architecture needs {asked}: {REMEDY}")
    trained = Trained(name, architecture, nested(found), origin)
    if trained.hash() != digest:
        raise DamagedFile(f"{folder / WEIGHTS} is damaged (its hash is not the one in {ABOUT}): {REMEDY}")
    return trained


def check_name(name: str) -> None:
    """Raises ConfigError where a name cannot stand in a file's name, or is one of another kind."""
    require(bool(NAME.fullmatch(name)), f"an autoencoder's name is a word such as kl-f8c8, not {name!r}")
    require(
        name != "pixels" and autoencoder.without_weights(name) is None,
        f"{name!r} is taken: choose another name for the autoencoder",
    )


def flat(params: Params) -> dict[str, Any]:
    """Leaves by name, `encoder/conv_in/kernel`, in alphabetical order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {name: _on_host(named[name]) for name in sorted(named)}


def _on_host(leaf: Any) -> Any:
    """In C's order, whatever view it is: safetensors writes the memory as it lies."""
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.ascontiguousarray(leaf)
