"""The finished shards put together: columns of the documents that are used, duplicates aside, and the manifest."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.prepare.encode import encodings as encoded
from transfusion_jax.data.prepare.job import PrepareJob, kept_tokenizer
from transfusion_jax.data.prepare.shard import (
    KEY_BYTES,
    NAMES,
    REPORT,
    SIDES,
    columns_file,
    fault_line,
    faults_file,
    report_file,
)
from transfusion_jax.data.readers import Fault, origin
from transfusion_jax.data.store.dataset import AREAS, COLUMNS, NATIVE, REPREPARE, SCHEMA, SPLITS
from transfusion_jax.data.store.latent_stats import Moments
from transfusion_jax.storage.atomic import DamagedFile, parse_json, whole, write_json
from transfusion_jax.storage.paths import Place, on_disk, read_all, sha256


def finish_folder(folder: Place, job: PrepareJob) -> dict[str, Any]:
    """Writes index, quarantine report and manifest of a folder all of whose shards are finished.

    A document that stands twice is used where it stands first. Nothing here depends on how the shards were made,
    so that two hosts that finish at once write the same.
    """
    numbers = range(len(job.shards))
    paths = [report_file(folder, n) for n in numbers]
    reports = [parse_json(data, path, REPREPARE, REPORT) for path, data in zip(paths, read_all(paths), strict=True)]
    starts = np.concatenate([[0], np.cumsum([report["records"] for report in reports])])
    shards = [_without_names(data) for data in _columns(folder, reports)]
    columns = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    columns["record"] += np.repeat(starts[:-1], [len(shard["record"]) for shard in shards])
    first = _first(columns["key"])
    native, shapes = job.reading.native is not None, list[list[int]]()
    if native:
        sides = columns.pop(SIDES)
        columns["areas"] = _areas(sides, columns["images"])
        shapes = _counted(sides[np.repeat(first, columns["images"])])
    quarantine_hash, repeated = _write_quarantine(folder, job, reports, shards, first)
    tokenizer = kept_tokenizer(folder, job.tokenizer)
    splits, index = {}, dict[str, np.ndarray]()
    for split in SPLITS:
        used = first & (columns["held_out"] == (split == "held_out"))
        wanted = COLUMNS | (AREAS if native else {})
        index |= {f"{split}/{name}.npy": columns[name][used].astype(dtype) for name, dtype in wanted.items()}
        splits[split] = {
            "documents": int(used.sum()),
            "images": int(columns["images"][used].sum()),
            "text_tokens": int(columns["text_lengths"][used].sum()),
            "hash": _hash(columns["key"][used].tobytes(), tokenizers.hash_of(tokenizer).encode()),
        }
    index_hashes = {name: _write_column(folder / "index" / name, column) for name, column in index.items()}
    faults: Counter[str] = Counter()
    for report in reports:
        faults.update(report["faults"])
    faults["duplicate"] += repeated
    pictured = [number for number, report in enumerate(reports) if report["pictured"]]
    encodings = _pixels(job, reports, columns["key"]) | encoded(folder, pictured, columns["key"].tobytes())
    for about in encodings.values():
        factor = about.pop("factor", 1)
        if native:
            about["shapes"] = [[height // factor, width // factor, count] for height, width, count in shapes]
    shards_about = [
        {name: report[name] for name in ("input", "records", "sha256")}
        | {"sealed": list(report["sha256"]) if report.get("sealed") else []}
        for report in reports
    ]
    for name, about in encodings.items():
        for number, file in about.pop("files", {}).items():
            shards_about[int(number)]["sha256"][name] = file["sha256"]
            shards_about[int(number)]["sealed"] += [name] * file.get("sealed", False)
    manifest = {
        "schema": NATIVE if native else SCHEMA,
        "splits": splits,
        "tokenizer": {
            "name": tokenizer.name,
            "size": tokenizer.size,
            "hash": tokenizers.hash_of(tokenizer),
        },
        "encodings": encodings,
        "index": index_hashes,
        "quarantine_hash": quarantine_hash,
        "quarantine": dict(sorted((+faults).items())),
        "shards": shards_about,
    }
    write_json(folder / "data.json", manifest, indent=1)
    return manifest


def _columns(folder: Place, reports: list[dict[str, Any]]) -> Iterator[bytes]:
    """The columns of each shard.

    Raises:
        DamagedFile: some are not what was written.
    """
    paths = [columns_file(folder, number) for number in range(len(reports))]
    for path, report, data in zip(paths, reports, read_all(paths), strict=True):
        _check(path, report, "columns", hashlib.sha256(data).hexdigest())
        yield data


def _without_names(data: bytes) -> dict[str, np.ndarray]:
    """A shard's columns but for the names, which are many bytes that only duplicates need."""
    held = np.load(io.BytesIO(data))
    return {name: held[name] for name in held.files if name != NAMES}


def _names(folder: Place, shard: int, records: np.ndarray) -> list[str]:
    """Where each document of a shard was found."""
    held = np.load(io.BytesIO(columns_file(folder, shard).read_bytes()))
    if NAMES not in held.files:
        return [f"record {record}" for record in records]
    return list(map(str, json.loads(held[NAMES].tobytes())))


def _check(path: Place, report: dict[str, Any], name: str, found: str) -> None:
    """Raises DamagedFile where a file's hash is another than its shard's report has."""
    if report.get("hashes", {}).get(name) not in (None, found):
        raise DamagedFile(f"{path} is damaged: {REPREPARE}")


def _write_column(path: Place, column: np.ndarray) -> str:
    """Returns the file's hash."""
    with whole(path) as beside:
        with beside.open("wb") as file:
            np.save(file, column)
        return sha256(beside)


def _first(keys: np.ndarray) -> np.ndarray:
    """Where each key stands first, `[n]` bool."""
    first = np.zeros(len(keys), bool)
    first[np.unique(np.ascontiguousarray(keys).view(f"V{KEY_BYTES}").ravel(), return_index=True)[1]] = True
    return first


def _write_quarantine(
    folder: Place,
    job: PrepareJob,
    reports: list[dict[str, Any]],
    shards: list[dict[str, np.ndarray]],
    first: np.ndarray,
) -> tuple[str, int]:
    """All lines of all shards, and one for each duplicate of an earlier shard's document.

    Returns:
        The file's hash, and how many of its lines are duplicates of an earlier shard's.
    """
    at = repeated = 0
    with whole(folder / "quarantine.jsonl") as beside:
        with beside.open("wb") as file:
            for number, (shard, report) in enumerate(zip(shards, reports, strict=True)):
                if report["faults"]:
                    _copy(faults_file(folder, number), report, file)
                places = np.flatnonzero(~first[at : at + len(shard["record"])])
                names = _names(folder, number, shard["record"]) if len(places) else []
                for place in places:
                    fault = Fault(names[place], "duplicate: of a document in another shard")
                    file.write(fault_line(origin(job.shards[number]), fault).encode())
                    repeated += 1
                at += len(shard["record"])
        return sha256(beside), repeated


def _copy(path: Place, report: dict[str, Any], to: IO[bytes]) -> None:
    """Adds the lines of a shard, which may be more than fit the memory.

    Raises:
        DamagedFile: they are not what was written.
    """
    with on_disk(path) as local:
        _check(path, report, "faults", sha256(local))
        with local.open("rb") as file:
            shutil.copyfileobj(file, to)


def _areas(sides: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Pixels of each document's images, `[n]`, of heights and widths `[images of all, 2]`."""
    before = np.concatenate([[0], np.cumsum(sides.astype(np.int64).prod(1))])
    ends = np.cumsum(images)
    return before[ends] - before[ends - images]


def _counted(sides: np.ndarray) -> list[list[int]]:
    """Each height and width that images have, in order, and how many have them."""
    found, counts = np.unique(sides[:, 0].astype(np.uint32) << 16 | sides[:, 1], return_counts=True)
    return [[shape >> 16, shape & 0xFFFF, n] for shape, n in zip(found.tolist(), counts.tolist(), strict=True)]


def _pixels(job: PrepareJob, reports: list[dict[str, Any]], keys: np.ndarray) -> dict[str, Any]:
    if not any(report["pictured"] for report in reports):
        return {}
    moments = sum((Moments.from_dict(report["moments"]) for report in reports), Moments.none(job.channels))
    shape = [*([0, 0] if job.reading.native else 2 * [job.reading.image_size]), job.channels]
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
