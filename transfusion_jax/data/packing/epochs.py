"""The rows of the endless stream, by number: the plan that each is in.

The stream is cut into epochs, each with a plan of its own. An epoch begins to read each source where the one before
stopped, so that no two hold the same rows. It is as long as it takes to read every source at least once, but for
tiny corpora, whose epochs grow: what planning costs for each row is bounded.

Where an epoch ends is kept in a small file beside the plans, so that to start again anywhere takes no plan but the
one that is read. Plans that have been read are deleted.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import Config, require
from transfusion_jax.data.documents import Corpus
from transfusion_jax.data.packing.packing import Room
from transfusion_jax.data.packing.plan import REPLAYED, VERSION, places_at, plan_folder, plan_rows, try_mixture
from transfusion_jax.data.packing.plan_store import DamagedPlan, RowPlan, delete_plan, open_sealed, write_sealed
from transfusion_jax.data.packing.planner import BLOCK_ROWS
from transfusion_jax.data.packing.sequences import Place
from transfusion_jax.data.packing.shuffle import shuffled
from transfusion_jax.storage.paths import Place as Directory

SHORTEST = 256  # rows of an epoch, at least, but for a phase's first epoch
AHEAD = 0.5  # share of a long epoch's rows after which the next epoch is planned in the background
NOTES = "epochs"  # the folder of a run's directory that says where epochs end
AHEAD_OF_NEED = "rows planned ahead"
OPENED, KEPT = 2, 3  # newest plans that are held open, and that are kept on disk

Say = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """Where a row of the stream was planned."""

    phase: int  # of `config.data.mixtures`
    plan: RowPlan
    row: int  # of the plan


class Planner(ABC):
    """Finds the plans of a stream's rows. It is sent to other processes without them: they open their own.

    Args:
        corpus: the documents.
        config: names the mixtures, the row's sizes and the seed.
        cache: a folder of plans.
        run: the directory of the run that reads the stream, which need not exist yet; see `Epochs`.
        log: prints a line for the user.
    """

    def __init__(
        self, corpus: Corpus, config: Config, cache: Path, run: Directory | None = None, log: Say = print
    ) -> None:
        self.corpus, self.config, self.cache, self.run, self.log = corpus, config, cache, run, log
        self.starts = [phase.start for phase in config.data.mixtures]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.corpus, self.config, self.cache, self.run)

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Rows from row 0 on until every source of the first phase has been read at least once."""

    def begin(self) -> None:
        """Plans the first rows, unless they are in the cache, so that impossible plans fail at once.

        Raises:
            ConfigError: the corpus cannot be planned.
            StorageError: the plan cannot be written.
        """
        self.find(0)

    @abstractmethod
    def find(self, row: int) -> Planned:
        """Where a row of the stream stands.

        Raises:
            ConfigError: it cannot be planned.
            StorageError: a plan cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the open plans."""

    @property
    def of_rows(self) -> tuple[Room, int]:
        """What plans depend on besides the documents: arguments of the functions of `plan`."""
        return Room.of(self.config), self.config.seed

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """The pieces of a row of the stream; see `RowPlan.pieces`. A damaged plan is planned again."""
        found = self.find(row)
        try:
            return found.plan.pieces(found.row)
        except DamagedPlan:
            self.discard(found.plan)
            found = self.find(row)
            return found.plan.pieces(found.row)

    def places_at(self, plan: Callable[[], RowPlan], row: int, weights: Mapping[str, float]) -> dict[str, Place]:
        """See `plan.places_at`. A damaged plan is planned again."""
        try:
            return places_at(plan(), row, self.corpus, weights, *self.of_rows)
        except DamagedPlan:
            self.discard(plan())
            return places_at(plan(), row, self.corpus, weights, *self.of_rows)

    def discard(self, plan: RowPlan) -> None:
        """Deletes a damaged plan."""
        assert plan.folder
        self.log(f"the row plan in {plan.folder} is damaged: planning again")
        self.close()
        delete_plan(plan.folder)


@dataclass(frozen=True)
class Epoch:
    """A stretch of the stream with a plan of its own."""

    first: int  # its first row
    phase: int
    begin: Mapping[str, Place]  # where it begins to read each source
    least: int  # rows that it has at least, unless a later phase cuts it off


class Epochs(Planner):
    """Plans of the current version: one for each epoch.

    The run's directory also keeps where epochs end, so that a machine with an empty cache plans none of the epochs
    before the one that it reads.
    """

    def __init__(
        self, corpus: Corpus, config: Config, cache: Path, run: Directory | None = None, log: Say = print
    ) -> None:
        super().__init__(corpus, config, cache, run, log)
        self._epochs: list[Epoch] = []  # those needed so far
        self._end = 0  # the row after them
        self._places: Mapping[str, Place] = {}  # there
        self._open: dict[int, RowPlan] = {}  # by first row
        self._lock = threading.RLock()
        self._endings: dict[str, dict[str, Any]] = {}  # by file, those that may be missing in the run's directory
        self._found = _identity(run)  # of the run's directory, where it was there when this began
        self._ahead = 0  # the last row after which an epoch was planned ahead

    def begin(self) -> None:
        """Plans the first rows, and checks that those of later phases can be planned."""
        for phase in self.config.data.mixtures[1:]:
            try_mixture(self.corpus, phase.weights, *self.of_rows)
        super().begin()

    @property
    def epoch(self) -> int:
        """Rows from row 0 on until every source of the first phase has been read at least once."""
        return self.find(0).plan.rows

    def find(self, row: int) -> Planned:
        """Where a row of the stream stands."""
        self._reach(row)
        epoch = self._epochs[bisect(self._epochs, row, key=lambda epoch: epoch.first) - 1]
        plan, place = self._plan(epoch), row - epoch.first
        if plan.rows > BLOCK_ROWS and place > AHEAD * (self._end - epoch.first):
            self._plan_ahead()
        return Planned(epoch.phase, plan, place)

    def close(self) -> None:
        """Closes the open plans."""
        with self._lock:
            self._open = {}

    def _reach(self, row: int) -> None:
        while row >= self._end:
            with self._lock:
                if row >= self._end:  # no other thread was here meanwhile
                    self._extend()

    def _extend(self) -> None:
        first, phase = self._end, bisect(self.starts, self._end) - 1
        so_far = first - self.starts[phase]
        epoch = Epoch(first, phase, self._places, min(max(so_far, SHORTEST), BLOCK_ROWS) if so_far else 0)
        rows, places = self._ending(epoch)
        self._epochs.append(epoch)
        self._places = {**self._places, **places}
        self._end = first + rows

    def _note(self, folder: Directory) -> None:
        """Writes missing notes of where epochs end, unless another folder took the place of the run's."""
        if self._found not in (None, _identity(self.run)):
            return
        for name, ending in self._endings.items():
            stem = name.removesuffix(".json")
            if open_sealed(folder / name, stem) is None:
                write_sealed(folder / name, stem, ending)
        self._endings = {}

    def _plan_ahead(self) -> None:
        if self._ahead < self._end:
            self._ahead = self._end
            threading.Thread(target=self._reach, args=(self._end,), name=AHEAD_OF_NEED, daemon=True).start()

    def _ending(self, epoch: Epoch) -> tuple[int, dict[str, Place]]:
        """An epoch's number of rows, and how far its sources have been read at its end."""
        later = self.starts[epoch.phase + 1 :]
        cut = later[0] - epoch.first if later else None
        folder = self._folder(epoch)
        path = folder.with_name(folder.name + ("" if cut is None else f"-{cut}") + ".json")
        ending = open_sealed(path, path.stem)
        if ending is None and self.run:
            ending = open_sealed(self.run / NOTES / path.name, path.stem)
        if ending is None:
            ending = self._endings[path.name] = self._measured(epoch, cut)
            write_sealed(path, path.stem, ending)
            self._clean()
            if self.run and self.run.exists():
                self._note(self.run / NOTES)
        else:
            self._endings[path.name] = ending
        return ending["rows"], {
            name: Place(taken, offset, np.array(carried, np.int64))
            for name, (taken, offset, carried) in ending["places"].items()
        }

    def _measured(self, epoch: Epoch, cut: int | None) -> dict[str, Any]:
        planned = self._plan(epoch).rows
        rows = planned if cut is None else min(planned, cut)
        places = self.places_at(lambda: self._plan(epoch), rows, self._weights(epoch))
        return {"rows": rows, "places": {n: [p.taken, p.offset, p.carried.tolist()] for n, p in places.items()}}

    def _plan(self, epoch: Epoch) -> RowPlan:
        plan = self._open.get(epoch.first)
        if plan is None:
            with self._lock:
                plan = plan_rows(
                    self.corpus,
                    self._weights(epoch),
                    *self.of_rows,
                    epoch.begin,
                    self.cache,
                    self.log,
                    epoch.least,
                )
                self._open = dict([*self._open.items(), (epoch.first, plan)][-OPENED:])
        return plan

    def _weights(self, epoch: Epoch) -> Mapping[str, float]:
        return self.config.data.mixtures[epoch.phase].weights

    def _folder(self, epoch: Epoch) -> Path:
        return plan_folder(self.cache, self.corpus, self._weights(epoch), *self.of_rows, epoch.begin, epoch.least)

    def _clean(self) -> None:
        """Deletes the plans of long epochs that the stream has left behind; they can be planned again."""
        ends = [epoch.first for epoch in self._epochs[1:]]
        for epoch, end in zip(self._epochs[: 1 - KEPT], ends, strict=False):
            if end - epoch.first >= BLOCK_ROWS:
                delete_plan(self._folder(epoch))


def _identity(folder: Directory | None) -> tuple[int, int] | None:
    """Device and inode of a local folder; None where it does not exist, or is in a bucket."""
    if not isinstance(folder, Path) or not folder.exists():
        return None
    about = folder.stat()
    return about.st_dev, about.st_ino


class Replays(Planner):
    """Plans of version 2: one for each phase, whose later epochs are the first one's rows in other orders."""

    @property
    def epoch(self) -> int:
        """Rows from row 0 on until every source of the first phase has been read at least once."""
        return self._plans[0].rows

    def find(self, row: int) -> Planned:
        """Where a row of the stream stands."""
        phase = bisect(self.starts, row) - 1
        plan = self._plans[phase]
        epoch, index = divmod(int(row) - self.starts[phase], plan.rows)
        seed = (self.config.seed, phase)
        return Planned(phase, plan, int(shuffled(index, plan.rows, seed, epoch)) if epoch else index)

    def close(self) -> None:
        """Closes the open plans."""
        self.__dict__.pop("_plans", None)

    @cached_property
    def _plans(self) -> list[RowPlan]:
        """Each phase begins where the one before stops in its first epoch, and depends on no later one."""
        plans: list[RowPlan] = []
        places: Mapping[str, Place] = {}
        for phase, end in zip(self.config.data.mixtures, [*self.starts[1:], None], strict=True):
            arguments = (self.corpus, phase.weights, *self.of_rows, places, self.cache, self.log)
            plan = partial(plan_rows, *arguments, version=REPLAYED)
            if end is not None:
                places = {**places, **self.places_at(plan, end - phase.start, phase.weights)}
            plans.append(plan())
        return plans


PLANNERS: Mapping[int, type[Planner]] = {REPLAYED: Replays, VERSION: Epochs}


def planner_of(
    version: int, corpus: Corpus, config: Config, cache: Path, run: Directory | None = None, log: Say = print
) -> Planner:
    """The planner of a version of the plans; see `Planner`.

    Raises:
        ConfigError: there is no such version.
    """
    require(
        version in PLANNERS,
        f"row plans of version {version} are unknown: the run began with a newer release; use that one",
    )
    return PLANNERS[version](corpus, config, cache, run, log)
