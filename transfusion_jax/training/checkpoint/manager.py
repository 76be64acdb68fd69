"""Checkpoints: Orbax behind a few functions, so that its API is named here alone.

Each step is a folder of its own, written whole or not at all, with a manifest: what was trained, the next row, and
a checksum of every leaf. What is loaded is held against the manifest, because Orbax and TensorStore load an array
whose bits have flipped without complaint.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from transfusion_jax.errors import CheckpointError, StorageError, some
from transfusion_jax.parallel.processes import each, first, on_first
from transfusion_jax.parallel.tree import leaf_names, leaf_shapes, nested, shape_text
from transfusion_jax.storage.atomic import (
    DIGEST,
    DamagedFile,
    LostFolder,
    check_own,
    parse_json,
    write_json,
    write_whole,
)
from transfusion_jax.storage.jsonl import free_path
from transfusion_jax.storage.paths import Place, for_orbax, sizes
from transfusion_jax.training.checkpoint import chunks, commit
from transfusion_jax.training.checkpoint.checksums import checksums, part_checksum
from transfusion_jax.training.checkpoint.errors import (
    DamagedCheckpoint,
    DeletedCheckpoint,
    load_errors,
    save_errors,
)
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


class Checkpoints:
    """The checkpoints of one run. As a context, it waits at its end for a save that is under way.

    What reads one raises DeletedCheckpoint where its run, which may train in another process, deletes it meanwhile.

    Args:
        directory: where they lie, one folder per step.
        keep: how many of the newest stay, beside the best one.
        keep_every: checkpoints at multiples of this step stay for good; 0: none.
        about: what every manifest says of the run.
        folder: the one checkpoint to read, where it lies under another name.
    """

    def __init__(
        self,
        directory: Place,
        keep: int = 3,
        keep_every: int = 0,
        about: Manifest | None = None,
        folder: Place | None = None,
    ):
        self.directory = directory.absolute()
        self._folder = folder
        self._keep, self._keep_every, self._about = keep, keep_every, about or {}
        self._saving: tuple[int, Future[None]] | None = None
        self._committing = ThreadPoolExecutor(1)
        self._scores: dict[int, float | None] = {}  # of the steps whose manifests have been read

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return commit.numbered(self.directory)

    def path(self, step: int) -> Place:
        """The folder of a step."""
        return self._folder or self.directory / str(step)

    def clean(self) -> None:
        """Removes what a killed process left of a save or a deletion; for the run's own processes alone."""
        on_first(lambda: commit.clean(self.directory))

    def save(
        self,
        state: State,
        next_row: int,
        metrics: dict[str, float] | None = None,
        concluded: bool = True,
        totals: dict[str, float] | None = None,
    ) -> None:
        """Begins to save in the background; a save still under way is awaited first.

        Args:
            state: copied off the devices before this returns.
            next_row: the first row that has not been trained on.
            metrics: evaluation results of this very step, if there are any; the best has the least "loss".
            concluded: whether what was due at this step, evaluations and drawings, has been done.
            totals: elements, images and operations of all steps up to this one, where they are known.

        Raises:
            StorageError: this save or the one before could not be written.
        """
        self.wait()
        each(lambda: check_own(self.directory))
        step = int(state.step)
        if on_first(lambda: step in self.steps):
            return
        token = on_first(lambda: uuid.uuid4().hex[:8])
        place = {"next_row": next_row, "metrics": metrics, "concluded": concluded, "totals": totals}
        tree = _as_dict(state)
        custom = self._custom(step, tree, place, checksums(tree))
        with save_errors(step, self.steps):
            self.directory.mkdir(parents=True, exist_ok=True)
            with chunks.chunked():
                at = commit.uncommitted(self.path(step), token)
                response = ocp.save_async(for_orbax(at), tree, custom_metadata=custom)
                self._saving = step, self._committing.submit(self._commit, step, at, response)

    def save_weights(self, leaves: Mapping[str, chunks.Leaf]) -> None:
        """Saves parameters alone, as step 0 of a run that others begin with; no leaf is in memory whole.

        Orbax saves zeros, which take no memory, and TensorStore writes the pieces in their place. Pieces are made
        twice: the manifest, which Orbax writes as well, holds checksums of them.

        Args:
            leaves: the parameters by name.

        Raises:
            StorageError: they could not be written.
        """
        leaves = {f"params/{name}": leaf for name, leaf in leaves.items()}
        tree = nested({name: leaf.zeros() for name, leaf in leaves.items()})
        place: dict[str, Any] = {"next_row": 0, "metrics": None, "concluded": True, "totals": {}}
        custom = self._custom(0, tree, place, {name: leaf.checksum() for name, leaf in leaves.items()})
        unfinished = self.directory / f"0{commit.UNFINISHED}"
        with save_errors(0, self.steps):
            self.directory.mkdir(parents=True, exist_ok=True)
            self.clean()
            context = chunks.chunked()
            context.memory_options.deepcopy_host_arrays = False
            with context:
                ocp.save(for_orbax(unfinished), tree, custom_metadata=custom)
            for name, leaf in leaves.items():
                array = chunks.opened(unfinished, name)
                for box, value in leaf.pieces():
                    array[box].write(value).result()
            write_whole(unfinished / SIZES, json.dumps(_sizes(unfinished)))
            commit.move(unfinished, self.path(0))

    def _custom(self, step: int, tree: Any, place: dict[str, Any], sums: dict[str, int]) -> dict[str, Any]:
        """What Orbax keeps beside a tree for us."""
        manifest = self._about | {"format": FORMAT, "step": step, **place}
        manifest |= {"leaves": leaf_shapes(tree), "checksums": sums}
        return {"manifest": manifest, "digest": _digest(manifest)}

    def wait(self) -> None:
        """Returns once the last save lies on disk, complete, and those that need not stay are gone.

        Raises:
            StorageError: it could not be written.
        """
        if self._saving is None:
            return
        (step, committed), self._saving = self._saving, None
        with save_errors(step, self.steps):
            committed.result()
        if first():
            write_whole(self.path(step) / SIZES, json.dumps(_sizes(self.path(step))))
            self._prune()

    def poll(self) -> None:
        """`wait` where the last save has ended, well or not; nothing where it is under way."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def _commit(self, step: int, at: Place, response: Any) -> None:
        """Waits for Orbax, and puts the folder in its place if that is still the run's own."""
        try:
            response.result()
        finally:  # that the folder is another's is what is to be said of a save that failed for it
            try:
                check_own(self.directory)
            except LostFolder:
                if first() and at != self.path(step):
                    commit.sweep(at)  # in what stands there now
                raise
        if first() and at != self.path(step):
            commit.move(at, self.path(step))

    def restore(self, step: int, abstract: State) -> tuple[State, Manifest]:
        """The whole state, on the shardings of `abstract`, and the manifest.

        Raises:
            DamagedCheckpoint: it is not what was saved.
            CheckpointError: it holds another state than `abstract`.
        """
        manifest = each(lambda: self.check(step, abstract))[0]
        here = _with_window(abstract, manifest["leaves"])
        loaded = State(**{"ema": None} | self._load(step, manifest, _as_dict(here)))
        if here is not abstract:  # another window of recent steps: it begins anew, the counts stay
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
        tree = _as_dict(abstract)
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

    def conclude(self, step: int, metrics: dict[str, float] | None) -> None:
        """Notes that what was due at a step when it was saved has been done since; see `save`."""
        self.wait()
        if first():
            write_json(self.path(step) / CONCLUDED, {"metrics": metrics})
        self._scores.pop(step, None)

    def manifest(self, step: int) -> Manifest:
        """What was written beside the state of a step.

        Raises:
            DamagedCheckpoint: it cannot be read, or is not what was written.
        """
        with self._reading(step):
            self._check_sizes(step)
            custom = ocp.metadata(for_orbax(self.path(step))).custom_metadata or {}
        if "manifest" not in custom or custom.get("digest") != _digest(custom["manifest"]):
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
        if not step.isdigit() or int(step) not in steps:
            raise CheckpointError(f"no checkpoint {step}: there are {', '.join(map(str, steps))}, latest and best")
        return int(step)

    def read(self, step: str, function: Callable[[int], T]) -> T:
        """What a function reads of the checkpoint that `N`, `latest` or `best` names, the same on every process.

        If the run deletes it meanwhile, the word is looked up again.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            DeletedCheckpoint: it was deleted, time and again where a word named it.
        """
        for _ in range(ATTEMPTS if not step.isdigit() else 1):
            try:
                return function(on_first(lambda: self.find(step)))
            except DeletedCheckpoint as error:
                deleted = error
        raise deleted

    def set_aside(self, step: int, folder: Place) -> Place:
        """Moves a step's folder into another one, under a name that is free there; returns where it is."""

        def move() -> Place:
            folder.mkdir(parents=True, exist_ok=True)
            return commit.move(self.path(step), free_path(folder, str(step)))

        return on_first(move)

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
        written, found = self.listed(step), _sizes(folder)
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
        except (ValueError, TypeError, AttributeError, IsADirectoryError) as error:
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

    def _prune(self) -> None:
        steps = self.steps
        stay = {*steps[-self._keep :], self._best()}
        if self._keep_every:
            stay |= {step for step in steps if step % self._keep_every == 0}
        for step in set(steps) - stay:
            commit.discard(self.path(step))

    def _best(self) -> int | None:
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
            score = metrics.get(BEST)
            self._scores[step] = score if score is not None and math.isfinite(score) else None
        return self._scores[step]

    def _required_best(self) -> int:
        best = self._best()
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


def _sizes(folder: Place) -> dict[str, int]:
    return {name: size for name, size in sizes(folder).items() if name not in (SIZES, CONCLUDED)}


def _concluded(path: Place) -> Any:
    """The metrics of a step that was evaluated after it was saved; a former version wrote nothing beside them."""
    data = path.read_bytes()
    values = json.loads(data)
    return parse_json(data, path, "")["metrics"] if isinstance(values, dict) and DIGEST in values else values


def _with_window(abstract: State, leaves: dict[str, list]) -> State:
    """The same state with the window of recent steps that a checkpoint has."""
    recent = abstract.guard.recent
    shape = tuple(leaves[WINDOW][1])
    if shape == recent.shape:
        return abstract
    like: Any = jax.ShapeDtypeStruct(shape, recent.dtype, sharding=recent.sharding)
    return replace(abstract, guard=abstract.guard._replace(recent=like))


def _as_dict(state: State) -> dict[str, Any]:
    parts = {name: getattr(state, name) for name in ("step", "params", "optimizer", "ema", "guard")}
    return {name: part for name, part in parts.items() if part is not None}


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
