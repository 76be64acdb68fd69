"""Where work is kept that need not be done twice."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from transfusion_jax.errors import UserError

KEPT = ("gpu", "tpu")  # backends whose compiled programs are kept; why not CPU's: docs/decisions.md


def cache_folder() -> Path:
    """`$TRANSFUSION_CACHE`, or `~/.cache/transfusion_jax`.

    Raises:
        UserError: it is no local folder.
    """
    folder = os.environ.get("TRANSFUSION_CACHE") or "~/.cache/transfusion_jax"
    if "://" in folder:
        raise UserError(f"TRANSFUSION_CACHE must be a local folder, not {folder}: its files are mapped into memory")
    return Path(folder).expanduser()


def keep_programs() -> None:
    """Has JAX keep compiled programs in `xla` of the cache, so that a restart compiles none of them again.

    A folder that the user named to JAX stays, and so does an empty name, which turns JAX's cache off.
    """
    if jax.default_backend() in KEPT and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
