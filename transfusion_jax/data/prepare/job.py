"""What is to be prepared, fixed when a folder is begun: a run that goes on, or another host, does the very same."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.prepared import SCHEMA
from transfusion_jax.data.readers import InputShard, ReadOptions
from transfusion_jax.data.tokenizer import Tokenizer
from transfusion_jax.storage import Place
from transfusion_jax.training.files import write_whole


@dataclass(frozen=True)
class Job:
    """The inputs, and what decides the documents that are made of them."""

    shards: tuple[InputShard, ...]
    reading: ReadOptions
    tokenizer: str = "bytes"  # the tokenizer's name in the folder
    channels: int = 3
    min_size: int = 0  # pixels; images whose smaller side is shorter are refused
    held_out: float = 0.01  # share of the documents that is kept from training
    limit: int = 0  # records read of each input shard; 0: all

    def __post_init__(self) -> None:
        require(self.channels in (1, 3), f"--channels must be 3 (colour) or 1 (grey), not {self.channels}")
        require(0 <= self.held_out <= 1, f"--held-out must lie between 0 and 1, not {self.held_out}")
        require(self.limit >= 0 and self.min_size >= 0, "--limit and --min-size must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `Job.from_dict` reads back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"schema": SCHEMA, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        """The inverse of `to_dict`."""
        rest = {name: value for name, value in values.items() if name not in ("schema", "shards", "reading")}
        shards = tuple(InputShard(**shard) for shard in values["shards"])
        return cls(shards, ReadOptions(**values["reading"]), **rest)


def begin(job: Job, tokenizer: Tokenizer, folder: Place) -> None:
    """Writes the job into a new folder, or finds the same one there.

    Raises:
        ConfigError: the folder was begun with another job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "job.json", json.dumps(job.to_dict(), indent=1, ensure_ascii=False) + "\n"
    if path.exists():
        old, new = json.loads(path.read_text()), job.to_dict()
        changed = [
            f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}"
            for name in new
            if old.get(name) != new[name]
        ]
        if changed:
            raise ConfigError(
                f"{folder} was begun with other inputs or options:\n  " + "\n  ".join(changed) + "\n"
                "give those again to go on, or choose another --output"
            )
        saved = tokenizers.load_saved(folder, job.tokenizer)
        require(
            tokenizers.hash_of(saved) == tokenizers.hash_of(tokenizer),
            f"{folder} was begun with another tokenizer of the same name: choose another --output",
        )
        return
    own = (tokenizer.name, path.name)  # what another host that begins at the same time has written
    others = [file.name for file in folder.iterdir() if not file.name.startswith(own)]
    require(not others, f"{folder} holds other files: choose a new --output")
    tokenizers.save(tokenizer, folder)
    write_whole(path, text)


def place_among_hosts() -> tuple[int, int] | None:
    """Which of how many hosts this is, as Slurm, an indexed Kubernetes job (JobSet) or a TPU VM says."""
    for index, count in (("SLURM_PROCID", "SLURM_NTASKS"), ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")):
        if index in os.environ and count in os.environ:
            return int(os.environ[index]), int(os.environ[count])
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if "TPU_WORKER_ID" in os.environ and "," in hosts:
        return int(os.environ["TPU_WORKER_ID"]), len(hosts.split(","))
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
