"""Where work is kept that need not be done twice."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from transfusion_jax.parallel.processes import process_count

KEPT = ("gpu", "tpu")  # backends whose compiled programs are kept; why not CPU's: docs/decisions.md


def cache_folder() -> Path:
    """`$TRANSFUSION_CACHE`, or `~/.cache/transfusion_jax`; that too where the variable names a bucket.

    Plans of rows are mapped into memory, for which they must lie on a disk.
    """
    named = os.environ.get("TRANSFUSION_CACHE", "")
    return Path(named if named and "://" not in named else "~/.cache/transfusion_jax").expanduser()


def program_cache() -> str:
    """`xla` in `$TRANSFUSION_CACHE`, which may be a bucket (`gs://`), so that new machines find programs, too."""
    named = os.environ.get("TRANSFUSION_CACHE", "")
    return f"{named.rstrip('/')}/xla" if "://" in named else str(cache_folder() / "xla")


def keep_programs() -> None:
    """Has JAX keep compiled programs, so that a restart compiles none of them again.

    A folder that the user named to JAX stays, and so does an empty name, which turns it off; many processes
    on CPU have none. Asks for the backend, so that it must come after `processes.connect`.
    """
    if (
        jax.default_backend() == "cpu" and process_count() > 1
    ):  # a loaded program has lost the order of its collectives
        jax.config.update("jax_enable_compilation_cache", False)
    if jax.default_backend() in KEPT and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", program_cache())
