"""libtpu, the TPU's compiler, in a folder of its own: beside JAX it would have every program look for a TPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from transfusion_jax.errors import UserError
from transfusion_jax.parallel import flags
from transfusion_jax.storage.cache_dirs import cache_folder

VERSION = "0.0.42.1"  # that of requirements/tpu.txt
FOLDER = "TRANSFUSION_LIBTPU"  # names a folder that pip installed libtpu into, where there is no network


class NoCompiler(UserError):
    """libtpu cannot be had."""


def folder() -> Path:
    """Where libtpu lies, installed there by pip the first time.

    Raises:
        NoCompiler: pip could not; the message says how it can be done by hand.
    """
    if named := os.environ.get(FOLDER):
        if not (Path(named) / "libtpu").is_dir():
            raise NoCompiler(f"${FOLDER} is {named}, which holds no libtpu: pip install --target {named} libtpu")
        return Path(named)
    kept = cache_folder() / f"libtpu-{VERSION}"
    if not kept.is_dir():
        _install(kept)
    return kept


def _install(kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as fresh:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--target", f"{fresh}/libtpu", f"libtpu=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise NoCompiler(
                f"a TPU plan is compiled with libtpu {VERSION}, and pip could not install it ({last}): on a "
                f"machine with a network, pip install --no-deps --target DIR libtpu=={VERSION}, copy DIR here and "
                f"set {FOLDER}=DIR; or pass --analytic"
            )
        if not kept.is_dir():  # another process may have been faster
            os.rename(f"{fresh}/libtpu", kept)


def environment() -> dict[str, str]:
    """For a process that compiles for TPUs that it does not have, with the flags that `train` sets on those.

    Raises:
        NoCompiler: see `folder`.
    """
    path = os.pathsep.join(filter(None, (str(folder()), os.environ.get("PYTHONPATH", ""))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # no machine is to be asked what it is
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # one process at a time is for those that have a TPU
    }
    flags.apply("tpu", environment)
    return environment
