"""What `transfusion convert to-safetensors` writes, as a run again."""

from __future__ import annotations

from pathlib import Path

import jax

from transfusion_jax import config as configs
from transfusion_jax.config import require
from transfusion_jax.conversion import shards
from transfusion_jax.conversion.runs import Imported
from transfusion_jax.data.datasets import read_codec
from transfusion_jax.model.transfusion import Model
from transfusion_jax.parallel.tree import leaf_names
from transfusion_jax.storage.atomic import read_json
from transfusion_jax.training.run_dir import IMPORTED_TYPES

CODEC = "codec.json"  # how a run coded texts and images
ABOUT = "imported.json"  # what is known of the language model that a run began from; written where anything is


def open_exported(path: Path) -> Imported:
    """A folder's weights, which are read when they are written.

    Raises:
        ConfigError: to-safetensors did not write it, or the weights are not those that its config asks for.
    """
    require((path / CODEC).is_file(), f"{path} was not written by to-safetensors: it has no {CODEC}")
    config = configs.parse(shards.read_fields(path / "config.json"))
    config = configs.override(config, ["optimizer.ema_decay=0.0"])  # the run holds one set of weights
    codec = read_codec(path, shards.read_fields(path / CODEC))
    source = shards.Shards.of(path)
    abstract = Model(config.model).abstract_params()
    wanted = dict(zip(leaf_names(abstract), (leaf.shape for leaf in jax.tree.leaves(abstract)), strict=True))
    found = {name: source.shape(name) for name in source.files}
    for leaf in sorted(wanted.keys() | found.keys()):
        require(
            wanted.get(leaf) == found.get(leaf),
            f"{path}: {leaf} is {found.get(leaf, 'absent')}, and its config asks for {wanted.get(leaf, 'none')}",
        )
    leaves = {leaf: source.leaf(leaf, "float32") for leaf in wanted}
    remedy = "write the folder again by to-safetensors"
    about = read_json(path / ABOUT, remedy, IMPORTED_TYPES) if (path / ABOUT).is_file() else {}
    return Imported(config, codec, leaves, f"safetensors, {path.name}", about)
