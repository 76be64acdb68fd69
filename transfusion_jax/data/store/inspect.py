"""What a prepared folder holds, counted and sampled, and what is wrong with it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.data.store.dataset import (
    REPREPARE,
    SPLITS,
    DamagedData,
    Prepared,
    PreparedDocuments,
    remedy,
    shard_file,
)
from transfusion_jax.data.store.latent_stats import LatentStatistics
from transfusion_jax.diffusion.noise_schedules import cosine
from transfusion_jax.errors import UserError
from transfusion_jax.storage.atomic import DamagedFile, read_json
from transfusion_jax.storage.gcs import BucketPath
from transfusion_jax.storage.paths import Place, sha256

MOST_SHAPES = 20  # that are shown one by one, the most frequent ones
COUNTED = ("documents", "images", "text_tokens")  # of each part
SAMPLED = 2000  # images looked at
BINS = (0, 1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)  # tokens
LATE = 0.9  # of the noise: by then an image should be hidden
HIDDEN = 10.0  # times the noise; the cosine schedule hides images of 64 pixels well (arXiv 2301.11093)
COARSE = 4  # the coarse shape is 4×4 pixels
BLANK = 0.01  # standard deviation of an image that shows nothing, normalised


@dataclass(frozen=True)
class Encodings:
    """Measurements of sampled images in one encoding."""

    statistics: LatentStatistics
    blank: float  # share of images that show nothing
    late_signal: float  # signal-to-noise ratio of the coarse shape at `LATE` of the timesteps


def histogram(lengths: np.ndarray) -> list[tuple[str, int]]:
    """How many lengths lie in each bin, the empty ones at the ends left out."""
    counts, _ = np.histogram(lengths, (*BINS, np.inf))
    pairs = itertools.pairwise(BINS)
    names = [f"{low:,}" if high == low + 1 else f"{low:,}-{high - 1:,}" for low, high in pairs]
    bins = list(zip([*names, f"{BINS[-1]:,}-"], counts.tolist(), strict=True))
    filled = np.flatnonzero(counts)
    return bins[filled[0] : filled[-1] + 1] if len(filled) else []


def extent(shapes: dict[tuple[int, int], int]) -> str:
    """How many shapes there are, and the longest side and the largest area, which a model must have room for."""
    sides, areas = (max(map(of, shapes), default=0) for of in (max, math.prod))
    return f"{len(shapes)} shapes, sides to {sides:,}, areas to {areas:,}"


def shape_histogram(shapes: dict[tuple[int, int], int]) -> list[tuple[str, int]]:
    """How many images have each shape, tall ones first; those of the rarest shapes are counted together, last."""
    frequent = sorted(shapes, key=lambda shape: (-shapes[shape], shape))[:MOST_SHAPES]
    by_proportion = sorted(frequent, key=lambda shape: (shape[1] / shape[0], shape))
    bins = [(f"{height}×{width}", shapes[height, width]) for height, width in by_proportion]
    rest = len(shapes) - len(bins)
    return [*bins, (f"{rest} others", sum(shapes.values()) - sum(n for _, n in bins))] if rest else bins


def measure_images(prepared: Prepared, encoding: str) -> Encodings:
    """Measures images from all over the training part, in one encoding."""
    statistics = prepared.moments(encoding).statistics()
    safe = LatentStatistics(statistics.mean, np.where(statistics.std > 0, statistics.std, 1))
    documents = PreparedDocuments(prepared, "train", encoding, safe)
    latents = [latent for n in _spread(documents) for latent in documents.latents(n)]
    alpha = float(cosine(1000).alpha_bar[int(LATE * 1000)])
    return Encodings(
        statistics,
        float(np.mean([latent.std((0, 1)).max() < BLANK for latent in latents])),
        float(np.var(np.concatenate([_coarse(latent) for latent in latents])) * alpha / (1 - alpha)),
    )


def _coarse(latent: np.ndarray) -> np.ndarray:
    """An image's coarse shape, flat: the means of its blocks by what such means of unit noise deviate by."""
    side = min(COARSE, *latent.shape[:2])
    high, wide = (size // side for size in latent.shape[:2])
    blocks = latent[: side * high, : side * wide].reshape(side, high, side, wide, -1)
    return blocks.mean((1, 3)).ravel() * np.float32(np.sqrt(high * wide))


def entries_used(prepared: Prepared, encoding: str) -> int:
    """How many entries of a codebook stand in images from all over the training part."""
    documents = PreparedDocuments(prepared, "train", encoding, None)
    return len(np.unique(np.concatenate([c.ravel() for n in _spread(documents) for c in documents.latents(n)])))


def _spread(documents: PreparedDocuments) -> Iterator[int]:
    """Numbers of the records of documents with images, evenly spread."""
    pictured = np.flatnonzero(documents.images)
    for place in np.unique(np.linspace(0, len(pictured) - 1, min(SAMPLED, len(pictured))).astype(int)):
        yield documents.first_record(int(pictured[place]))


def findings(prepared: Prepared, measured: dict[str, Encodings]) -> list[str]:
    """What is wrong, each with what mends it."""
    manifest, found = prepared.manifest, list(_miscounted(prepared))
    train, held_out = (manifest["splits"][split] for split in SPLITS)
    if not train["documents"]:
        found.append(
            "nothing is left to train on: prepare with a smaller --held-out, or look into quarantine.jsonl"
        )
    if train["documents"] and not held_out["documents"]:
        found.append("nothing is held out: prepare with a larger --held-out, or name data.sources.NAME.held_out")
    unused = sum(manifest["quarantine"].values())
    total = unused + train["documents"] + held_out["documents"]
    if unused > 0.05 * total:
        found.append(f"{unused / total:.0%} of the records are not used: quarantine.jsonl says why, line by line")
    for name, one in measured.items():
        if np.any(one.statistics.std == 0):
            found.append(
                f"a channel of {name} is constant: nothing can be learnt of it; --channels 1 for grey images"
            )
        if one.blank > 0.02:
            found.append(f"{one.blank:.0%} of the images show nothing in {name}: leave them out of the inputs")
        if one.late_signal > HIDDEN:
            found.append(
                f"in {name} an image's coarse shape is still seen at {LATE:.0%} of the noise "
                f"({one.late_signal:.1f} times the noise): the schedule is made for smaller images. Encode with an "
                "autoencoder, or prepare with a smaller --image-size"
            )
    return found


def damaged_shards(prepared: Prepared) -> list[str]:
    """Files whose bytes are not those that were written, each with its remedy; all files are read."""
    found = list(_damaged(prepared))
    if prepared.native and not found and not isinstance(prepared.folder, BucketPath):
        for encoding in prepared.manifest["encodings"]:
            found += _refused(partial(_check_records, prepared, encoding))
    return found


def _check_records(prepared: Prepared, encoding: str) -> None:
    """Raises DamagedData where a record holds images of other shapes than index and manifest say; all are read."""
    seen: Counter[tuple[int, int]] = Counter()
    for split in SPLITS:
        documents = PreparedDocuments(prepared, split, encoding, None)
        areas = documents.areas(slice(None))
        for number in np.flatnonzero(documents.images).tolist():
            shapes = [image.shape[:2] for image in documents.stored(documents.first_record(number))]
            seen.update(shapes)
            counted, area = int(documents.images[number]), int(areas[number])
            if len(shapes) != counted or sum(math.prod(shape) for shape in shapes) != area:
                raise DamagedData(
                    f"document {number} ({split}) has images of {shapes} in {encoding}, and the index counts "
                    f"{counted} with {area} places: {REPREPARE}"
                )
    if dict(seen) != prepared.shapes(encoding):
        raise DamagedData(f"the shapes of {encoding} in data.json are not those of its records: {REPREPARE}")


def _miscounted(prepared: Prepared) -> Iterator[str]:
    """Where the shapes that the manifest counts are not of as many images and pixels as the index."""
    if not prepared.native:
        return
    images, pixels = (
        sum(int(prepared.column(split, name).sum(dtype=np.int64)) for split in SPLITS)
        for name in ("images", "areas")
    )
    for name in prepared.manifest["encodings"]:
        shapes = prepared.shapes(name)
        places = sum(height * width * count for (height, width), count in shapes.items())
        factor = math.isqrt(pixels // max(places, 1))
        whole = {(factor * height, factor * width): count for (height, width), count in shapes.items()}
        if sum(shapes.values()) != images or factor**2 * places != pixels or whole != prepared.shapes("pixels"):
            yield (
                f"the shapes of {name} in data.json are of {sum(shapes.values()):,} images with {places:,} places, "
                f"and the index counts {images:,} images with {pixels:,} pixels: {REPREPARE}"
            )


def _damaged(prepared: Prepared) -> Iterator[str]:
    folder, manifest = prepared.folder, prepared.manifest
    for name, expected in manifest.get("index", {}).items():
        yield from _changed(folder / "index" / name, expected, REPREPARE)
    if "quarantine_hash" in manifest:
        yield from _changed(folder / "quarantine.jsonl", manifest["quarantine_hash"], REPREPARE)
    yield from _refused(lambda: prepared.tokenizer)
    for about in manifest["encodings"].values():
        coder = about["autoencoder"], about["autoencoder_hash"]
        yield from _refused(partial(autoencoders.load_saved_autoencoder, folder, *coder))
    yield from _refused(lambda: _read_if_there(folder / "job.json", dict))
    for number, shard in enumerate(manifest["shards"]):
        for kind, expected in shard["sha256"].items():
            yield from _changed(shard_file(folder, kind, number), expected, remedy(kind, number))
        for kind in ("documents", *shard["sha256"].keys() - {"documents", "pixels"}):
            yield from _refused(partial(_check_report, folder, number, kind, shard["sha256"]))


def _check_report(folder: Place, number: int, kind: str, written: dict[str, Any]) -> None:
    """Raises DamagedFile where what is known of a shard, beside the manifest, is not what was written."""
    path = folder / "shards" / (f"{number:05d}.json" if kind == "documents" else f"{number:05d}.{kind}.json")
    report = _read_if_there(path, {"sha256": (str, {...: str}), "hashes?": {"columns?": str, "faults?": str}})
    known = report.get("sha256", {})
    if (known if isinstance(known, dict) else {kind: known}).items() - written.items():
        raise DamagedFile(f"{path} is of another shard: {remedy(kind, number)}")
    endings = {"columns": "npz", "faults": "quarantine.jsonl"}
    for name, expected in report.get("hashes", {}).items():
        for line in _changed(folder / "shards" / f"{number:05d}.{endings[name]}", expected, REPREPARE):
            raise DamagedFile(line)


def _read_if_there(path: Place, form: Any) -> dict[str, Any]:
    return read_json(path, REPREPARE, form) if path.exists() else {}


def _changed(path: Place, expected: str, remedy: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing: {remedy}"
    elif sha256(path) != expected:
        yield f"{path.name} is damaged: {remedy}"


def _refused(read: Callable[[], object]) -> Iterator[str]:
    try:
        read()
    except UserError as error:
        yield str(error)
