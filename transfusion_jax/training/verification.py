"""Verification of a run: reads all of its files, and finds the damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image

from transfusion_jax.errors import UserError
from transfusion_jax.storage.atomic import DamagedFile, read_json
from transfusion_jax.storage.jsonl import check_lines
from transfusion_jax.storage.paths import Place, on_disk
from transfusion_jax.training.checkpoint.reader import CheckpointReader
from transfusion_jax.training.facts import codec_of
from transfusion_jax.training.monitoring import goodput
from transfusion_jax.training.run_dir import Workdir


def damaged_files(workdir: Workdir) -> list[str]:
    """The damaged files, each with its remedy. TensorBoard's files and traces are not read."""
    return list(_damaged(workdir))


def _damaged(workdir: Workdir) -> Iterator[str]:
    reads: list[Callable[[], object]] = [workdir.run, partial(codec_of, workdir)]
    reads += [partial(check_lines, path) for path in (workdir.metrics, workdir.bad_steps)]
    reads += [partial(goodput.read_attempts, workdir.attempts)]
    if workdir.evaluation.exists():
        reads += [partial(read_json, workdir.evaluation, "move it away and evaluate again")]
    if workdir.samples.is_dir():
        reads += [partial(_look_at, path) for path in workdir.samples.iterdir() if path.suffix == ".png"]
    checkpoints = CheckpointReader(workdir.checkpoints)
    reads += [partial(_read_checkpoint, checkpoints, step) for step in checkpoints.steps]
    for read in reads:
        try:
            read()
        except (UserError, IsADirectoryError) as error:
            yield str(error)


def _look_at(path: Place) -> None:
    """Raises DamagedFile where a picture's own checksums do not match."""
    try:
        with on_disk(path) as local, Image.open(local) as image:
            image.verify()
    except (OSError, SyntaxError) as error:  # Pillow raises the second for a wrong checksum
        raise DamagedFile(f"{path} is damaged ({error}): delete it") from error


def _read_checkpoint(checkpoints: CheckpointReader, step: int) -> None:
    for name in checkpoints.manifest(step)["leaves"]:
        for _ in checkpoints.read_pieces(step, name):
            pass
