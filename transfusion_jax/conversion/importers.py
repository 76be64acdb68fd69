"""Weights that `train --init-from` reads, beside those of runs: a function for each kind of folder or file.

A function gets a path, the config of the run that begins, or None where the weights are to give it, and what prints
a line. It returns None where the path is not of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transfusion_jax.config import Config
from transfusion_jax.conversion import exported, foreign, shards
from transfusion_jax.conversion.gguf_files import SUFFIX
from transfusion_jax.conversion.runs import Imported

Log = Callable[[str], None]


def exported_folder(path: Path, config: Config | None, log: Log) -> Imported | None:
    """A folder that `transfusion convert to-safetensors` wrote."""
    del config, log
    return exported.open_exported(path) if (path / exported.CODEC).is_file() else None


def language_model(path: Path, config: Config | None, log: Log) -> Imported | None:
    """A language model's folder as transformers saves it, or its GGUF file."""
    about = path / "config.json"
    tensors = any((path / name).is_file() for name in (shards.NAME, shards.INDEX))
    named = about.is_file() and (tensors or "model_type" in shards.read_fields(about))
    if path.suffix != SUFFIX and not named:
        return None
    model = foreign.open_model(path, log)
    return model.imported(config or model.config(None, []))
