"""The recipes of docs/data.md, on little data: from files to a run that trains."""

import json
from pathlib import Path

import mistral_common
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.readers.samples import photographs, write_images, write_tar
from transfusion_jax.cli import main
from transfusion_jax.data.store.dataset import Prepared

pytestmark = pytest.mark.slow

TOKENIZER = Path(mistral_common.__file__).parent / "data/tokenizer.model.v1"
CONFIG = Path(__file__).parents[2] / "configs/debug.py"
PHOTOS, STAMPS = CONFIG.with_name("photos.py"), CONFIG.with_name("stamps.py")
TINY = (  # beside what each recipe trains on
    "--config.batch_rows=8",
    "--config.loop.log_every=1",
    "--config.loop.save_every=2",
    "--config.loop.evaluate_every=0",
    "--config.model.latent_shape=(8,8,3)",
    "--config.data.max_images=12",
)


@pytest.fixture
def photos(tmp_path):
    """A folder of ten photographs with captions."""
    write_images(tmp_path / "photos")
    for number, name in enumerate(photographs()):
        (tmp_path / "photos" / name).with_suffix(".txt").write_text(f"photograph {number}\n")
    return tmp_path / "photos"


def test_photographs_are_tuned_from_given_weights_and_seen_as_those_saw_theirs(photos, tmp_path):
    prepare("shapes:60", "--output", tmp_path / "shapes", "--image-size", 8)
    prepare(photos, "--output", tmp_path / "data", "--image-size", 8)
    first = train(tmp_path / "first", {"shapes": {"path": str(tmp_path / "shapes")}}, steps=2)
    tuned = train(tmp_path / "tuned", {"photos": {"path": str(tmp_path / "data")}}, 3, "--init-from", first)
    latents = [json.loads((run / "manifest.json").read_text())["codec"]["latents"] for run in (first, tuned)]
    assert latents[0] == latents[1]
    assert latents[0] != Prepared.open(tmp_path / "data").moments("pixels").statistics().to_dict()
    assert steps(tuned) == [1, 2, 3]


def test_photographs_are_trained_on_by_their_own_config(photos, tmp_path):
    """As its first lines say, with fewer photographs: half are held out."""
    said = PHOTOS.read_text()
    options = said.partition("--output data/photos ")[2].partition("\n")[0].split()
    assert options == ["--image-size", "32", "--held-out", "0.1", "--encode", "dct-f4c12"]
    options[options.index("0.1")] = "0.5"
    assert main(["prepare", str(photos), "--output", str(tmp_path / "data"), *options]) == 0
    run = tmp_path / "run"
    fields = (f"--config.data.sources.photos.path={tmp_path / 'data'}", "--config.steps=2", "--config.batch_rows=8")
    cadence = ("--config.loop.log_every=1", "--config.loop.evaluate_every=2", "--config.loop.sample_every=0")
    assert main(["train", "--config", str(PHOTOS), "--workdir", str(run), *fields, *cadence]) == 0
    assert steps(run)[:2] == [1, 2]
    assert main(["doctor", str(tmp_path / "data"), "--output", str(tmp_path / "sheet.png")]) == 0


@pytest.mark.parametrize("variant", ["", "native"])
def test_stamps_are_trained_on_as_squares_and_in_their_proportions(variant, tmp_path):
    """As the config's first lines say, with few stamps of many proportions and a smaller model."""
    stamps = tmp_path / "stamps/usr/share/tuxpaint/stamps"
    (stamps / "things").mkdir(parents=True)
    random = np.random.default_rng(0)
    sizes = ((60, 60), (90, 30), (30, 90), (70, 50), (20, 120), (200, 40), (64, 48), (8, 8))
    for number, (height, width) in enumerate(sizes * 3):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(stamps / f"things/{number}.png")
        (stamps / f"things/{number}.txt").write_text(f"Thing number {number}.")
    said = " ".join(STAMPS.read_text().replace("\\\\", "").split())
    name = f"data/stamps{'-native' if variant else ''}"
    options = said.partition(f"--output {name} ")[2].partition(" transfusion")[0].split()
    assert ("--aspect" in options) == bool(variant)
    options = ["bytes" if word == "bpe:512" else "0.4" if word == "0.1" else word for word in options]
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["prepare", f"stamps:{tmp_path / 'stamps'}", "--output", str(data), *options]) == 0
    fields = [f"--config.data.sources.stamps.path={data}", "--config.model.vocabulary=256"]
    fields += ["--config.model.layers=1", "--config.optimizer.warmup_steps=1", "--config.loop.sample_every=0"]
    fields += ["--config.loop.log_every=1", "--config.evaluation.rows=2", "--config.steps=3"]
    command = [
        "train",
        "--config",
        f"{STAMPS}:{variant}" if variant else str(STAMPS),
        "--workdir",
        str(run),
        *fields,
    ]
    assert main([*command, "--config.loop.stop_at=2"]) == 0
    assert main(command) == 0
    assert steps(run)[-1] == 3
    shapes = Prepared.open(data).shapes("dct-f4c12")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (len(shapes) > 3) == ("patches" in last or "loss_image/size_2" in last) == bool(variant)
    picture = tmp_path / "drawn.png"
    words = ["--prompt", "A thing.", "--sampling-steps", "2", "--output", str(picture)]
    assert main(["sample", "--workdir", str(run), *words]) == 0
    assert picture.is_file()


def test_a_phase_with_a_new_source_is_taken_up_on_resume(photos, tmp_path):
    prepare("shapes:60", "--output", tmp_path / "shapes", "--image-size", 8)
    prepare(photos, "--output", tmp_path / "data", "--image-size", 8)
    sources = {"shapes": {"path": str(tmp_path / "shapes")}}
    run = train(tmp_path / "run", sources, steps=2)
    more = sources | {"photos": {"path": str(tmp_path / "data"), "weight": 0}}
    phase = ("--config.data.phases={'24': {'photos': 1.0}}",)
    assert train(run, more, 4, *phase, code=2)
    accepted = "data_hash,data.phases.24,data.sources.photos.weight,steps"
    train(run, more, 4, *phase, "--accept-changes", accepted)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [("loss_image/source_photos" in line, "loss_image/source_shapes" in line) for line in lines] == [
        (False, True),
        (False, True),
        (False, True),
        (True, False),
    ]


def test_tars_and_tables_of_text_are_mixed_under_a_tokenizer_with_32000_entries(tmp_path):
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars")
    texts = [f"A sentence about the number {n}. " * 20 for n in range(50)]
    pq.write_table(pa.table({"text": texts, "id": range(50)}), tmp_path / "texts.parquet")
    for inputs, name in ((tmp_path / "tars/*.tar", "pictures"), (tmp_path / "texts.parquet", "texts")):
        prepare(inputs, "--output", tmp_path / name, "--image-size", 8, "--tokenizer", TOKENIZER)
    sources = {name: {"path": str(tmp_path / name)} for name in ("pictures", "texts")}
    run = train(tmp_path / "run", sources, 2, "--config.model.vocabulary=32000")
    assert (run / "tokenizer.model").read_bytes() == TOKENIZER.read_bytes()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert abs(last["loss_text"] - np.log(32_000)) < 1
    assert {"loss_text/source_texts", "loss_text/source_pictures"} <= last.keys()


def prepare(*arguments):
    assert main(["prepare", *map(str, arguments), "--held-out", "0"]) == 0


def train(workdir, sources, steps, *arguments, code=0):
    fields = (f"--config.data.sources={sources}", f"--config.steps={steps}", *TINY)
    command = ["train", "--config", str(CONFIG), "--workdir", str(workdir), *fields, *map(str, arguments)]
    assert main(command) == code
    return workdir


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
