import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image as Picture

from data.readers.samples import WRITERS, captions, encoded, noise, photographs
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.data import tokenizer
from transfusion_jax.data.documents import Image, Text
from transfusion_jax.data.prepare import PrepareJob, begin_job, run_job
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.data.readers.pictures import decode
from transfusion_jax.data.store.dataset import PART, Prepared, PreparedDocuments
from transfusion_jax.storage.atomic import DamagedFile

pytestmark = pytest.mark.usefixtures("ready_workers")


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_gives_the_same_documents(format, tmp_path):
    (tmp_path / "in").mkdir()
    path, options = WRITERS[format](tmp_path / "in")
    name = options.pop("format", None)
    documents = whole(prepare(tmp_path / "out", [str(path)], name, **options))
    names = list(captions())
    assert documents.text_lengths.tolist() == [len(captions()[name].encode()) for name in names]
    assert documents.images.tolist() == [1] * 10
    for number, name in enumerate(names):
        text, image = documents[number].segments
        assert bytes(text.tokens.astype(np.uint8)).decode() == captions()[name]
        pixels = documents.statistics.restore(image.latent) * 127.5 + 127.5
        np.testing.assert_allclose(pixels, decode(photographs()[name], 32, 3), atol=1e-3)


def test_statistics_are_those_of_the_training_images(tmp_path):
    prepared = prepare(tmp_path / "out", [photos(tmp_path)], held_out=0.4)
    statistics = prepared.moments("pixels").statistics()
    train = PreparedDocuments(prepared, "train", "pixels", statistics)
    latents = np.stack([train[n].segments[1].latent for n in range(len(train.images))])
    assert 0 < len(latents) < 10
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-5)


def test_no_image_is_both_trained_on_and_held_out(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(30):
        write_png(folder / f"{number:02}.png", number)
        (folder / f"{number:02}.txt").write_text("\n".join(f"caption {i} of {number}" for i in range(4)))
    prepared = prepare(tmp_path / "out", [str(folder)], held_out=0.3)
    parts = []
    for split in ("train", "held_out"):
        documents = PreparedDocuments(prepared, split, "pixels", prepared.moments("pixels").statistics())
        images = [documents[n].segments[1].latent.tobytes() for n in range(len(documents.images))]
        assert len(images) == 4 * len(set(images)) > 0
        parts.append(set(images))
    assert len(parts[0] | parts[1]) == 30
    assert not parts[0] & parts[1]


def test_long_texts_are_read_in_part_from_bounded_records(tmp_path):
    texts = ["short", "".join(chr(97 + (i * i) % 26) for i in range(2 * PART + 5)), "x" * PART]
    documents = whole(prepare(tmp_path / "out", [jsonl(tmp_path, [{"text": text} for text in texts])]))
    assert documents.text_lengths.tolist() == [5, 2 * PART + 5, PART]
    assert documents.prepared.manifest["shards"][0]["records"] == 1 + 3 + 1
    for number, text in enumerate(texts):
        tokens = np.frombuffer(text.encode(), np.uint8)
        np.testing.assert_array_equal(documents[number].segments[0].tokens, tokens)
        for begin_at, end in ((0, 3), (PART - 2, PART + 2), (PART, PART), (2 * PART - 1, 3 * PART), (4, 10**9)):
            np.testing.assert_array_equal(documents.text(number, begin_at, end), tokens[begin_at:end])


def test_segments_keep_their_order_and_their_loss(tmp_path):
    write_png(tmp_path / "a.png", 1)
    write_png(tmp_path / "b.png", 2)
    edit = [{"image": "a.png", "loss": False}, {"text": "brighter", "loss": False}, {"image": "b.png"}]
    document = whole(prepare(tmp_path / "out", [jsonl(tmp_path, [{"segments": edit}])]))[0]
    assert [(type(s), s.loss) for s in document.segments] == [(Image, False), (Text, False), (Image, True)]
    assert not np.array_equal(document.segments[0].latent, document.segments[2].latent)


def test_what_cannot_be_used_is_reported_and_the_rest_is_there(tmp_path):
    write_png(tmp_path / "a.png", 1)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    lines = [
        {"image": "a.png", "caption": "one"},
        {"image": "broken.png", "caption": "two"},
        {"image": "a.png", "caption": ""},
        {"image": "a.png", "caption": "one"},
        {"image": "a.png", "caption": "another"},
    ]
    first, second = jsonl(tmp_path, lines, "1"), jsonl(tmp_path, [lines[-1], {"text": "alone"}], "2")
    prepared = prepare(tmp_path / "out", [first, second])
    assert prepared.manifest["splits"]["train"]["documents"] == 3
    report = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert len(report) == sum(prepared.manifest["quarantine"].values()) == 4
    assert prepared.manifest["quarantine"]["duplicate"] == 2
    assert {line["source"] for line in report} == {first, second}
    assert [line["key"] for line in report if line["source"] == second] == ["@0"]


def test_a_killed_run_that_goes_on_writes_the_bytes_of_a_clean_one(tmp_path):
    write_png(tmp_path / "a.png", 1)
    lines = [{"text": f"text {n} " * 2000} for n in range(300)] + [{"image": "a.png", "caption": "a"}]
    inputs = [jsonl(tmp_path, [*lines, {"text": name}], name) for name in "abcd"]
    prepare(tmp_path / "clean", inputs)
    command = ["prepare", *inputs, "--output", tmp_path / "killed", "--image-size", "32", "--held-out", "0"]
    process = subprocess.Popen([sys.executable, "-m", "transfusion_jax.cli", *command], start_new_session=True)
    while not list(tmp_path.glob("killed/shards/*.json")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ConfigError, match="is unfinished"):
        Prepared.open(tmp_path / "killed")
    assert main(list(map(str, command))) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "clean")


def test_hosts_that_share_the_work_write_the_bytes_of_one(tmp_path):
    inputs = [jsonl(tmp_path, [{"text": f"text {name}"}], name) for name in "abc"]
    prepare(tmp_path / "one", inputs)
    assert prepare(tmp_path / "two", inputs, own=[0, 2]) is None
    prepare(tmp_path / "two", inputs, own=[1])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_folder_goes_on_with_its_own_job_alone(tmp_path):
    inputs = [jsonl(tmp_path, [{"text": "a"}])]
    prepare(tmp_path / "out", inputs)
    with pytest.raises(ConfigError, match=r"--held-out: 0\.0 -> 0\.5"):
        prepare(tmp_path / "out", inputs, held_out=0.5)
    with pytest.raises(ConfigError, match="holds other files"):
        prepare(tmp_path, inputs)
    with pytest.raises(ConfigError, match="holds no prepared data"):
        Prepared.open(tmp_path)


@pytest.mark.parametrize(("first", "second"), [("in", "./in//")])
def test_a_path_is_the_same_however_it_is_written(first, second, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in/a.png", 1)
    (tmp_path / "in/a.txt").write_text("a caption")
    jsonl(tmp_path, [{"image": "a.png", "caption": "another"}])
    assert main(command(first, "out")) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out/data.json").unlink()
    (tmp_path / "out/shards/00000.json").unlink()  # as one that was interrupted
    assert main(command(second, "out")) == 0
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("wrong", [{"shards": "in"}, {"shards": ["in"]}, {"shards": None}, {"reading": []}])
def test_a_job_of_another_form_is_named(wrong, tmp_path):
    inputs = [jsonl(tmp_path, [{"text": "a"}])]
    prepare(tmp_path / "out", inputs)
    job = json.loads((tmp_path / "out/job.json").read_text())
    job.pop("digest")
    (tmp_path / "out/job.json").write_text(json.dumps(job | wrong))
    with pytest.raises(DamagedFile, match=r"job\.json is damaged, or of another program"):
        prepare(tmp_path / "out", inputs)


def command(images, output):
    """A folder of images, and lines that name some of them, to be prepared."""
    options = ["--output", output, "--images", images, "--image-size", "8", "--held-out", "0", "--workers", "1"]
    return ["prepare", images, "lines.jsonl", *options]


def test_another_process_is_sent_the_folder_and_not_its_columns(tmp_path):
    documents = whole(prepare(tmp_path / "out", [jsonl(tmp_path, [{"text": f"text {n}"} for n in range(2000)])]))
    sent = pickle.dumps(documents)
    assert len(sent) < 3000
    assert pickle.loads(sent)[1234].segments[0].tokens.tolist() == list(b"text 1234")


def prepare(folder, inputs, format=None, own=None, held_out=0.0, **options):
    """As the command does: in processes of their own."""
    reading = ReadOptions(image_size=32, **options)
    shards = tuple(input_shards(inputs, format, reading))
    job = PrepareJob(shards, reading, held_out=held_out)
    begin_job(job, tokenizer.load_tokenizer("bytes"), folder)
    done = run_job(folder, job, range(len(shards)) if own is None else own, "local", 1, lambda progress: None)
    return Prepared.open(folder) if done else None


def whole(prepared):
    statistics = prepared.moments("pixels").statistics() if prepared.manifest["encodings"] else None
    return PreparedDocuments(prepared, "train", "pixels", statistics)


def photos(tmp_path):
    (tmp_path / "in").mkdir()
    return str(WRITERS["webdataset"](tmp_path / "in")[0])


def jsonl(folder, lines, name="lines"):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def write_png(path, seed):
    path.write_bytes(encoded(Picture.fromarray(noise(20, 24, 3, seed=seed)), "PNG"))


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
