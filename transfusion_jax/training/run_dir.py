"""A run's directory: config, manifest, metrics, checkpoints. It holds all that a reader of the run needs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from transfusion_jax import config
from transfusion_jax.config import Config, ConfigError, Run
from transfusion_jax.parallel.processes import on_first
from transfusion_jax.storage.atomic import (
    DamagedFile,
    check_own,
    parse_json,
    read_json,
    sweep_unfinished,
    write_json,
    write_whole,
)
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.lock import leased
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.ownership import is_at, owned

DAMAGED = "damaged checkpoint"
CONFIGS = "config_hashes"  # of config.json as it is, and as a kill may have left it
RUN = "run"  # the run's identity, which it keeps for good
IMPORTED_TYPES = {"longest_context?": (None, int), "chat_template?": (None, str)}  # of a run's first event
IMPORTED = tuple(name.removesuffix("?") for name in IMPORTED_TYPES)
MANIFEST = {
    "history": [{"event": str, **IMPORTED_TYPES}],
    "codec": dict,  # see `data.datasets.check_codec`; an autoencoder's run has an empty one
    "skip_rows": [[int, int]],
    "row_plan?": int,
    "shapes?": {"height": [int, int], "width": [int, int], "area": [int, int]},  # see `facts.trained_shapes`
    "flags?": dict,
    f"{CONFIGS}?": [str],
    f"{RUN}?": (None, str),
}


@dataclass(frozen=True)
class Workdir:
    """Names of a run's files, and the reading and writing of the small ones."""

    path: Place

    @property
    def checkpoints(self) -> Place:
        """One folder per step."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Place:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def bad_steps(self) -> Place:
        """One JSON object per step that was not taken."""
        return self.path / "bad_steps.jsonl"

    @property
    def aside(self) -> Place:
        """What was moved out of the way: damaged checkpoints, and what a rewind left behind."""
        return self.path / "aside"

    @property
    def tensorboard(self) -> Place:
        """TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def attempts(self) -> Place:
        """One file per attempt: what it did with its time, and how it ended."""
        return self.path / "attempts"

    @property
    def heartbeat(self) -> Place:
        """The heartbeat of a live run; see `heartbeat`."""
        return self.path / "heartbeat.json"

    @property
    def profile(self) -> Place:
        """Traces of steps."""
        return self.path / "profile"

    @property
    def samples(self) -> Place:
        """Images drawn during training."""
        return self.path / "samples"

    @property
    def evaluation(self) -> Place:
        """What `transfusion evaluate` measured; see `evaluation.results`."""
        return self.path / "evaluation.json"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").is_file()

    def check_unbegun(self) -> None:
        """Returns where no run has trained here.

        Raises:
            DamagedFile: one has, and its config is missing.
        """
        if self.attempts.is_dir() and any(True for _ in self.attempts.iterdir()):
            raise DamagedFile(
                f"{self.path / 'config.json'} is missing, although a run trained here: {self._remedy()}"
            )

    @contextmanager
    def locked(self, log: Callable[[str], None] = print) -> Iterator[None]:
        """Keeps other processes from training here meanwhile: of this machine, or in a bucket of any.

        A killed one keeps nothing, or in a bucket for a minute where it was another machine's. See also `owned`.

        Raises:
            ConfigError: another one does.
        """
        if isinstance(self.path, BucketPath):
            with leased(self.path / "lock", log) as held, owned(self.path, self._identity, held):
                yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another process trains in {self.path}: wait for its end, or choose another --workdir"
                ) from error
            lock = self.path.absolute() / "lock"
            with owned(self.path, self._identity, lambda: is_at(file.fileno(), lock)):
                sweep_unfinished(self.path)
                yield

    @contextmanager
    def owned(self) -> Iterator[None]:
        """While this lasts, this process writes nothing here once the folder is another's.

        Its writes raise LostFolder then.
        """
        with owned(self.path, self._identity):
            yield

    def begin(
        self,
        new: Run,
        facts: Mapping[str, Any],
        data: Any,
        event: str,
        skip_rows: Sequence[tuple[int, int]] = (),
        **details: Any,
    ) -> None:
        """Writes config and manifest: of a new run, or of this one as it goes on.

        Args:
            new: the config.
            facts: what the manifest is to say of the run.
            data: what is trained on.
            event: what is beginning, for the manifest's history.
            skip_rows: stretches `[begin, end)` of the stream to leave out, beside those that are already.
            details: more for the history; what is empty is left out.
        """
        on_first(lambda: self._begin(new, facts, data, event, skip_rows, details))

    def _begin(
        self,
        new: Run,
        facts: Mapping[str, Any],
        data: Any,
        event: str,
        skip_rows: Sequence[tuple[int, int]],
        details: dict,
    ) -> None:
        check_own(self.path)
        kept = self.manifest() if self.exists() else {"history": [], "skip_rows": []}
        text = json.dumps(config.kept_values(new), indent=2) + "\n"
        data.keep(self.path)
        self._write_manifest(
            {**facts}
            | {RUN: self._identity() or uuid.uuid4().hex}  # a kill may have left a manifest
            | {CONFIGS: [_hash(text.encode()), *kept.get(CONFIGS, [])[:1]]}
            | {"skip_rows": union([*kept["skip_rows"], *skip_rows])}
            | {"history": [*kept["history"], _entry(event, details)]}
        )
        write_whole(self.path / "config.json", text)  # last: a run exists once this does

    def remember(self, event: str, **details: Any) -> None:
        """Adds an entry to the manifest's history."""

        def add() -> None:
            check_own(self.path)
            manifest = self.manifest()
            manifest["history"].append(_entry(event, details))
            self._write_manifest(manifest)

        on_first(add)

    def config(self) -> Config:
        """The run's config.

        Raises:
            ConfigError: there is no run here, or that of an autoencoder.
        """
        return config.as_model(self.run())

    def run(self) -> Run:
        """The config of a run of either kind.

        Raises:
            ConfigError: there is no run here.
            DamagedFile: its config is not what was written.
        """
        if not self.exists():
            raise ConfigError(f"no run in {self.path}: start one with transfusion train --workdir {self.path}")
        path = self.path / "config.json"
        data, hashes = path.read_bytes(), self.manifest().get(CONFIGS)
        if hashes is not None and _hash(data) not in hashes:
            raise DamagedFile(
                f"{path} is not what was written (changes belong on the command line): {self._remedy()}"
            )
        try:
            return config.kept(config.parse_run(parse_json(data, path, self._remedy())))
        except ConfigError as error:
            raise ConfigError(f"{path} is of another version, or damaged ({error}): {self._remedy()}") from error

    def manifest(self) -> dict[str, Any]:
        """The run's manifest.

        Raises:
            DamagedFile: it is missing, or not what was written.
        """
        path = self.path / "manifest.json"
        try:
            values = read_json(path, self._remedy(), MANIFEST)
        except FileNotFoundError as error:
            raise DamagedFile(f"{path} is missing: {self._remedy()}") from error
        if not values["history"]:
            raise DamagedFile(f"{path} is damaged (its history is empty): {self._remedy()}")
        return values

    def began_from_nothing(self) -> bool:
        """Whether the run's first step was made of fresh parameters, and can be made again."""
        return bool(self.manifest()["history"][0]["event"] == "start")

    def lost_checkpoints(self) -> bool:
        """Whether a checkpoint was found damaged since the run began, or was last rewound."""
        events = [entry["event"] for entry in self.manifest()["history"]]
        return DAMAGED in events and "rewind" not in events[events.index(DAMAGED) :]

    def imported(self) -> dict[str, Any]:
        """What is known of an imported model, by `IMPORTED`; runs that begin from it keep it, too."""
        first = self.manifest()["history"][0]
        return {name: first[name] for name in IMPORTED if first.get(name) is not None}

    def longest_context(self) -> int | None:
        """The longest context of an imported model, in elements."""
        found: int | None = self.imported().get("longest_context")
        return found

    def about(self) -> dict[str, Any]:
        """What each of the run's checkpoints says of the run."""
        manifest = {name: value for name, value in self.manifest().items() if name not in ("history", CONFIGS)}
        return manifest | {"config": config.kept_values(self.run())}

    @property
    def skip_rows(self) -> tuple[tuple[int, int], ...]:
        """Stretches `[begin, end)` of the stream that are left out, in order."""
        return tuple((begin, end) for begin, end in self.manifest()["skip_rows"])

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.path / "manifest.json", manifest, indent=2)

    def _identity(self) -> str | None:
        """The identity of the run that is here now; None without one, or with one of a former version."""
        path = self.path.absolute() / "manifest.json"
        try:
            return read_json(path, self._remedy()).get(RUN)
        except FileNotFoundError:
            return None

    def _remedy(self) -> str:
        return (
            "copy it back from a backup, or continue from the newest checkpoint, which has all that is needed, by "
            f"--fork-from {self.checkpoints}/STEP --workdir NEW"
        )


def union(stretches: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same numbers as stretches `[begin, end)` that are in order and do not touch."""
    merged: list[list[int]] = []
    for begin, end in sorted(map(list, stretches)):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def _entry(event: str, details: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in details.items() if value not in (None, {}, [], ())}
    return {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **given}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
