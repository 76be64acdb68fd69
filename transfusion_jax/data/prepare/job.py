"""What is to be prepared, fixed when a folder is begun: a run that goes on, or another host, does the very same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.readers import InputShard, ReadOptions
from transfusion_jax.data.readers.files import plain
from transfusion_jax.data.readers.format import flag
from transfusion_jax.data.store.dataset import NATIVE, REPREPARE, SCHEMA
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.errors import whole_range
from transfusion_jax.storage.atomic import LostFolder, claimed, read_json, sweep_unfinished, write_json
from transfusion_jax.storage.paths import Place, version_of

REMEDY = "copy it back from a backup, or choose another --output"
TOKENIZER_HASH = "tokenizer_hash"
ASPECT = "aspect"  # --aspect, which a job of squares leaves out, as earlier versions did
FORM = {"shards": [dict], "reading": dict}
WORDS = {"shards": "inputs", "schema": "schema", "extensions": "--extend"}  # of fields that are no option's


@dataclass(frozen=True)
class PrepareJob:
    """The inputs, and what decides the documents that are made of them."""

    shards: tuple[InputShard, ...]
    reading: ReadOptions
    tokenizer: str = "bytes"  # the tokenizer's name in the folder
    channels: int = 3
    min_size: int = 0  # pixels; images whose smaller side is shorter are refused
    held_out: float = 0.01  # share of the documents that is kept from training
    limit: int = 0  # records read of each input shard; 0: all
    extensions: Mapping[str, str] = field(default_factory=dict)  # see `config.extend`

    def __post_init__(self) -> None:
        require(self.channels in (1, 3), f"--channels must be 3 (colour) or 1 (grey), not {self.channels}")
        require(0 <= self.held_out <= 1, f"--held-out must lie between 0 and 1, not {self.held_out}")
        require(self.limit >= 0 and self.min_size >= 0, "--limit and --min-size must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.extensions:  # as folders of earlier versions have it
            del values["extensions"]
        for name in ("allow_paths", "languages"):
            if values["reading"][name] == getattr(ReadOptions, name):
                del values["reading"][name]
        native = values["reading"].pop("native")
        if native:
            for name in ("longest", "refuse_small"):  # no options of this command
                del native[name]
            values["reading"] |= {ASPECT: "native", **native}
        return {"schema": NATIVE if native else SCHEMA, **values}


def begin_job(job: PrepareJob, tokenizer: Tokenizer, folder: Place) -> PrepareJob:
    """Writes job and tokenizer into a new folder, or finds the same ones there; a damaged tokenizer is mended.

    Returns:
        The job, with the paths of its inputs written as the folder was begun with.

    Raises:
        ConfigError: the folder was begun with another job.
        DamagedFile: the job that it was begun with cannot be read.
    """
    sweep_unfinished(folder)
    path = folder / "job.json"
    if path.exists():
        old = read_json(path, REMEDY, FORM)
        job = _as_written(job, old)
        new = job.to_dict()
        before, now = (
            {**{name: j.get(name) for name in new}, **vars(ReadOptions()), ASPECT: "square", **j["reading"]}
            for j in (old, new)
        )
        changed = [
            f"{WORDS.get(name) or flag(name)}: {_short(before.get(name))} -> {_short(now.get(name))}"
            for name in before | now
            if name != "reading" and before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigError(
                f"{folder} was begun with other inputs or options:\n  " + "\n  ".join(changed) + "\n"
                "give those again to go on, or choose another --output"
            )
        known = old.get(TOKENIZER_HASH) or tokenizers.hash_of(
            tokenizers.load_saved_tokenizer(folder, job.tokenizer)
        )
        require(
            known == tokenizers.hash_of(tokenizer),
            f"{folder} was begun with another tokenizer of the same name: choose another --output",
        )
        tokenizers.save_tokenizer(tokenizer, folder)
        return job
    own = (tokenizer.name, path.name)  # what another host that begins at the same time has written
    there = folder.iterdir() if folder.exists() else ()
    others = [file.name for file in there if not file.name.startswith(own)]
    require(not others, f"{folder} holds other files: choose a new --output")
    tokenizers.save_tokenizer(tokenizer, folder)
    write_json(path, job.to_dict() | {TOKENIZER_HASH: tokenizers.hash_of(tokenizer)}, indent=1)
    return job


def _as_written(job: PrepareJob, old: Mapping[str, Any]) -> PrepareJob:
    """The job with each path written as another has it, where it is the same: `photos/` may be `photos` there."""
    paths = [path for shard in old["shards"] if isinstance(path := shard.get("path"), str)]
    known = {plain(path): path for path in paths} | {path: path for path in paths}
    shards = tuple(
        replace(shard, path=known.get(shard.path) or known.get(plain(shard.path), shard.path))
        for shard in job.shards
    )
    images, before = job.reading.images, old["reading"].get("images")
    if images and isinstance(before, str) and plain(images) == plain(before):
        images = before
    return replace(job, shards=shards, reading=replace(job.reading, images=images))


@contextmanager
def owned_by_job(folder: Place, job: PrepareJob) -> Iterator[None]:
    """While this lasts, nothing is written to the folder once it holds another job's data, or is gone.

    Writes raise LostFolder then.
    """
    path, mine = folder.absolute() / "job.json", job.to_dict()
    seen: object = None

    def check() -> None:
        nonlocal seen
        found = version_of(path)
        if found is not None and found == seen:
            return
        there = read_json(path, REMEDY) if found is not None else {}
        if any(there.get(name) != value for name, value in mine.items()):
            raise LostFolder(
                f"{folder} was moved, replaced or deleted while it was prepared: nothing more was written there. "
                "To continue, run the same command with the --output where the data is now"
            )
        seen = found

    with claimed(folder, check):
        yield


@lru_cache(maxsize=1)
def kept_tokenizer(folder: Place, name: str) -> Tokenizer:
    """The tokenizer that a folder was begun with.

    Raises:
        DamagedFile: it is not what was written.
    """
    known = read_json(folder / "job.json", REMEDY).get(TOKENIZER_HASH)
    return tokenizers.load_saved_tokenizer(folder, name, known, REPREPARE)


def place_among_hosts() -> tuple[int, int] | None:
    """Which of how many hosts this is, as Slurm, an indexed Kubernetes job (JobSet) or a TPU VM says."""
    for index, count in (("SLURM_PROCID", "SLURM_NTASKS"), ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")):
        if index in os.environ and count in os.environ:
            return _place_of(index, count, os.environ[count])
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if "TPU_WORKER_ID" in os.environ and "," in hosts:
        return _place_of("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", str(len(hosts.split(","))))
    return None


def _place_of(index: str, counted: str, count: str) -> tuple[int, int]:
    found = whole_range(f"{os.environ[index]}/{count}", "/")
    if found is None or found[0] >= found[1]:
        raise ConfigError(f"{index}={os.environ[index]} and {counted} name no host of {count}: give --shard I/N")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
