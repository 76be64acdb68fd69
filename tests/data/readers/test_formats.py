import dataclasses
import os

import fsspec
import pytest
from PIL import Image

from data.readers.samples import WRITERS, encoded, expected, photographs, read, segments, tar
from transfusion_jax.config import READERS, ConfigError
from transfusion_jax.data.readers import InputShard, ReadOptions, _without_companions, files, input_shards


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_photographs_come_out_of_every_format(name, tmp_path):
    path, options = WRITERS[name](tmp_path)
    assert segments(read(path, **options)) == expected()


@pytest.mark.parametrize("name", WRITERS)
def test_shards_are_read_alike_in_any_order_and_share_nothing(name, tmp_path):
    path, named = WRITERS[name](tmp_path)
    options = ReadOptions(**{k: v for k, v in named.items() if k != "format"})
    if "shard_size" in READERS[input_shards([str(path)], named.get("format"), options)[0].format].options:
        options = dataclasses.replace(options, shard_size=3)
    shards = input_shards([str(path)], named.get("format"), options)
    backwards = [list(READERS[shard.format].read(shard, options)) for shard in reversed(shards)]
    assert segments([record for found in reversed(backwards) for record in found]) == expected()
    assert len(shards) == {"webdataset": 1, "parquet": 1, "jsonl": 1, "segments": 1}.get(name, 4)
    keys = [record.key for found in backwards for record in found]
    assert len(set(keys)) == 10


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (["a.tar", "b.TAR", "c.tar.gz", "d.tgz", "e.tar.zst"], "webdataset"),
        (["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.json", "e.ndjson"], "jsonl"),
        (["a.jpg"], "folder"),
        (["inner/a.PNG", "notes.txt"], "folder"),
    ],
)
def test_the_format_of_a_folder_is_told_by_its_files(names, format, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    shards = input_shards([str(tmp_path)], None, ReadOptions())
    assert {shard.format for shard in shards} == {format}
    found = [os.path.relpath(shard.path, tmp_path) for shard in shards]
    assert found == (["."] if format == "folder" else sorted(names))


MIXED = (
    "p/a.png",
    "p/a.txt",
    "p/a.json",
    "0.tar",
    "0.parquet",
    "0_stats.json",
    "y.jsonl",
    "in/z.json",
)


def test_a_folder_of_several_formats_is_read_as_each(tmp_path):
    for name in MIXED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = input_shards([str(tmp_path)], None, ReadOptions())
    assert [(s.format, os.path.relpath(s.path, tmp_path)) for s in found] == [
        ("folder", "."),
        ("webdataset", "0.tar"),
        ("jsonl", "in/z.json"),
        ("jsonl", "y.jsonl"),
    ]
    (tmp_path / "p/a.txt").unlink()  # without captions, the images are those of the lines
    assert [s.format for s in input_shards([str(tmp_path)], None, ReadOptions())] == [
        "webdataset",
        "jsonl",
        "jsonl",
        "jsonl",
    ]


IMAGE = encoded(Image.new("RGB", (8, 8)), "PNG")
NEIGHBOURS = {  # what lies in a folder, and every key that must be told of
    "a preview beside a tar": ({"train.png": IMAGE, "train.tar": tar([("a.txt", b"a")])}, {"train.png", "a"}),
    "lines beside their preview": (
        {"p.png": IMAGE, "p.txt": b"c", "p.jsonl": b'{"text": "a"}', "p.ndjson": b'{"text": "b"}'},
        {"p.png#0", "@0"},
    ),
    "lines beside a table": (
        {"p.png": IMAGE, "metadata.csv": b"file_name,text\np.png,c\n", "metadata.json": b'{"text": "a"}'},
        {"p.png", "@0"},
    ),
    "an array beside a tar": ({"x.tar": tar([("a.txt", b"a")]), "x_stats.json": b'[{"text": "b"}]'}, {"a", "@1"}),
    "files beside an image": (
        {"p.png": IMAGE, "p.txt": b"c", "p.caption": b"d", "p.heic": b"e", "p.json": b"{}"},
        {"p.png#0", "p.caption", "p.heic"},
    ),
    "an array beside its preview": (
        {"p.png": IMAGE, "p.txt": b"c", "p.json": b'[{"text": "a"}]'},
        {"p.png#0", "p.json"},
    ),
    "objects beside their preview": (
        {"p.png": IMAGE, "p.txt": b"c", "p.json": b'{"text": "a"}\n{"text": "b"}'},
        {"p.png#0", "p.json"},
    ),
    "a table of images that are none": (
        {"x.tar": tar([("a.txt", b"a")]), "metadata.csv": b"file_name,text\np.heic,c\n", "p.heic": b"e"},
        {"a", "p.heic"},
    ),
}


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_no_file_is_passed_over_because_of_what_lies_beside_it(kind, tmp_path):
    contents, keys = NEIGHBOURS[kind]
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    assert {r.key for r in read(tmp_path)} == keys


@pytest.mark.parametrize("beside", ["photos/1.png", "photos.tar", "photos.png"])
def test_a_table_beside_images_or_a_tar_of_its_name_is_read(beside, tmp_path):
    for name, data in {beside: IMAGE, "photos.parquet": b""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    names = _without_companions(files.inside(str(tmp_path)))
    assert "photos.parquet" in names


def test_what_img2dataset_writes_as_files_is_a_folder_of_images(tmp_path):
    for name in ("0/1.jpg", "0/1.txt", "0/1.json", "0/2.json", "0.parquet", "0_stats.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    [images, *others] = input_shards([str(tmp_path)], None, ReadOptions())
    assert images.format == "folder"
    assert [os.path.basename(s.path) for s in others] == ["2.json"]


def test_patterns_and_files_are_taken_once_in_the_order_given(tmp_path):
    for name in ("b.tar", "a.tar", "c[1].tar"):
        (tmp_path / name).write_bytes(b"")
    inputs = [str(tmp_path / name) for name in ("b.tar", "c[1].tar", "*.tar")]
    found = [os.path.basename(s.path) for s in input_shards(inputs, None, ReadOptions())]
    assert found == ["b.tar", "c[1].tar", "a.tar"]


@pytest.mark.parametrize(
    ("inputs", "format", "options", "words"),
    [
        (["nothing*.tar"], None, {}, "nothing matches .*nothing.*name files, a folder or a pattern"),
        (["a.tar", "b.jsonl"], None, {"split": "train"}, "--split means nothing to jsonl and webdataset"),
        (["notes.txt"], None, {}, "notes.txt does not say its format: name one of clipart, coco"),
        (["a.tar"], "webdatasets", {}, "did you mean 'webdataset'"),
        (["empty"], None, {}, "empty holds no tar, Parquet"),
        (["empty"], "parquet", {}, "empty holds no parquet"),
        (["empty"], "folder", {}, "nothing to read"),
        (["empty"], "coco", {}, "empty is a folder: name its file of captions"),
        (["a.tar"], "folder", {}, "a.tar is not a folder"),
        (["a.tar"], None, {"split": "train"}, "--split means nothing to webdataset"),
        (["a.tar"], None, {"shard_size": 3}, "--shard-size means nothing to webdataset"),
        (["b.jsonl"], None, {"data_dir": "x"}, "--data-dir means nothing to jsonl"),
        ([], None, {}, "nothing to read"),
    ],
)
def test_inputs_that_cannot_be_read_are_a_sentence(inputs, format, options, words, tmp_path):
    (tmp_path / "a.tar").write_bytes(tar([]))
    (tmp_path / "b.jsonl").write_text("{}")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=words):
        input_shards([str(tmp_path / name) for name in inputs], format, ReadOptions(**options))


def test_a_home_and_a_scheme_of_files_are_paths(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/a.jsonl", f"file://{tmp_path}/a.jsonl"):
        assert [s.path for s in input_shards([name], None, ReadOptions())] == [str(tmp_path / "a.jsonl")]
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ConfigError, match="is a named pipe"):
        input_shards([f"file://{tmp_path}/pipe.jsonl"], None, ReadOptions())


def test_a_shard_size_must_be_positive():
    with pytest.raises(ConfigError, match="--shard-size must be positive"):
        ReadOptions(shard_size=0)


def test_a_bucket_is_read_as_a_folder_is():
    bucket = fsspec.filesystem("memory")
    for name, image in photographs().items():
        bucket.pipe(f"/reads/images/{name}", image)
        bucket.pipe(f"/reads/images/{name[:-4]}.txt", b"of a bucket")
    bucket.pipe("/reads/tars/1.tar", tar([("x.png", photographs()["0000.png"]), ("x.txt", b"in a tar")]))
    bucket.pipe("/reads/lines.jsonl", b'{"image": "images/0003.png", "caption": "by a relative path"}\n')
    assert len(segments(read("memory://reads/images"))) == 10
    for path, caption, image in (
        ("memory://reads/tars", "in a tar", "0000.png"),
        ("memory://reads/tars/*.tar", "in a tar", "0000.png"),
        ("memory://reads/lines.jsonl", "by a relative path", "0003.png"),
    ):
        [[text, found]] = segments(read(path))
        assert (text.text, found.data) == (caption, photographs()[image])


def test_a_bucket_without_its_package_names_the_package():
    with pytest.raises(ConfigError, match="pip install s3fs"):
        input_shards(["s3://bucket/*.tar"], None, ReadOptions())
    with pytest.raises(ConfigError, match="use a local path, gs:// or s3://"):
        input_shards(["nowhere://bucket/*.tar"], None, ReadOptions())


def test_a_failing_disk_is_not_taken_for_damaged_data(tmp_path):
    for format, name in (("webdataset", "a.tar"), ("parquet", "a.parquet"), ("jsonl", "a.jsonl")):
        with pytest.raises(FileNotFoundError):
            list(READERS[format].read(InputShard(str(tmp_path / name)), ReadOptions()))
