"""The finished shards put together: columns of the documents that are used, duplicates aside, and the manifest."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.autoencoder import Identity
from transfusion_jax.bucket import BucketPath
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.prepare.encode import encodings as encoded
from transfusion_jax.data.prepare.job import Job
from transfusion_jax.data.prepare.shard import KEY_BYTES, columns_file, faults_file, report_file
from transfusion_jax.data.prepared import COLUMNS, SCHEMA, SPLITS
from transfusion_jax.data.readers import origin
from transfusion_jax.data.statistics import Moments
from transfusion_jax.storage import Place, read_all
from transfusion_jax.training.files import write_whole


def finish(folder: Place, job: Job) -> dict[str, Any]:
    """Writes index, quarantine report and manifest of a folder all of whose shards are finished.

    A document that stands twice is used where it stands first. Nothing here depends on how the shards were made,
    so that two hosts that finish at once write the same.
    """
    numbers = range(len(job.shards))
    reports = [json.loads(text) for text in read_all([report_file(folder, n) for n in numbers])]
    starts = np.concatenate([[0], np.cumsum([report["records"] for report in reports])])
    shards = [dict(np.load(io.BytesIO(data))) for data in read_all([columns_file(folder, n) for n in numbers])]
    columns = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    columns["record"] += np.repeat(starts[:-1], [len(shard["record"]) for shard in shards])
    first = _first(columns["key"])
    repeated = _write_quarantine(folder, job, shards, first)
    tokenizer = tokenizers.load_saved(folder, job.tokenizer)
    splits, index = {}, dict[str, np.ndarray]()
    for split in SPLITS:
        used = first & (columns["held_out"] == (split == "held_out"))
        index |= {f"{split}/{name}.npy": columns[name][used].astype(dtype) for name, dtype in COLUMNS.items()}
        splits[split] = {
            "documents": int(used.sum()),
            "images": int(columns["images"][used].sum()),
            "text_tokens": int(columns["text_lengths"][used].sum()),
            "hash": _hash(columns["key"][used].tobytes(), tokenizers.hash_of(tokenizer).encode()),
        }
    _write_index(folder, index)
    faults: Counter[str] = Counter()
    for report in reports:
        faults.update(report["faults"])
    faults["duplicate"] += repeated
    pictured = [number for number, report in enumerate(reports) if report["pictured"]]
    encodings = _pixels(job, reports, columns["key"]) | encoded(folder, pictured, columns["key"].tobytes())
    shards_about = [{name: report[name] for name in ("input", "records", "sha256")} for report in reports]
    for name, about in encodings.items():
        for number, digest in about.pop("sha256", {}).items():
            shards_about[int(number)]["sha256"][name] = digest
    manifest = {
        "schema": SCHEMA,
        "splits": splits,
        "tokenizer": {
            "name": tokenizer.name,
            "size": tokenizer.size,
            "hash": tokenizers.hash_of(tokenizer),
        },
        "encodings": encodings,
        "quarantine": dict(sorted((+faults).items())),
        "shards": shards_about,
    }
    write_whole(folder / "data.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _write_index(folder: Place, columns: dict[str, np.ndarray]) -> None:
    """A local folder's index appears whole; in a bucket nobody looks for it before the manifest stands."""
    if isinstance(folder, BucketPath):
        with tempfile.TemporaryDirectory() as scratch:
            _save(columns, Path(scratch))
            for name in columns:
                (folder / "index" / name).upload(Path(scratch) / name)
        return
    partial = folder / "index.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _save(columns, partial)
    shutil.rmtree(folder / "index", ignore_errors=True)
    partial.rename(folder / "index")


def _save(columns: dict[str, np.ndarray], folder: Path) -> None:
    for name, column in columns.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, column)


def _first(keys: np.ndarray) -> np.ndarray:
    """Where each key stands first, `[n]` bool."""
    first = np.zeros(len(keys), bool)
    first[np.unique(np.ascontiguousarray(keys).view(f"V{KEY_BYTES}").ravel(), return_index=True)[1]] = True
    return first


def _write_quarantine(folder: Place, job: Job, shards: list[dict[str, np.ndarray]], first: np.ndarray) -> int:
    """All lines of all shards, and one for each document that a shard before holds; returns the latters' number."""
    at = repeated = 0
    lines = []
    faults = read_all([faults_file(folder, number) for number in range(len(shards))])
    for number, (shard, found) in enumerate(zip(shards, faults, strict=True)):
        lines.append(found.decode())
        for place in np.flatnonzero(~first[at : at + len(shard["record"])]):
            line = {
                "source": origin(job.shards[number]),
                "key": f"record {shard['record'][place]}",
                "reason": "duplicate: of a document in another shard",
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            repeated += 1
        at += len(shard["record"])
    write_whole(folder / "quarantine.jsonl", "".join(lines))
    return repeated


def _pixels(job: Job, reports: list[dict[str, Any]], keys: np.ndarray) -> dict[str, Any]:
    if not any(report["pictured"] for report in reports):
        return {}
    moments = sum((Moments.from_dict(report["moments"]) for report in reports), Moments.none(job.channels))
    shape = [job.reading.image_size, job.reading.image_size, job.channels]
    return {
        "pixels": {
            "autoencoder": "identity",
            "autoencoder_hash": Identity().hash(),
            "dtype": "|u1",
            "shape": shape,
            "moments": moments.to_dict(),
            "hash": _hash(keys.tobytes(), f"pixels {shape}".encode()),
        }
    }


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b";".join(parts)).hexdigest()[:16]
