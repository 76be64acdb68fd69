"""How fast rows come out of prepared data, beside a plain WebDataset loader of the same latents and tokens; how
fast they do where images keep their proportions, beside squares of the same; and how fast images are prepared,
beside decoding and resizing them with Pillow alone. One core each, in one run.

    python benchmarks/data.py

WebDataset's loader only yields each pair's arrays. Ours also packs them into rows of 4,096 elements and makes of
them what a training step reads: targets, spans, positions, normalised latents.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import fsspec
import mistral_common
import numpy as np
import webdataset
from PIL import Image

import harness
from emulator import bucket
from harness import compare
from transfusion_jax import config as configs
from transfusion_jax.config import Config, ModelConfig
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.document_rows import DocumentRows, make_rows
from transfusion_jax.data.documents import Image as Picture
from transfusion_jax.data.documents import Text
from transfusion_jax.data.prepare import PrepareJob, begin_job
from transfusion_jax.data.prepare.shard import prepare_shard
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.data.store.dataset import Prepared, PreparedDocuments
from transfusion_jax.data.stream import batches

TOKENIZER = Path(mistral_common.__path__[0]) / "data" / "tokenizer.model.v1"
ENCODING = "dct-f8c8"  # 256 pixels become the paper's 32×32×8, so that an image is 256 patches
SIZE = 256
ASPECTS = {  # of the same photographs
    "squares": ["--image-size", str(SIZE)],
    # sides of whole patches leave some of an area over: with this one, images have as many as squares on average
    "any shape": ["--aspect", "native", "--area", f"{SIZE}x{SIZE + 10}", "--multiple", "16"],
    "any shape, smaller": ["--aspect", "native", "--area", f"{SIZE}x{SIZE}", "--multiple", "16"],
}
ROWS = 100  # in each round, timed one by one: machines drift by more than images of several shapes cost
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # scikit-learn's, 640×427


def main() -> None:
    """Measures and prints two tables."""
    flags = harness.parser(__doc__, plot=True)
    flags.add_argument("--pairs", type=int, default=2000, help="captioned images (default: %(default)s)")
    flags.add_argument("--photographs", type=int, default=64, help="to prepare (default: %(default)s)")
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as name, bucket("data") as url:
        folder = Path(name)
        os.environ["TRANSFUSION_CACHE"] = str(folder / "plans")
        config = prepare_pairs(folder / "pairs", f"shapes:{arguments.pairs}", ASPECTS["squares"])
        crops = write_crops(folder / "crops.tar", arguments.pairs // 2)
        by_aspect = {
            name: prepare_pairs(folder / name, str(crops), words, max_side=0 if name == "squares" else 64)
            for name, words in ASPECTS.items()
        }
        tar, elements = write_pairs(folder / "pairs", folder / "pairs.tar", config.model)
        photographs = write_photographs(folder / "photographs.tar", arguments.photographs)
        fsspec.filesystem("gs").put(str(photographs), f"{url}/photographs.tar")
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        rows = open_rows(config)
        own_elements = elements_of(rows)
        shaped = {name: open_rows(one) for name, one in by_aspect.items()}
        prepared = {
            "decode and resize alone": lambda: resize(photographs),
            "prepare": preparing(str(photographs), folder),
            "prepare from gs://": preparing(f"{url}/photographs.tar", folder),
        }
        reports = {
            "reading": compare(
                f"{arguments.pairs:,} captioned images, {elements:,} elements, one core",
                {"transfusion_jax": lambda: read_rows(rows, own_elements), "WebDataset": lambda: read_tar(tar)},
                reference="WebDataset",
                rounds=arguments.rounds,
                work={"transfusion_jax": own_elements, "WebDataset": elements},
                unit="elements/s",
            ),
            "shapes": compare(
                f"rows of {arguments.pairs // 2:,} photographs of proportions from 1:2 to 2:1, one core",
                {name: reading_on(rows) for name, rows in shaped.items()},
                reference="squares",
                rounds=arguments.rounds * ROWS,
                work={name: elements_of(rows) / rows.epoch for name, rows in shaped.items()},
                unit="elements/s",
                notes=[f"patches of an image: {', '.join(map(patches_of, shaped, shaped.values()))}"],
            ),
            "preparing": compare(
                f"{arguments.photographs} photographs of 640×427 to {SIZE}×{SIZE}, one core",
                prepared,
                reference="decode and resize alone",
                rounds=arguments.rounds,
                work=dict.fromkeys(prepared, arguments.photographs),
                unit="images/s",
                notes=["gs:// is an emulator on this machine, on another core"],
            ),
        }
    result = {name: dataclasses.asdict(report) for name, report in reports.items()}
    panels = list(reports.values())
    harness.deliver(result, "\n\n".join(map(harness.table, panels)), arguments.json, arguments.plot, panels)


def prepare_pairs(folder: Path, path: str, aspect: list[str], max_side: int = 0) -> Config:
    """Captioned images with their latents, and a config that reads all of them."""
    options = [*aspect, "--tokenizer", str(TOKENIZER), "--encode", ENCODING, "--held-out", "0"]
    command = [sys.executable, "-m", "transfusion_jax.cli", "prepare", path, "--output", str(folder)]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    model = dict(
        **dict(width=64, layers=1, heads=1, mlp_width=64, vocabulary=32_000, patch_size=2),
        **dict(latent_shape=(32, 34, 8) if max_side else (32, 32, 8), max_side=max_side),
    )
    data = dict(
        sources=dict(pairs=dict(path=str(folder))),
        encoding=ENCODING,
        context_length=4096,
        max_images=24 if max_side else 16,
        caption_dropout=0.0,
    )
    return configs.parse(dict(name="data", seed=0, steps=1, batch_rows=1, model=model, data=data))


def write_pairs(folder: Path, tar: Path, model: ModelConfig) -> tuple[Path, int]:
    """The same latents and tokens as a WebDataset tar, and the elements that they are in a row."""
    prepared = Prepared.open(folder)
    documents = PreparedDocuments(prepared, "train", ENCODING, prepared.moments(ENCODING).statistics())
    elements = 0
    with webdataset.TarWriter(str(tar)) as writer:
        for number in range(len(documents.images)):
            document = documents[number]
            elements += document.length(model)
            text, image = document.segments
            assert isinstance(text, Text)
            assert isinstance(image, Picture)
            sample = {"tokens.npy": text.tokens, "latent.npy": image.latent.astype(np.float16)}
            writer.write({"__key__": f"{number:06}", **sample})
    return tar, elements


def open_rows(config: Config) -> DocumentRows:
    """The stream of one epoch after the other, planned."""
    data = load_data(config)
    return make_rows(data.train, config, data.codec.special, log=lambda line: None)


def elements_of(rows: DocumentRows) -> int:
    """Of the first epoch."""
    return int(rows.planner.find(0).plan.piece_length.sum())


def reading_on(rows: DocumentRows) -> Callable[[], object]:
    """Reads the next row of the first epoch; after its last row it starts again from the first."""
    numbers = itertools.cycle(range(rows.epoch))
    return lambda: rows[next(numbers)]


def patches_of(name: str, rows: DocumentRows) -> str:
    """How many an image has on average."""
    (source,) = rows.corpus.sources
    return f"{source.documents.areas(slice(None)).mean() / rows.config.model.patch_area:.1f} ({name})"


def read_rows(rows: DocumentRows, elements: int) -> None:
    """One epoch, as training reads it, without further processes. Some are read twice to fill the last row."""
    with batches(rows, 0, 1, slice(0, 1), workers=0) as stream:
        read = sum(int(np.sum(batch.source >= 0)) for batch in itertools.islice(stream, rows.epoch))
    assert read == elements


def read_tar(tar: Path) -> None:
    """Every sample of the tar once."""
    samples = webdataset.WebDataset(str(tar), shardshuffle=False).decode().to_tuple("latent.npy", "tokens.npy")
    for latent, tokens in samples:
        assert latent.shape == (32, 32, 8)
        assert tokens.ndim == 1


def write_photographs(tar: Path, count: int) -> Path:
    """Photographs with captions; each is different in its last row."""
    with webdataset.TarWriter(str(tar)) as writer:
        for number in range(count):
            name = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
            pixels = np.array(Image.open(io.BytesIO(files("sklearn.datasets.images").joinpath(name).read_bytes())))
            pixels[-1] = number
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=90)
            writer.write({"__key__": f"{number:06}", "jpg": file.getvalue(), "txt": f"photograph {number}"})
    return tar


def write_crops(tar: Path, count: int) -> Path:
    """Parts of the photographs, of proportions from 1:2 to 2:1 and an area of a square of 300, with captions."""
    random = np.random.default_rng(0)
    photographs = [
        Image.open(io.BytesIO(files("sklearn.datasets.images").joinpath(name).read_bytes())) for name in PHOTOGRAPHS
    ]
    with webdataset.TarWriter(str(tar)) as writer:
        for number in range(count):
            whole, wider = photographs[number % len(PHOTOGRAPHS)], 2.0 ** random.uniform(-0.5, 0.5)
            width, height = round(300 * wider), round(300 / wider)
            left, top = (int(random.integers(0, room)) for room in (whole.width - width, whole.height - height))
            file = io.BytesIO()
            whole.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=90)
            writer.write({"__key__": f"{number:06}", "jpg": file.getvalue(), "txt": f"photograph {number}"})
    return tar


def resize(tar: Path) -> None:
    """What any preparing of the photographs must do."""
    for (data,) in webdataset.WebDataset(str(tar), shardshuffle=False).to_tuple("jpg"):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        left = (image.width - image.height) / 2
        box = (left, 0, left + image.height, image.height)
        assert np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box)).shape == (SIZE, SIZE, 3)


def preparing(path: str, folder: Path) -> Callable[[], None]:
    """Prepares a tar into a folder that is made anew each time."""
    options = ReadOptions(image_size=SIZE)
    tokenizer = tokenizers.load_tokenizer(str(TOKENIZER))
    job = PrepareJob(tuple(input_shards([path], None, options)), options, tokenizer.name)

    def run() -> None:
        output = folder / "prepared"
        begin_job(job, tokenizer, output)
        assert not prepare_shard(output, job, 0)["faults"]
        shutil.rmtree(output)

    return run


if __name__ == "__main__":
    main()
