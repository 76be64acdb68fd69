"""One family's batch, noise, losses and gradients, as benchmarks/same.py compares them between two revisions.

    PYTHONPATH=CHECKOUT python benchmarks/same_probe.py unet --meshes data,context --code CHECKOUT --output FOLDER

It runs with the package of any revision. Of that package it uses what `PLACES` names and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

PLACES: dict[str, tuple[str, ...]] = {  # where each function is, newest place first: after a move, add the new one
    "parse_run": ("transfusion_jax.config.parse_run",),
    "load": (
        "transfusion_jax.data.datasets.load_data",
        "transfusion_jax.data.datasets.load",
        "transfusion_jax.data.load.load",
    ),
    "make_rows": ("transfusion_jax.data.document_rows.make_rows", "transfusion_jax.data.stream.make_rows"),
    "stack": ("transfusion_jax.data.batch.stack",),
    "load_images": ("transfusion_jax.data.image_stream.load_images", "transfusion_jax.data.images.load_images"),
    "ImageRows": ("transfusion_jax.data.image_stream.ImageRows", "transfusion_jax.data.images.ImageRows"),
    "make_schedule": ("transfusion_jax.diffusion.schedule.make_schedule",),
    "image_keys": ("transfusion_jax.diffusion.objective.image_keys",),
    "corrupt": ("transfusion_jax.diffusion.objective.corrupt",),
    "unpatchify": ("transfusion_jax.model.media.unpatchify",),
    "make_task": (
        "transfusion_jax.tasks.base.make_task",
        "transfusion_jax.tasks.registry.make_task",
        "transfusion_jax.training.tasks.make_task",
    ),
    "AutoencoderTask": (
        "transfusion_jax.tasks.autoencoder.AutoencoderTask",
        "transfusion_jax.training.autoencoder.AutoencoderTask",
    ),
    "make_mesh": ("transfusion_jax.parallel.mesh.make_mesh",),
    "state_shardings": ("transfusion_jax.parallel.sharding.state_shardings",),
    "batch_sharding": ("transfusion_jax.parallel.sharding.batch_sharding",),
}
DEVICES = 8
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "fsdp × tensor": {"fsdp": 4, "tensor": 2},
    "data × context": {"data": 2, "context": 4},
}
ROWS = 16
SIZES = dict(width=16, layers=2, heads=2, mlp_width=32, vocabulary=256, latent_shape=(4, 4, 2), patch_size=2)
CODES = dict(images="codes", codebook=11, patch_size=1, image_attention="causal")
CHAMELEON = dict(query_key_norm=True, norm="post")
ARCHITECTURE = dict(image_channels=3, channels=8, multipliers=(1,), blocks=1, groups=2, latent_channels=2)
LOSSES = dict(lpips=0.0, identity=0.0)  # those need weights of other networks


def model(changes: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The config of a transformer on synthetic documents, with fields of `model` changed, and others."""
    data = dict(sources="synthetic", context_length=64, max_images=3, image_first=0.5)
    common = dict(name="same", seed=5, steps=8, batch_rows=ROWS, model=SIZES | dict(changes), data=data)
    return common | others


def autoencoder(**architecture: Any) -> dict[str, Any]:
    """The config of an autoencoder on the images that benchmarks/same.py has prepared."""
    values = dict(name="same", seed=5, steps=8, batch_rows=ROWS, image_size=32, losses=LOSSES)
    data = dict(sources=dict(shapes="data/shapes"))
    return values | dict(architecture=ARCHITECTURE | architecture, data=data)


FAMILIES: dict[str, dict[str, Any]] = {
    "linear": model({}, diffusion=dict(image_first_limit=500)),
    "unet": model(dict(patch_coder="unet", unet_channels=(8, 16), unet_blocks=1)),
    "flow": model({}, diffusion=dict(objective="flow")),
    "untied": model(dict(modality_weights="untied")),
    "bfloat16": model(dict(compute_dtype="bfloat16", remat="dots"), accumulation=2),
    "codes": model(CODES),
    "chameleon": model(CODES | CHAMELEON, z_loss=1e-3),
    "text": model(dict(images="none") | CHAMELEON, z_loss=1e-3),
    "llama": model(dict(images="none")),
    "kl": autoencoder(kind="kl"),
    "vq": autoencoder(kind="vq", codebook=8),
}


def main() -> None:
    """Writes what it found, an npz file for each mesh, and one for what no mesh changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--meshes", required=True, help="names of `MESHES`, split by commas")
    parser.add_argument("--code", type=Path, required=True, help="the checkout that PYTHONPATH names")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    # An editable install would lend modules of its own tree to a revision that lacks them.
    sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
    package = Path(str(importlib.import_module("transfusion_jax").__file__)).resolve().parents[1]
    if package != arguments.code.resolve():
        raise SystemExit(f"the package of {package} was imported, not that of {arguments.code}")
    values = FAMILIES[arguments.family]
    task = task_of(values)
    rows = rows_of(task.config)
    batch = find("stack")([rows[number] for number in range(ROWS)])
    key = jax.random.key(3)
    params = jax.tree.map(np.asarray, jax.jit(task.init)(key))
    noised = noise(task.config, batch, key)
    write(arguments.output / "inputs.npz", batch=as_images(task.config, batch), noise=noised, params=params)
    for mesh in arguments.meshes.split(","):
        gradients, metrics = step(values | {"mesh": {"data": 1} | MESHES[mesh]}, params, batch, key)
        write(arguments.output / f"{mesh}.npz", gradients=gradients, metrics=metrics)


def find(name: str) -> Any:
    """A function or class of `PLACES`, from where this revision has it.

    Raises:
        SystemExit: it is in none of its places.
    """
    for place in PLACES[name]:
        module = place.rpartition(".")[0]
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # it is there, and lacks something else
            continue
        if hasattr(found, place.rpartition(".")[2]):
            return getattr(found, place.rpartition(".")[2])
    raise SystemExit(f"{name} is not at {' or '.join(PLACES[name])}: add its new place to PLACES of {__file__}")


def task_of(values: Mapping[str, Any]) -> Any:
    """The task of a config."""
    return find("AutoencoderTask" if "architecture" in values else "make_task")(find("parse_run")(values))


def rows_of(config: Any) -> Any:
    """The stream of rows of a config."""
    if hasattr(config, "architecture"):
        return find("ImageRows")(find("load_images")(config).train, config.seed)
    data = find("load")(config)
    return find("make_rows")(data.train, config, data.codec.special)


def as_images(config: Any, batch: Any) -> Any:
    """A batch of images of one size in the form of revisions in which every image had an array of its own."""
    if not hasattr(batch, "media"):
        return batch
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name not in ("media", "patch")}
    shape, patches = (len(batch.row), config.data.max_images), config.model.patches
    is_patch = batch.patch >= 0
    images = {
        "image_slot": np.where(is_patch, batch.patch // patches, -1).astype(np.int32),
        "patch_index": np.where(is_patch, batch.patch % patches, 0).astype(np.int32),
        "latents": np.zeros((*shape, 0, 0, 0), np.float32),
        "image_weight": np.zeros(shape, np.float32),
        "timestep_limit": np.zeros(shape, np.int32),
        "image_first": np.zeros(shape, np.bool_),
        "image_source": np.full(shape, -1, np.int32),
    }
    for media in batch.media.values():
        images |= {"image_weight": media.weight, "timestep_limit": media.timestep_limit}
        images |= {"image_first": media.comes_first, "image_source": media.source}
        if media.patches.shape[-1]:
            images["latents"] = latents(config, media.patches)
    return fields | images


def latents(config: Any, patches: Any) -> Any:
    """Patches of images of one size, as images."""
    model = config.model
    each = patches.reshape(len(patches), -1, model.patches, model.patch_channels)
    return find("unpatchify")(each, model.patch_size, model.patch_grid)


def noise(config: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
    """The timesteps of a batch's images, the noised images and their targets; nothing without latents."""
    if not hasattr(config, "diffusion") or config.model.images != "latents":
        return {}
    keys = find("image_keys")(key, batch.row, config.data.max_images)
    diffusion, schedule = config.diffusion, find("make_schedule")(config.diffusion)
    if hasattr(batch, "media"):
        media = batch.media["images"]
        noised, target, timesteps = find("corrupt")(keys, media, config.model, diffusion, schedule)
        noised = latents(config, noised.patches)
    else:
        noised, target, timesteps = find("corrupt")(
            keys, batch.latents, batch.timestep_limit, schedule, config.diffusion.objective
        )
    return {"noised": noised, "target": target, "timesteps": timesteps}


def step(values: Mapping[str, Any], params: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """Gradients and metrics of a batch on the mesh of a config."""
    task = task_of(values)
    mesh = find("make_mesh")(task.config.mesh)
    axes = (task.axes(),) if hasattr(task, "axes") else ()  # older revisions have a table in place of it
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, find("state_shardings")(params, mesh, *axes))
        rows = jax.device_put(batch, find("batch_sharding")(mesh))
        result: tuple[Any, Any] = jax.device_get(jax.jit(lambda p, b: task.gradients(p, b, key, 0))(placed, rows))
    return result


def write(path: Path, **trees: Any) -> None:
    """The leaves of some trees in one file, by names such as `gradients/trunk/layers/query`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    named: dict[str, Any] = {jax.tree_util.keystr(at, simple=True, separator="/"): leaf for at, leaf in leaves}
    np.savez(path, **named)


if __name__ == "__main__":
    main()
