"""The recipes of docs/data.md, on little data: from files to a run that trains."""

import json
from pathlib import Path

import mistral_common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.readers.samples import photographs, write_images, write_tar
from transfusion_jax.cli import main
from transfusion_jax.data.store.dataset import Prepared

pytestmark = pytest.mark.slow

TOKENIZER = Path(mistral_common.__file__).parent / "data/tokenizer.model.v1"
CONFIG = Path(__file__).parents[2] / "configs/debug.py"
PHOTOS = CONFIG.with_name("photos.py")
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
