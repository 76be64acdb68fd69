"""Checkpoints as a run writes them: Orbax's API for saving is named here alone.

Each step is a folder of its own, written whole or not at all, with a manifest: what was trained, the next row, and
a checksum of every leaf.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import orbax.checkpoint.experimental.v1 as ocp

from transfusion_jax.parallel.processes import each, first, on_first
from transfusion_jax.parallel.tree import leaf_shapes, nested
from transfusion_jax.storage.atomic import LostFolder, check_own, write_json, write_whole
from transfusion_jax.storage.jsonl import free_path
from transfusion_jax.storage.paths import Place, for_orbax, place
from transfusion_jax.training.checkpoint import chunks, commit
from transfusion_jax.training.checkpoint.checksums import checksums
from transfusion_jax.training.checkpoint.errors import save_errors
from transfusion_jax.training.checkpoint.reader import (
    CONCLUDED,
    FORMAT,
    SIZES,
    CheckpointReader,
    Manifest,
    as_dict,
    digest_of,
    own_sizes,
    score_in,
)
from transfusion_jax.training.step.state import State


class Checkpoints(CheckpointReader):
    """The checkpoints of one run, to be written as well; a context that waits at its end for a save under way.

    Args:
        directory: where they lie, one folder per step.
        keep: how many of the newest stay, beside the best one.
        keep_every: checkpoints at multiples of this step stay for good; 0: none.
        about: what every manifest says of the run.
    """

    def __init__(self, directory: Place, keep: int = 3, keep_every: int = 0, about: Manifest | None = None):
        super().__init__(directory)
        self._keep, self._keep_every, self._about = keep, keep_every, about or {}
        self._saving: tuple[int, Future[None]] | None = None
        self._committing = ThreadPoolExecutor(1)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()

    def clean(self) -> None:
        """Removes what a killed process left of a save or a deletion; for the run's own processes alone."""
        on_first(lambda: commit.remove_unfinished(self.directory))

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
        tree = as_dict(state)
        custom = self._custom(step, tree, place, checksums(tree))
        self._scores[step] = score_in(metrics or {})
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
            write_whole(unfinished / SIZES, json.dumps(own_sizes(unfinished)))
            commit.move(unfinished, self.path(0))

    def _custom(self, step: int, tree: Any, place: dict[str, Any], sums: dict[str, int]) -> dict[str, Any]:
        """What Orbax keeps beside a tree for us."""
        manifest = self._about | {"format": FORMAT, "step": step, **place}
        manifest |= {"leaves": leaf_shapes(tree), "checksums": sums}
        return {"manifest": manifest, "digest": digest_of(manifest)}

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
            write_whole(self.path(step) / SIZES, json.dumps(own_sizes(self.path(step))))
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
                    commit.sweep_uncommitted(at)  # in what stands there now
                raise
        if first() and at != self.path(step):
            commit.move(at, self.path(step))

    def conclude(self, step: int, metrics: dict[str, float] | None) -> None:
        """Notes that what was due at a step when it was saved has been done since; see `save`."""
        self.wait()
        if first():
            write_json(self.path(step) / CONCLUDED, {"metrics": metrics})
        self._scores.pop(step, None)

    def set_aside(self, step: int, folder: Place) -> Place:
        """Moves a step's folder into another one, under a name that is free there; returns where it is."""

        def move() -> str:
            folder.mkdir(parents=True, exist_ok=True)
            return str(commit.move(self.path(step), free_path(folder, str(step))))

        return place(on_first(move))

    def _prune(self) -> None:
        steps = self.steps
        stay = {*steps[-self._keep :], self.best()}
        if self._keep_every:
            stay |= {step for step in steps if step % self._keep_every == 0}
        for step in set(steps) - stay:
            commit.delete_folder(self.path(step))
