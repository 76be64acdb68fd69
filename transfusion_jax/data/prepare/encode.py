"""Prepared pixels into the latents of an autoencoder: the second stage, on the accelerators of a host."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

from transfusion_jax.autoencoder import Autoencoder
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import require
from transfusion_jax.data.prepare.job import PrepareJob
from transfusion_jax.data.prepare.progress import ImageProgress, Progress
from transfusion_jax.data.prepare.shard import SIDES, WRITE, ShardWriter, columns_file, read_report, report_file
from transfusion_jax.data.store.dataset import SUMS, latents_of, remedy, shard_file
from transfusion_jax.data.store.latent_stats import Moments
from transfusion_jax.data.store.record import DamagedRecord, belonging, pack_images, unpack_images, unseal
from transfusion_jax.storage.atomic import DamagedFile, parse_json, write_json
from transfusion_jax.storage.paths import Place, on_disk, read_all, size_of

BATCH = 64  # images encoded together; a shard's last batch is filled up
OF_A_SHAPE = 16  # the same where images have their own proportions, and the last batch of each shape is filled up
REMEDY = "delete it and run the command that encoded it again"
OF_ENCODING = {  # the form of what is known of a shard in an encoding
    **{"autoencoder": str, "autoencoder_hash": str, "dtype": str, "shape": [int], "sha256": str},
    "moments": (None, SUMS),
    "factor?": int,  # pixels of a side by latent pixels, where images have their own proportions
}
LOG_VARIANCE = "-log-variance"  # of a second encoding, beside the means


def encoding_file(folder: Place, name: str, shard: int) -> Place:
    """What is known of a finished shard in an encoding."""
    return folder / "shards" / f"{shard:05d}.{name}.json"


class Encoders:
    """Encodes shards in the background, one at a time on each local device.

    Batches are formed inside a shard, of images of one shape in its order: the same hardware writes the same bytes.
    """

    def __init__(self, folder: Place, job: PrepareJob, autoencoder: Autoencoder, log_variances: bool) -> None:
        self._folder, self._job, self._autoencoder, self._log_variances = folder, job, autoencoder, log_variances
        self._devices: SimpleQueue[jax.Device] = SimpleQueue()
        devices = jax.local_devices()
        for device in devices:
            self._devices.put(device)
        self._pool = ThreadPoolExecutor(len(devices))
        self._futures: list[Future[int]] = []
        self._begun = 0.0
        self._encode = autoencoder.encode

    def submit(self, shard: int) -> None:
        """Encodes a shard whose pixels are there, unless it is encoded already."""
        if _is_encoded(self._folder, _names(self._autoencoder, self._log_variances), shard):
            return
        if not self._futures:
            self._begun = time.monotonic()
        self._futures.append(self._pool.submit(self._run, shard))

    def finish(self, report: Callable[[Progress], None]) -> None:
        """Waits for all, and tells of each that has ended; raises what went wrong in one."""
        images = 0
        for done, future in enumerate(as_completed(self._futures), 1):
            images += future.result()
            report(ImageProgress(done, len(self._futures), time.monotonic() - self._begun, images))

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _run(self, shard: int) -> int:
        device = self._devices.get()
        try:
            with jax.default_device(device):
                return encode_shard(
                    self._folder, self._job, shard, self._autoencoder, self._encode, self._log_variances
                )
        finally:
            self._devices.put(device)


def encode_shard(
    folder: Place,
    job: PrepareJob,
    number: int,
    autoencoder: Autoencoder,
    encode: Callable[[np.ndarray], Any],
    log_variances: bool,
) -> int:
    """Writes a shard's images as means in float16, or as codes; with their log-variances, if asked.

    Returns:
        How many images it holds.

    Raises:
        ConfigError: log-variances are asked of an autoencoder that has none.
    """
    names = _names(autoencoder, log_variances)
    shard = read_report(report_file(folder, number))
    columns = np.load(io.BytesIO(columns_file(folder, number).read_bytes()))
    images = np.zeros(shard["records"], np.int64)
    images[columns["record"]] = columns["images"]
    train = np.zeros(shard["records"], bool)
    train[columns["record"]] = ~columns["held_out"]
    train_images = np.flatnonzero(np.repeat(train, images)).tolist()
    native = job.reading.native is not None
    sides = columns[SIDES] if native else np.full((int(images.sum()), 2), job.reading.image_size)
    encoded: list[dict[int, np.ndarray]] = [{} for _ in names]  # by the number of the image in the shard
    for members, batch in _batches(folder, job, number, shard, images, sides):
        found = encode(latents_of(batch))
        require(
            not log_variances or found.log_variance is not None,
            f"autoencoder {autoencoder.name!r} has no log-variances: leave --log-variances out",
        )
        kinds = (found.mean if found.codes is None else found.codes, found.log_variance)
        for values, kind in zip(encoded, kinds, strict=False):
            values |= zip(members, _stored(np.asarray(kind)), strict=False)  # without what filled the batch up
    ends = np.cumsum(images)
    for name, values in zip(names, encoded, strict=True):
        path, belongs = (
            shard_file(folder, name, number),
            belonging(name, autoencoder.hash(), shard["input"], number),
        )
        with ShardWriter(path, WRITE, belongs) as file:
            for begin, end in zip((ends - images).tolist(), ends.tolist(), strict=True):
                file.write(pack_images([values[image] for image in range(begin, end)], of_one_shape=not native))
        one, training = values[0], [values[image] for image in train_images]
        report = {
            "autoencoder": autoencoder.name,
            "autoencoder_hash": autoencoder.hash(),
            "dtype": one.dtype.str,
            "shape": [0, 0, *one.shape[2:]] if native else list(one.shape),
            "moments": Moments.of_all(training, one.shape[-1]).to_dict() if one.dtype == np.float16 else None,
            "sha256": file.sha256,
            "bytes": file.size,
            "sealed": True,
        }
        if native:
            report["factor"] = autoencoder.image_shape((1, 1, job.channels))[0]
        write_json(encoding_file(folder, name, number), report)
    return int(images.sum())


def _names(autoencoder: Autoencoder, log_variances: bool) -> list[str]:
    return [autoencoder.name] + [autoencoder.name + LOG_VARIANCE] * log_variances


def _is_encoded(folder: Place, names: list[str], number: int) -> bool:
    """Whether nothing is left to encode; so it is with a shard without images."""
    if not read_report(report_file(folder, number))["pictured"]:
        return True
    for name in names:
        report, path = encoding_file(folder, name, number), shard_file(folder, name, number)
        if not report.exists() or not path.is_file():
            return False
        try:
            written = read_report(report, OF_ENCODING).get("bytes")
        except DamagedFile:
            return False
        if written not in (None, size_of(path)):
            return False
    return True


def _batches(
    folder: Place, job: PrepareJob, number: int, shard: dict[str, Any], images: np.ndarray, sides: np.ndarray
) -> Iterator[tuple[list[int], np.ndarray]]:
    """A shard's images in batches of one shape: their numbers in it, and their pixels `[n, h, w, c]` uint8.

    The images of a shape come in order; where the last of them are fewer than n, that one fills the batch up.

    Args:
        folder: the prepared folder.
        job: its job.
        number: the shard's.
        shard: its report.
        images: how many images each of its records holds, `[records]`.
        sides: the height and width of each image, `[images of all, 2]`.

    Raises:
        DamagedFile: they are not what was written.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    belongs = belonging("pixels", Identity().hash(), shard["input"], number)
    size, side = (OF_A_SHAPE, 0) if job.reading.native else (BATCH, job.reading.image_size)
    owners, firsts = np.repeat(np.arange(len(images)), images).tolist(), (np.cumsum(images) - images).tolist()
    path = shard_file(folder, "pixels", number)
    with ExitStack() as stack:
        reader = ArrayRecordReader(str(stack.enter_context(on_disk(path))), "readahead_buffer_size:0")
        stack.callback(reader.close)

        @lru_cache(maxsize=1)
        def read(record: int) -> list[np.ndarray]:
            try:
                data = reader.read([record])[0]
                data = unseal(data, belongs, record) if shard.get("sealed") else data
            except (RuntimeError, DamagedRecord) as error:  # array_record raises the first
                raise DamagedFile(f"{path} is damaged ({error}): {remedy('pixels', number)}") from error
            return unpack_images(data, np.dtype(np.uint8), (side, side, job.channels))

        for shape in np.unique(sides, axis=0):
            alike = np.flatnonzero((sides == shape).all(1)).tolist()
            for members in (alike[at : at + size] for at in range(0, len(alike), size)):
                pixels = [read(owners[image])[image - firsts[owners[image]]] for image in members]
                yield members, np.stack(pixels + pixels[-1:] * (size - len(members)))


def _stored(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2") if np.issubdtype(values.dtype, np.floating) else values.astype("<i4")


def encodings(folder: Place, pictured: list[int], keys: bytes) -> dict[str, dict[str, Any]]:
    """What the manifest says of the encodings that every shard with images has, by name, and each file's hash."""
    found: dict[str, dict[str, Any]] = {}
    if not pictured:
        return found
    prefix = f"{pictured[0]:05d}."
    there = {path.name for path in (folder / "shards").iterdir()}
    firsts = sorted(name for name in there if name.startswith(prefix) and name.endswith(".json"))
    for name in (first.removeprefix(prefix).removesuffix(".json") for first in firsts):
        files = [encoding_file(folder, name, number) for number in pictured]
        if not all(file.name in there for file in files):
            continue
        reports = [
            parse_json(data, file, REMEDY, OF_ENCODING) for file, data in zip(files, read_all(files), strict=True)
        ]
        first = reports[0]
        moments = [Moments.from_dict(report["moments"]) for report in reports if report["moments"]]
        total = sum(moments[1:], moments[0]) if moments else None
        found[name] = {
            key: first[key]
            for key in ("autoencoder", "autoencoder_hash", "dtype", "shape", "factor")
            if key in first
        } | {
            "moments": total.to_dict() if total else None,
            "hash": hashlib.sha256(keys + f"{name} {first['autoencoder_hash']}".encode()).hexdigest()[:16],
            "files": {
                str(number): {key: report[key] for key in ("sha256", "sealed") if key in report}
                for number, report in zip(pictured, reports, strict=True)
            },
        }
    return found
