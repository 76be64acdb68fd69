"""What is read of checkpoints: Orbax's API for loading is named here alone.

What is loaded is held against the checkpoint's manifest, because Orbax and TensorStore load an array whose bits
have flipped without complaint.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from transfusion_jax.errors import CheckpointError, StorageError, some, whole_number
from transfusion_jax.parallel.processes import each, on_first
from transfusion_jax.parallel.tree import leaf_names, leaf_shapes, shape_text
from transfusion_jax.storage.atomic import DIGEST, DamagedFile, parse_json
from transfusion_jax.storage.paths import Place, file_sizes, for_orbax
from transfusion_jax.training.checkpoint import chunks, commit
from transfusion_jax.training.checkpoint.checksums import checksums, part_checksum
from transfusion_jax.training.checkpoint.errors import DamagedCheckpoint, DeletedCheckpoint, load_errors
from transfusion_jax.training.step.state import State

BEST = "loss"  # the evaluation metric, lower is better, that `best` means
FORMAT = 1
CONCLUDED = "concluded.json"  # ours: the metrics of a step that was evaluated after it was saved
SIZES = "sizes.json"  # ours: the files of a step and their sizes
METADATA = "_CHECKPOINT_METADATA"  # the file of Orbax that holds the manifest
WINDOW = "guard/recent"  # the one leaf whose shape may change
PARTS = {"ema": "ema", "raw": "params"}  # the part of the state that each kind of weights is

ATTEMPTS = 5  # to read a checkpoint that a word names, which the run deletes meanwhile

Manifest = dict[str, Any]
T = TypeVar("T")


class CheckpointReader:
    """The checkpoints of one run, to be read.

    Its functions raise DeletedCheckpoint where the run, which may train in another process, deletes one meanwhile.

    Args:
        directory: where they lie, one folder per step.
        folder: the one checkpoint to read, where it lies under another name.
    """

    def __init__(self, directory: Place, folder: Place | None = None):
        self.directory = directory.absolute()
        self._folder = folder
        self._scores: dict[int, float | None] = {}  # of the steps whose manifests have been read

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return commit.numbered(self.directory)

    def path(self, step: int) -> Place:
        """The folder of a step."""
        return self._folder or self.directory / str(step)

    def manifest(self, step: int) -> Manifest:
        """What was written beside the state of a step.

        Raises:
            DamagedCheckpoint: it cannot be read, or is not what was written.
        """
        with self._reading(step):
            self._check_sizes(step)
            custom = ocp.metadata(for_orbax(self.path(step))).custom_metadata or {}
        if "manifest" not in custom or custom.get("digest") != digest_of(custom["manifest"]):
            raise DamagedCheckpoint(step, "its manifest cannot be read")
        manifest: Manifest = custom["manifest"]
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {step} has format {manifest['format']}; this version reads {FORMAT}")
        if (self.path(step) / CONCLUDED).exists():
            with suppress(DamagedFile), self._reading(step):  # damaged, the step is concluded again
                metrics = _concluded(self.path(step) / CONCLUDED)
                return manifest | {"concluded": True, "metrics": metrics}
        return manifest

    def find(self, step: str) -> int:
        """The step that `N`, `latest` or `best` names; of a folder that was named, its own.

        Raises:
            CheckpointError: there is no such checkpoint.
        """
        if self._folder:
            return int(self.manifest(0)["step"])
        steps = self.steps
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self.directory} yet: train first")
        named: dict[str, Callable[[], int]] = {"latest": lambda: steps[-1], "best": self._required_best}
        if step in named:
            return named[step]()
        number = whole_number(step)
        if number not in steps:
            raise CheckpointError(f"no checkpoint {step}: there are {', '.join(map(str, steps))}, latest and best")
        return number

    def read(self, step: str, function: Callable[[int], T]) -> T:
        """What a function reads of the checkpoint that `N`, `latest` or `best` names, the same on every process.

        If the run deletes it meanwhile, the word is looked up again.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            DeletedCheckpoint: it was deleted, time and again where a word named it.
        """
        for _ in range(ATTEMPTS if whole_number(step) is None else 1):
            try:
                return function(on_first(lambda: self.find(step)))
            except DeletedCheckpoint as error:
                deleted = error
        raise deleted

    def restore(self, step: int, abstract: State) -> tuple[State, Manifest]:
        """The whole state, on the shardings of `abstract`, and the manifest.

        Raises:
            DamagedCheckpoint: it is not what was saved.
            CheckpointError: it holds another state than `abstract`.
        """
        manifest = each(lambda: self.check(step, abstract))[0]
        here = _with_window(abstract, manifest["leaves"])
        loaded = State(**{"ema": None} | self._load(step, manifest, as_dict(here)))
        if here is not abstract:  # the window of recent steps has another size: it starts empty
            recent = jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape), x.sharding), abstract.guard.recent)
            seen = jax.tree.map(jnp.zeros_like, loaded.guard.seen)
            loaded = replace(loaded, guard=loaded.guard._replace(recent=recent, seen=seen))
        return loaded, manifest

    def check(self, step: int, abstract: State) -> Manifest:
        """The manifest of a step whose state can be loaded as `abstract`.

        Raises:
            DamagedCheckpoint: the manifest is not what was saved.
            CheckpointError: the step holds another state than `abstract`, or cannot be split as that is.
        """
        manifest = self.manifest(step)
        tree = as_dict(abstract)
        wanted, found = leaf_shapes(tree), manifest["leaves"]
        differences = [
            f"{name}: {shape_text(found.get(name))} -> {shape_text(wanted.get(name))}"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name) and name != WINDOW
        ]
        if differences:
            raise CheckpointError(
                f"checkpoint {step} holds another state than this config trains:\n  "
                + "\n  ".join(differences)
                + "\nto take its weights alone, start a new run with --init-from"
            )
        for name, leaf in zip(wanted, jax.tree.leaves(tree), strict=True):
            try:
                leaf.sharding.shard_shape(leaf.shape)
            except ValueError as error:
                raise CheckpointError(f"{name} cannot be split over this mesh: {error}") from error
        return manifest

    def weights(self, step: int, which: str, abstract: Any) -> Any:
        """One set of weights alone: `which` is "raw" or "ema".

        Raises:
            DamagedCheckpoint: they are not what was saved.
        """
        part = PARTS[which]
        return self._load(step, each(lambda: self.manifest(step))[0], {part: abstract})[part]

    def hash(self, step: int, which: str) -> str:
        """A hash of one set of weights, from the checksums of its leaves: `which` is "raw" or "ema".

        Raises:
            DamagedCheckpoint: the manifest is not what was saved.
        """
        manifest, part = self.manifest(step), PARTS[which] + "/"
        leaves = {name.removeprefix(part): s for name, s in manifest["checksums"].items() if name.startswith(part)}
        return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:16]

    def read_pieces(self, step: int, name: str) -> chunks.Pieces:
        """One leaf of the state, such as `params/embedding`, piece by piece, and on no device.

        Raises:
            DamagedCheckpoint: it is not what was saved, which its last piece may be needed to tell.
        """
        manifest = self.manifest(step)
        shape = tuple(manifest["leaves"][name][1])
        with self._reading(step):
            array = chunks.opened(self.path(step), name)
        total = 0
        for box in chunks.boxes(shape):
            with self._reading(step):
                value: np.ndarray = array[box].read().result()
            total += part_checksum(value, box, shape)
            yield box, value
        with self._reading(step):
            if total % 2**32 != manifest["checksums"][name]:
                raise DamagedCheckpoint(step, f"wrong checksum of {name}")

    def _load(self, step: int, manifest: Manifest, abstract: Any) -> Any:
        loaded = None

        def load() -> None:
            nonlocal loaded
            context = ocp.Context()
            context.pytree_options.loading.partial_load = True
            with self._reading(step), context:
                loaded = ocp.load(for_orbax(self.path(step)), abstract)

        each(load)  # where one process cannot read its part, none goes on to compute
        leaves = dict(zip(leaf_names(loaded), jax.tree.leaves(loaded), strict=True))
        missing = [name for name, leaf in leaves.items() if not isinstance(leaf, jax.Array | np.ndarray)]
        found = {} if missing else checksums(loaded)
        wrong = [name for name, value in found.items() if manifest["checksums"].get(name) != value]
        with self._reading(step):
            if missing:
                raise DamagedCheckpoint(step, f"{some(missing)} missing")
            if wrong:
                raise DamagedCheckpoint(step, f"wrong checksum of {some(wrong)}")
        return loaded

    def _check_sizes(self, step: int) -> None:
        """Finds missing and truncated files before TensorStore does, whose threads print much about them."""
        folder = self.path(step)
        if not (folder / SIZES).exists():
            return  # killed between the save and its list of files: loading tells
        written, found = self.listed(step), own_sizes(folder)
        wrong = [
            f"{name} ({found.get(name, 0)} of {size} bytes)"
            for name, size in written.items()
            if found.get(name) != size
        ]
        if wrong:
            raise DamagedCheckpoint(step, f"{some(wrong)} not as written")

    def listed(self, step: int) -> dict[str, int]:
        """The bytes of a checkpoint's files, as they were when it was saved.

        Raises:
            FileNotFoundError: that is not listed.
            DamagedCheckpoint: the list is not what was written.
        """
        try:
            written = json.loads((self.path(step) / SIZES).read_bytes())
            return {str(name): int(size) for name, size in written.items()}
        except (ValueError, TypeError, AttributeError, RecursionError, IsADirectoryError) as error:
            raise DamagedCheckpoint(step, f"{SIZES} cannot be read ({error})") from error

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """As `load_errors`; a step that is no longer there was deleted, and is not damaged."""
        try:
            with load_errors(step):
                yield
        except (DamagedCheckpoint, StorageError):
            if commit.is_there(self.path(step)):
                raise
            raise DeletedCheckpoint(step) from None

    def best(self) -> int | None:
        """The step with the least loss; None where none was evaluated."""
        scored = {step: score for step in self.steps if (score := self._score(step)) is not None}
        return min(scored, key=lambda step: scored[step]) if scored else None

    def _score(self, step: int) -> float | None:
        if step not in self._scores:
            try:
                metrics = self.manifest(step)["metrics"] or {}
            except DamagedCheckpoint:  # it stays until it is to be restored, or grows too old
                metrics = {}
            except DeletedCheckpoint:
                return None
            self._scores[step] = score_in(metrics)
        return self._scores[step]

    def _required_best(self) -> int:
        best = self.best()
        if best is None:
            raise CheckpointError("no checkpoint was evaluated, so none is best: use latest")
        return best


def is_checkpoint(path: Place) -> bool:
    """Whether this is the folder of one checkpoint."""
    return (path / METADATA).is_file()


def to_devices(abstract: Any) -> Any:
    """The same shapes, to be loaded onto this process's first device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract)


def own_sizes(folder: Place) -> dict[str, int]:
    """The bytes of the files that are written before a checkpoint's list of sizes."""
    return {name: size for name, size in file_sizes(folder).items() if name not in (SIZES, CONCLUDED)}


def _concluded(path: Place) -> Any:
    """The metrics of a step that was evaluated after it was saved; a former version wrote nothing beside them."""
    data = path.read_bytes()
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise DamagedFile(f"{path} is damaged ({error}): the step is concluded again") from error
    return parse_json(data, path, "")["metrics"] if isinstance(values, dict) and DIGEST in values else values


def _with_window(abstract: State, leaves: dict[str, list]) -> State:
    """The same state with the window of recent steps that a checkpoint has."""
    recent = abstract.guard.recent
    shape = tuple(leaves[WINDOW][1])
    if shape == recent.shape:
        return abstract
    like: Any = jax.ShapeDtypeStruct(shape, recent.dtype, sharding=recent.sharding)
    return replace(abstract, guard=abstract.guard._replace(recent=like))


def as_dict(state: State) -> dict[str, Any]:
    """The state as a checkpoint names its parts."""
    parts = {name: getattr(state, name) for name in ("step", "params", "optimizer", "ema", "guard")}
    return {name: part for name, part in parts.items() if part is not None}


def score_in(metrics: Mapping[str, float]) -> float | None:
    """The loss that `best` compares, where it was measured and is finite."""
    score = metrics.get(BEST)
    return score if score is not None and math.isfinite(score) else None


def digest_of(manifest: Manifest) -> str:
    """A hash of a manifest, by which damage to it is found."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
