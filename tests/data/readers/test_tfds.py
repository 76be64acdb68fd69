import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.readers.samples import build_tfds, captions, outcomes, pair, photographs, read, segments
from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import ReadOptions, input_shards

CAPTIONS = {name: [f"{caption}, {i}" for i in range(2)] for name, caption in captions().items()}
CAPTIONS["0003.png"] = []
CAPTIONS["0004.png"] = ["c", " "]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    build_tfds(folder, CAPTIONS)
    return str(folder / "tfds")


def test_each_caption_is_a_document_and_images_are_their_files_bytes(data_dir):
    images = photographs()
    assert outcomes(read("tfds:photos:train", data_dir=data_dir)) == {
        **{
            f"{int(name[:4])}#{i}": pair(c, images[name]) for name, cs in CAPTIONS.items() for i, c in enumerate(cs)
        },
        "3": "no caption",
        "4#1": "empty caption",
    }


@pytest.mark.parametrize(
    ("name", "count"), [("photos:1.0.0:train", 10), ("photos:train[2:4]", 2), ("photos:train[:20%]", 2)]
)
def test_versions_and_slices_are_those_of_tfds(name, count, data_dir):
    [shard] = input_shards([f"tfds:{name}"], None, ReadOptions(data_dir=data_dir))
    assert (shard.begin, shard.end) == (0, count)


def test_options_name_the_features(data_dir):
    [text, image] = segments(read("tfds:photos:train[:1]", data_dir=data_dir, text_column="image/filename"))[0]
    assert (text.text, image.data) == ("0000.png", photographs()["0000.png"])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("photos", {}, "not of the form tfds:NAME"),
        ("photos:test", {}, "Unknown split 'test'.*tfds build"),
        (
            "nothing_of_this_name:train",
            {},
            "nothing_of_this_name not found.*tfds build NAME --file_format=array_record",
        ),
        ("photos:train", {"text_column": "labels"}, "has the images image and the texts captions, image/filename"),
        ("photos:train", {"image_column": "captions"}, "name one of each with --image-column and --text-column"),
    ],
)
def test_a_name_or_feature_that_is_not_there_is_a_sentence(name, options, words, data_dir):
    with pytest.raises(ConfigError, match=words):
        input_shards([f"tfds:{name}"], None, ReadOptions(data_dir=data_dir, **options))


def test_reading_needs_no_tensorflow(data_dir, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('TensorFlow is imported')")
    code = f"""
import sys
from data.readers.samples import read
print(len(read("tfds:photos:train", data_dir={data_dir!r})), "tensorflow" in sys.modules)
"""
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{tests.parent}:{tests}"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["19", "False"]


def test_a_damaged_record_is_a_fault_and_the_others_stand(data_dir, tmp_path):
    whole = Path(data_dir, "photos/1.0.0")
    copy = tmp_path / "photos/1.0.0"
    copy.mkdir(parents=True)
    for file in whole.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    record = next(copy.glob("*array_record*"))
    data = bytearray(record.read_bytes())
    data[100] ^= 0xFF  # in the first record
    record.write_bytes(data)
    found = outcomes(read("tfds:photos:train", data_dir=str(tmp_path)))
    assert found["0"] == "broken record"
    assert len(found) == 18  # all but the first one's two captions
