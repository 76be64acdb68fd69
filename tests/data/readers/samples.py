"""Ten photographs with captions in every format, written by others' tools; and reading as tests do it."""

from __future__ import annotations

import csv
import functools
import io
import json
import subprocess
import sys
import tarfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from transfusion_jax.data.readers import (
    Fault,
    RawDocument,
    RawImage,
    RawText,
    ReadOptions,
    input_shards,
    read_shard,
)

PYTHON = sys.executable
BUILDER = """
import io, json, sys
from pathlib import Path
import numpy as np
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        captions = features.Sequence({"id": np.int64, "text": features.Text()})
        return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=features.FeaturesDict(
            {"image": features.Image(), "image/filename": features.Text(), "captions": captions}))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        texts = json.loads(Path(sys.argv[1], "captions.json").read_text())
        for number, (name, captions) in enumerate(texts.items()):
            image = io.BytesIO(Path(sys.argv[1], name).read_bytes())
            captions = [{"id": i, "text": caption} for i, caption in enumerate(captions)]
            yield number, {"image": image, "image/filename": name, "captions": captions}
"""
BUILD = """
import sys
import tensorflow_datasets as tfds
from photos.photos_dataset_builder import Builder
download = tfds.download.DownloadConfig(try_download_gcs=False)
Builder(data_dir=sys.argv[2], file_format="array_record").download_and_prepare(download_config=download)
"""


@functools.cache
def photographs():
    """Ten parts of scikit-learn's photographs, as files' bytes by name."""
    result = {}
    for number in range(10):
        name = ("china.jpg", "flower.jpg")[number % 2]
        whole = Image.open(io.BytesIO(files("sklearn.datasets.images").joinpath(name).read_bytes()))
        part = whole.crop((50 * number, 30 * number, 50 * number + 64, 30 * number + 48))
        result[f"{number:04}.png"] = encoded(part, "PNG")
    return result


def captions():
    return {f"{number:04}.png": f"photograph {number}, ça va" for number in range(10)}


def pair(caption, image):
    return (RawText(caption), RawImage(image))


def expected():
    return [pair(caption, photographs()[name]) for name, caption in captions().items()]


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def draw(path, size, colour, **said):
    """A PNG of one colour whose left column is clear, and what its chunks of text say."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, info = Image.new("RGBA", size, colour), PngInfo()
    image.paste((0, 0, 0, 0), (0, 0, 1, size[1]))
    for name, text in said.items():
        info.add(b"tEXt", f"{name}\0{text}".encode())  # Latin-1 by the standard; Inkscape wrote UTF-8
    image.save(path, pnginfo=info)


def read(*inputs, format=None, **options):
    """Every record of the inputs, in order."""
    options = ReadOptions(**options)
    shards = input_shards([str(i) for i in inputs], format, options)
    return [record for shard in shards for record in read_shard(shard, options)]


def segments(records):
    assert [r for r in records if isinstance(r, Fault)] == []
    return [r.segments for r in records]


def outcomes(records):
    """Key by key: the segments, or the first words of the fault's reason."""
    return {r.key: r.segments if isinstance(r, RawDocument) else r.reason.partition(":")[0] for r in records}


def tar(members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tar(folder):
    import webdataset  # not above: it imports PyTorch where that is installed

    with webdataset.TarWriter(str(folder / "photographs.tar")) as writer:
        for name, image in photographs().items():
            writer.write({"__key__": name[:4], "png": image, "txt": captions()[name], "json": {"url": "x"}})
    return folder / "photographs.tar", {}


def write_parquet(folder):
    images = [{"bytes": image, "path": name} for name, image in photographs().items()]
    pq.write_table(
        pa.table({"image": images, "caption": list(captions().values())}), folder / "photographs.parquet"
    )
    return folder / "photographs.parquet", {}


def write_jsonl(folder):
    write_images(folder)
    lines = [json.dumps({"image": name, "caption": caption}) for name, caption in captions().items()]
    (folder / "photographs.jsonl").write_text("\n".join(lines))
    return folder / "photographs.jsonl", {}


def write_segments(folder):
    write_images(folder / "images")
    lines = [json.dumps({"segments": [{"text": caption}, {"image": name}]}) for name, caption in captions().items()]
    (folder / "photographs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "photographs.jsonl", {"images": str(folder / "images")}


def write_texts(folder):
    write_images(folder)
    for name, caption in captions().items():
        (folder / name).with_suffix(".txt").write_text(caption + "\n")
    return folder, {}


def write_metadata_jsonl(folder):
    write_images(folder / "train")
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in captions().items()]
    (folder / "train/metadata.jsonl").write_text("\n".join(lines))
    return folder, {}


def write_metadata_csv(folder):
    write_images(folder / "images")
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "file_name"])
        writer.writerows([caption, f"images/{name}"] for name, caption in captions().items())
    return folder, {}


def write_coco(folder):
    write_images(folder / "images")
    numbers = {name: 10 - number for number, name in enumerate(captions())}
    images = [{"id": number, "file_name": name} for name, number in numbers.items()]
    notes = [{"id": 7, "image_id": numbers[name], "caption": caption} for name, caption in captions().items()]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return folder / "captions.json", {"format": "coco", "images": str(folder / "images")}


def write_tfds(folder):
    build_tfds(folder, {name: [caption] for name, caption in captions().items()})
    return "tfds:photos:train", {"data_dir": str(folder / "tfds")}


def build_tfds(folder, captions):
    """Runs TFDS's own builder; in a process of its own, since a builder must live in a package."""
    write_images(folder / "source")
    (folder / "source/captions.json").write_text(json.dumps(captions))
    (folder / "photos").mkdir()
    (folder / "photos/__init__.py").touch()
    (folder / "photos/photos_dataset_builder.py").write_text(BUILDER)
    command = [PYTHON, "-c", BUILD, str(folder / "source"), str(folder / "tfds")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def write_images(folder: Path):
    folder.mkdir(exist_ok=True)
    for name, image in photographs().items():
        (folder / name).write_bytes(image)


WRITERS = {
    "webdataset": write_tar,
    "parquet": write_parquet,
    "jsonl": write_jsonl,
    "segments": write_segments,
    "texts": write_texts,
    "metadata.jsonl": write_metadata_jsonl,
    "metadata.csv": write_metadata_csv,
    "coco": write_coco,
    "tfds": write_tfds,
}
