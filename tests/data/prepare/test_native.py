"""Images that keep their proportions, from files to what a run reads: of any shapes, as they were drawn."""

import dataclasses
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from data.readers.samples import encoded, noise
from harms import contents
from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.autoencoder import Encoding
from transfusion_jax.autoencoder.kinds.dct import CosineBlocks
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.datasets import plain_statistics
from transfusion_jax.data.documents import Image, Text
from transfusion_jax.data.prepare import Encoders, PrepareJob, begin_job, run_job, shard
from transfusion_jax.data.prepare.run import RUNNERS
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.store import inspect
from transfusion_jax.data.store.dataset import SPLITS, DamagedData, Prepared, PreparedDocuments
from transfusion_jax.storage.atomic import read_json, write_json

STORED = Path(__file__).parents[2] / "stored/before-the-house.tar.xz"
AREA = Proportions(area=16 * 16, multiple=4)
SHAPES = [(8, 16), (16, 8), (4, 4), (16, 16), (8, 8), (12, 20)]  # height, width: none is changed by `AREA`
COUNTS = [19, 3, 1, 2, 5, 1]  # of captioned images; of the first there are more than are encoded together


@dataclasses.dataclass(frozen=True)
class Uncertain(CosineBlocks):
    """Cosine blocks that are not sure of the high frequencies."""

    def encode(self, images):
        mean = super().encode(images).mean
        return Encoding(mean=mean, log_variance=mean * 0.5 - np.arange(self.channels, dtype=np.float32))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    def run(folder, job, todo, workers):
        for number in todo:
            yield shard.prepare_shard(folder, job, number)

    monkeypatch.setitem(RUNNERS, "here", run)


@pytest.fixture
def drawn(tmp_path):
    """A folder of two files of JSON lines, and what each of their documents holds: texts, and images as pixels."""
    folder = tmp_path / "in"
    folder.mkdir()
    shapes = [shape for shape, count in zip(SHAPES, COUNTS, strict=True) for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(shapes)).tolist()
    documents = [[f"caption {n}", noise(*shapes[n], 3, seed=n)] for n in order]
    documents.insert(4, ["before", noise(8, 16, 3, seed=100), "between", noise(16, 8, 3, seed=101)])
    documents.insert(9, ["a text alone"])
    documents.append([noise(8, 8, 3, seed=102), noise(8, 8, 3, seed=103), "two of a shape"])
    for name, part in (("a", documents[:20]), ("b", documents[20:])):
        lines = []
        for number, document in enumerate(part):
            segments = []
            for place, value in enumerate(document):
                if isinstance(value, str):
                    segments.append({"text": value})
                else:
                    (folder / f"{name}{number}-{place}.png").write_bytes(encoded(Picture.fromarray(value), "PNG"))
                    segments.append({"image": f"{name}{number}-{place}.png"})
            lines.append(json.dumps({"segments": segments}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return [str(folder / f"{name}.jsonl") for name in "ab"], documents


def test_images_of_any_shapes_are_read_back_as_they_were_drawn(drawn, tmp_path):
    inputs, documents = drawn
    prepared = prepare(tmp_path / "out", inputs, held_out=0.3)
    assert prepared.manifest["schema"] == 2
    assert prepared.encoding("pixels")["shape"] == [0, 0, 3]
    found = []
    for split in SPLITS:
        read = PreparedDocuments(prepared, split, "pixels", plain_statistics(3)).make_ready()
        assert len(read.images) > 0
        for number in range(len(read.images)):
            document = read[number]
            assert read.areas(slice(None))[number] == document.area
            assert read.images[number] == document.images
            found.append([content_of(segment) for segment in document.segments])
        some = np.array([2, 0, len(read.images) - 1])
        np.testing.assert_array_equal(read.areas(some), [read[n].area for n in some.tolist()])
        assert np.load(tmp_path / f"out/index/{split}/areas.npy").dtype == np.uint32
    expected = [[v if isinstance(v, str) else (v.shape, v.tobytes()) for v in document] for document in documents]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    shapes = Counter(v.shape[:2] for document in documents for v in document if not isinstance(v, str))
    assert prepared.shapes("pixels") == shapes
    assert prepared.encoding("pixels")["shapes"] == sorted([h, w, n] for (h, w), n in shapes.items())
    assert inspect.damaged_shards(prepared) == []
    assert not [line for line in inspect.findings(prepared, {}) if "shapes" in line]


def test_statistics_are_those_of_all_values_of_training_images(drawn, tmp_path):
    prepared = prepare(tmp_path / "out", drawn[0], held_out=0.3, coder=CosineBlocks(4, 6))
    for name, channels in (("pixels", 3), ("dct-f4c6", 6)):
        read = PreparedDocuments(prepared, "train", name, plain_statistics(channels))
        images = [s.latent for n in range(len(read.images)) for s in read[n].segments if isinstance(s, Image)]
        values = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64)
        statistics = prepared.moments(name).statistics()
        np.testing.assert_allclose(statistics.mean, values.mean(0), atol=1e-9)
        np.testing.assert_allclose(statistics.std, values.std(0), rtol=1e-6)


@pytest.mark.parametrize("name", ["dct-f4c6", "grey-f2k99"])
def test_each_image_is_encoded_as_it_is_alone(name, drawn, tmp_path):
    coder = autoencoders.load_autoencoder(name)
    channels = coder.image_shape((1, 1, 3))[2]
    prepared = prepare(tmp_path / "out", drawn[0], coder=coder, channels=channels)
    factor = coder.image_shape((1, 1, channels))[0]
    pixels = PreparedDocuments(prepared, "train", "pixels", plain_statistics(channels))
    statistics = plain_statistics(6) if name.startswith("dct") else None
    read = PreparedDocuments(prepared, "train", name, statistics).make_ready()
    for number in range(len(read.images)):
        images, latents = ([s.latent for s in d[number].segments if isinstance(s, Image)] for d in (pixels, read))
        for image, latent in zip(images, latents, strict=True):
            alone = coder.encode(image[None])
            expected = np.asarray(alone.mean if alone.codes is None else alone.codes)[0]
            np.testing.assert_allclose(latent, expected, atol=1e-3 if alone.codes is None else 0)
    assert prepared.encoding(name)["shape"] == [0, 0, 6][: 2 + (statistics is not None)]
    smaller = {(h // factor, w // factor): count for (h, w), count in prepared.shapes("pixels").items()}
    assert prepared.shapes(name) == smaller
    assert PreparedDocuments(prepared, "train", name, None).shapes == smaller.keys()
    np.testing.assert_array_equal(read.areas(slice(None)) * factor**2, pixels.areas(slice(None)))
    assert inspect.damaged_shards(prepared) == []


def test_log_variances_have_the_shapes_of_their_means(drawn, tmp_path):
    coder = Uncertain(4, 6)
    prepared = prepare(tmp_path / "out", drawn[0], coder=coder, log_variances=True)
    means, log_variances = (
        PreparedDocuments(prepared, "train", f"dct-f4c6{kind}", plain_statistics(6))
        for kind in ("", "-log-variance")
    )
    assert prepared.shapes("dct-f4c6-log-variance") == prepared.shapes("dct-f4c6")
    for number in np.flatnonzero(means.images).tolist():
        first = means.first_record(number)
        for mean, log_variance in zip(means.latents(first), log_variances.latents(first), strict=True):
            np.testing.assert_allclose(log_variance, mean * 0.5 - np.arange(6), atol=0.02)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=1, max_size=6, unique=True))
def test_every_image_has_the_size_of_its_proportions(tmp_path_factory, sides):
    folder = tmp_path_factory.mktemp("any")
    for number, (height, width) in enumerate(sides):
        picture = Picture.fromarray(noise(height, width, 3, seed=number))
        (folder / f"{number}.png").write_bytes(encoded(picture, "PNG"))
    lines = [json.dumps({"image": f"{number}.png", "caption": str(number)}) + "\n" for number in range(len(sides))]
    (folder / "a.jsonl").write_text("".join(lines))
    kept = [(h, w) for h, w in sides if min(h, w) >= 4 and max(h, w) <= 4 * min(h, w)]
    prepared = prepare(folder / "out", [str(folder / "a.jsonl")])
    assert prepared.manifest["quarantine"] == dict(
        Counter(
            "extreme proportions" if max(h, w) > 4 * min(h, w) else "too small"
            for h, w in sides
            if (h, w) not in kept
        )
    )
    if kept:
        assert prepared.shapes("pixels") == Counter(AREA.size(width, height)[::-1] for height, width in kept)


@pytest.mark.parametrize("writes", [3, 25, 50])
def test_a_killed_run_that_goes_on_writes_the_bytes_of_a_clean_one(writes, drawn, tmp_path, monkeypatch):
    coder = CosineBlocks(4, 6)
    prepare(tmp_path / "clean", drawn[0], held_out=0.3, coder=coder)
    left, write = [writes], shard.ShardWriter.write

    def killed(self, data):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(shard.ShardWriter, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "killed", drawn[0], held_out=0.3, coder=coder)
    prepare(tmp_path / "killed", drawn[0], held_out=0.3, coder=coder)
    assert contents(tmp_path / "killed") == contents(tmp_path / "clean")


def test_hosts_that_share_the_work_write_the_bytes_of_one(drawn, tmp_path):
    coder = CosineBlocks(4, 6)
    prepare(tmp_path / "one", drawn[0], coder=coder)
    for host in (1, 0):
        prepare(tmp_path / "two", drawn[0], coder=coder, own=[host])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_an_image_in_two_shards_is_counted_once(drawn, tmp_path):
    inputs, documents = drawn
    again = Path(inputs[0]).with_name("c.jsonl")
    again.write_text(Path(inputs[0]).read_text())
    prepared = prepare(tmp_path / "out", [*inputs, str(again)])
    assert prepared.manifest["quarantine"] == {"duplicate": 20}
    assert prepared.shapes("pixels") == prepare(tmp_path / "once", inputs).shapes("pixels")
    assert sum(prepared.shapes("pixels").values()) == sum(not isinstance(v, str) for d in documents for v in d)


def test_the_same_bytes_in_another_shape_are_another_image(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    for name, picture in (("wide", pixels), ("tall", pixels.reshape(8, 4, 3))):
        (tmp_path / f"{name}.png").write_bytes(encoded(Picture.fromarray(picture), "PNG"))
    lines = [json.dumps({"image": f"{name}.png", "caption": "black"}) + "\n" for name in ("wide", "tall")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    assert prepare(tmp_path / "out", [str(tmp_path / "a.jsonl")]).shapes("pixels") == {(4, 8): 1, (8, 4): 1}


def test_texts_alone_have_no_area(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "alone"}) + "\n")
    prepared = prepare(tmp_path / "out", [str(tmp_path / "a.jsonl")])
    documents = PreparedDocuments(prepared, "train", "pixels", None).make_ready()
    assert documents.areas(slice(None)).tolist() == [0]
    assert inspect.findings(prepared, {}) == [line for line in inspect.findings(prepared, {}) if "held out" in line]


def test_scenes_are_drawn_within_the_area(tmp_path):
    assert prepare(tmp_path / "out", ["shapes:3"]).shapes("pixels") == {(16, 16): 3}


def test_shapes_that_are_not_those_of_the_index_or_the_records_are_found(drawn, tmp_path):
    prepare(tmp_path / "out", drawn[0], coder=CosineBlocks(4, 6))
    path = tmp_path / "out/data.json"
    whole = read_json(path, "")

    def changed(name, change):
        manifest = json.loads(json.dumps(whole))
        change(manifest["encodings"][name])
        write_json(path, manifest)
        prepared = Prepared.open(tmp_path / "out")
        return inspect.findings(prepared, {}), inspect.damaged_shards(prepared)

    for name in ("pixels", "dct-f4c6"):
        counted, read = changed(name, lambda about: about["shapes"][0].__setitem__(2, 7))
        assert any(f"the shapes of {name} in data.json are of" in line for line in counted), counted
        assert read, name
        counted, read = changed(name, lambda about: about["shapes"].reverse())  # order says nothing
        assert not [line for line in [*counted, *read] if "shapes" in line]

    def exchanged(about):
        about["shapes"] = [[w, h, count] for h, w, count in about["shapes"]]

    _, read = changed("pixels", exchanged)  # of as many images and pixels
    assert any("the shapes of pixels in data.json are not those of its records" in line for line in read)


def test_a_record_of_other_shapes_is_refused(drawn, tmp_path):
    prepared = prepare(tmp_path / "out", drawn[0])
    documents = PreparedDocuments(prepared, "train", "pixels", None)
    prepared.manifest["encodings"]["pixels"]["shape"][2] = 1
    with pytest.raises(DamagedData, match=r"pixels-00000\.array_record is damaged"):
        documents.latents(documents.first_record(0))


def test_squares_are_prepared_as_they_always_were(tmp_path):
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, members=[m for m in archive if m.name.startswith("digits/")])
    reading = ReadOptions(image_size=8)
    prepare(tmp_path / "now", ["digits"], reading, held_out=0.3, channels=1, limit=60)
    now, stored = (contents(tmp_path / name) for name in ("now", "digits"))
    own = {name for name in stored if name.startswith("shards/")}  # of prepare's own, which other versions added to
    assert now.keys() == stored.keys()
    assert len(own) == 3
    assert {name: now[name] for name in now.keys() - own} == {name: stored[name] for name in now.keys() - own}


def prepare(folder, inputs, reading=None, coder=None, log_variances=False, own=None, **job):
    """As the command does, in this process."""
    reading = reading or ReadOptions(native=AREA)
    made = PrepareJob(tuple(input_shards(inputs, None, reading)), reading, **({"held_out": 0.0} | job))
    begin_job(made, tokenizers.load_tokenizer("bytes"), folder)
    numbers = range(len(made.shards)) if own is None else own
    if coder is None:
        run_job(folder, made, numbers, "here", 1, lambda progress: None)
    else:
        autoencoders.save(coder, folder)
        with Encoders(folder, made, coder, log_variances) as encoders:
            run_job(folder, made, numbers, "here", 1, lambda progress: None, encoders)
    return Prepared.open(folder) if (folder / "data.json").exists() else None


def content_of(segment):
    """A text, or an image's shape and its pixels' bytes."""
    if isinstance(segment, Text):
        return bytes(segment.tokens.astype(np.uint8)).decode()
    pixels = np.round(segment.latent * 127.5 + 127.5).astype(np.uint8)
    return pixels.shape, pixels.tobytes()
