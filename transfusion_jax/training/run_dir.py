"""A run's directory: config, manifest, metrics, checkpoints. It holds all that a reader of the run needs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import jax

from transfusion_jax import autoencoder, config
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.config import AutoencoderRun, Config, ConfigError, Run, require
from transfusion_jax.data import tokenizer
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.packing.plan import REPLAYED
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.flops import count_parameters
from transfusion_jax.parallel import flags
from transfusion_jax.parallel.processes import on_first
from transfusion_jax.storage.atomic import (
    DamagedFile,
    check_own,
    parse_json,
    read_json,
    sweep,
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
FACTS = ("data_hash", "codec")  # what must stay the same beside the config's identity
PACKAGES = ("transfusion-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


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
                sweep(self.path)
                yield

    @contextmanager
    def owned(self) -> Iterator[None]:
        """While this lasts, this process writes nothing here once the folder is another's.

        Its writes raise LostFolder then.
        """
        with owned(self.path, self._identity):
            yield

    def check(self, new: Run, data: Any, accepted: Collection[str], notes: Collection[str] = ()) -> dict[str, str]:
        """The accepted changes since the run was here last; see `accepted_changes`."""
        facts = facts_of(new, data)
        return accepted_changes(self.run(), self.manifest(), new, facts, accepted, str(self.path), notes)

    def begin(
        self, new: Run, data: Any, event: str, skip_rows: Sequence[tuple[int, int]] = (), **details: Any
    ) -> None:
        """Writes config and manifest: of a new run, or of this one as it goes on.

        Args:
            new: the config.
            data: what is trained on.
            event: what is beginning, for the manifest's history.
            skip_rows: stretches `[begin, end)` of the stream to leave out, beside those that are already.
            details: more for the history; what is empty is left out.
        """
        on_first(lambda: self._begin(new, data, event, skip_rows, details))

    def _begin(
        self, new: Run, data: Any, event: str, skip_rows: Sequence[tuple[int, int]], details: dict[str, Any]
    ) -> None:
        check_own(self.path)
        kept = self.manifest() if self.exists() else {"history": [], "skip_rows": []}
        text = json.dumps(config.to_dict(config.kept(new)), indent=2) + "\n"
        data.keep(self.path)
        self._write_manifest(
            facts_of(new, data)
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
        return config.kept(config.parse_run(parse_json(data, path, self._remedy())))

    def manifest(self) -> dict[str, Any]:
        """The run's manifest.

        Raises:
            DamagedFile: it is missing, or not what was written.
        """
        path = self.path / "manifest.json"
        try:
            values = read_json(path, self._remedy())
        except FileNotFoundError as error:
            raise DamagedFile(f"{path} is missing: {self._remedy()}") from error
        missing = [name for name in ("history", "codec", "skip_rows") if name not in values]
        if missing:
            raise DamagedFile(f"{path} is damaged ({', '.join(missing)} missing): {self._remedy()}")
        return values

    def began_from_nothing(self) -> bool:
        """Whether the run's first step was made of fresh parameters, and can be made again."""
        return bool(self.manifest()["history"][0]["event"] == "start")

    def lost_checkpoints(self) -> bool:
        """Whether a checkpoint was found damaged since the run began, or was last rewound."""
        events = [entry["event"] for entry in self.manifest()["history"]]
        return DAMAGED in events and "rewind" not in events[events.index(DAMAGED) :]

    def longest_context(self) -> int | None:
        """The longest context of an imported model, in elements, which runs that begin from it keep too."""
        found: int | None = self.manifest()["history"][0].get("longest_context")
        return found

    def about(self) -> dict[str, Any]:
        """What each of the run's checkpoints says of the run."""
        manifest = {name: value for name, value in self.manifest().items() if name not in ("history", CONFIGS)}
        return manifest | {"config": config.to_dict(self.run())}

    @property
    def row_plan(self) -> int:
        """The version of the run's row plans."""
        return row_plan_of(self.manifest())

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

    def codec(self) -> Codec:
        """How the run coded texts and images; needs none of its data."""
        return read_codec(self.path, self.manifest()["codec"])


def row_plan_of(manifest: dict[str, Any]) -> int:
    """The version of the row plan that a manifest names; manifests that name none are of version 2."""
    return int(manifest.get("row_plan", REPLAYED))


def read_codec(folder: Place, values: dict[str, Any]) -> Codec:
    """What a manifest's `codec` stands for, from the files that are kept beside it.

    Raises:
        UserError: one of them is missing or damaged.
    """
    remedy = "run the command that trains again, which restores it, or copy it back from a backup"
    tokens = tokenizer.load_saved(folder, values["tokenizer"], values.get("tokenizer_hash"), remedy)
    return Codec(
        tokens,
        SpecialTokens.of(tokens),
        autoencoder.load_saved(folder, values["autoencoder"], values.get("autoencoder_hash")),
        LatentStatistics.from_dict(values["latents"]) if values["latents"] else None,
        values.get("bos_first", True),
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


def facts_of(new: Run, data: Any) -> dict[str, Any]:
    """What a manifest says of a run, its history apart; `data` is what it trains on, such as `Data`."""
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "flags": flags.in_force(),
        "identity_hash": config.identity_hash(new),
        "parameters": parameters_of(new),
        **data.facts(new),
    }


def parameters_of(run: Run) -> int:
    """Of the network that a run trains."""
    if isinstance(run, Config):
        return count_parameters(run.model).total
    assert isinstance(run, AutoencoderRun)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(Network(run.architecture).abstract_params()))


def check_names(new: Run, accepted: Collection[str]) -> None:
    """Raises ConfigError where a name that is accepted is no field of the recipe."""
    fields = {*config.identity(new), *FACTS}
    for name in accepted:
        require(name in fields, f"--accept-changes {name}: no such field; {config.nearest(name, fields)}")


def accepted_changes(
    old: Run,
    old_facts: dict[str, Any],
    new: Run,
    facts: dict[str, Any],
    accepted: Collection[str],
    run: str,
    notes: Collection[str] = (),
) -> dict[str, str]:
    """The changes of recipe between two runs, `{field: "old -> new"}`, all of them accepted.

    Args:
        old: the config of the run that is gone on with.
        old_facts: its manifest.
        new: the config that is asked for.
        facts: what its manifest would say.
        accepted: names of fields that may change.
        run: what the run is called, for the message.
        notes: lines that say what the changes come to, for the message.

    Raises:
        ConfigError: a change is not accepted.
    """
    changes = config.identity_changes(old, new)
    changes |= {name: f"{old_facts[name]} -> {facts[name]}" for name in FACTS if old_facts[name] != facts[name]}
    refused = [name for name in changes if name not in accepted]
    if refused:
        lines = "\n  ".join([*(f"{name}: {changes[name]}" for name in refused), *notes])
        raise ConfigError(
            f"{run} was started with another recipe, and going on keeps it:\n  {lines}\n"
            f"change back, accept by name with --accept-changes {','.join(refused)}, or train in a new --workdir"
        )
    return changes


def _entry(event: str, details: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in details.items() if value not in (None, {}, [], ())}
    return {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **given}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
