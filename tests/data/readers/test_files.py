import contextlib
import gzip
import json
import os
import socket
import tempfile

import pytest
import zstandard

from data.readers.samples import outcomes, pair, read, tar
from transfusion_jax.config import READERS, ConfigError
from transfusion_jax.data.readers import InputShard, RawText, ReadOptions, files, input_shards

PACKED = {".gz": gzip.compress, ".zst": zstandard.compress}


@contextlib.contextmanager
def bound(path):
    """A socket at a path; paths of sockets must be short."""
    with socket.socket(socket.AF_UNIX) as one, tempfile.TemporaryDirectory() as folder:
        one.bind(f"{folder}/s")
        path.symlink_to(f"{folder}/s")
        yield


@contextlib.contextmanager
def piped(path):
    os.mkfifo(path)
    yield


@contextlib.contextmanager
def endless(path):
    path.symlink_to("/dev/zero")
    yield


@contextlib.contextmanager
def dangling(path):
    path.symlink_to("nothing")
    yield


SPECIAL = {"a named pipe": piped, "a socket": bound, "a device": endless, "a link that leads nowhere": dangling}
NAMES = ("x.tar", "x.tar.gz", "x.jsonl", "x.json", "x.jsonl.zst", "x.parquet")


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused_by_name_and_has_a_line_in_a_folder(name, kind, tmp_path):
    good = {"tar": "a.tar", "par": None}.get(name[2:5], "a.jsonl")
    with SPECIAL[kind](tmp_path / name):
        with pytest.raises(ConfigError, match=f"{name} is {kind}"):
            input_shards([str(tmp_path / name)], None, ReadOptions())
        if good:
            (tmp_path / good).write_bytes(tar([("a.txt", b"good")]) if good == "a.tar" else b'{"text": "good"}')
        assert [r.reason for r in read(tmp_path) if hasattr(r, "reason")] == [f"no regular file: {kind}"]
        for format in ("webdataset", "jsonl", "parquet"):  # one that became special since it was listed
            with pytest.raises(OSError, match=name):
                list(READERS[format].read(InputShard(str(tmp_path / name)), ReadOptions()))


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_no_image_and_no_caption(kind, tmp_path):
    (tmp_path / "a.png").write_bytes(b"i")
    (tmp_path / "a.txt").write_text("c")
    (tmp_path / "c.png").write_bytes(b"i")
    (tmp_path / "a.jsonl").write_text('{"image": "x.png", "caption": "c"}')
    with SPECIAL[kind](tmp_path / "x.png"), SPECIAL[kind](tmp_path / "c.txt"), SPECIAL[kind](tmp_path / "x.other"):
        found = read(tmp_path, format="folder", allow_paths=True)
        assert [r.segments for r in found if hasattr(r, "segments")] == [pair("c", b"i")]
        assert {r.key for r in found if hasattr(r, "reason")} == {"c.png", "x.png", "x.other"}
        assert outcomes(read(tmp_path / "a.jsonl", allow_paths=True)) == {"@0": "image cannot be read"}


def test_a_table_that_is_no_file_is_a_fault(tmp_path):
    os.mkfifo(tmp_path / "metadata.csv")
    assert outcomes(read(tmp_path, format="folder")) == {"metadata.csv": "no regular file"}


HIDDEN = (".a.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "in/.git/a.png", "in/__MACOSX/x/a.png")


def test_hidden_files_and_folders_are_no_data(tmp_path):
    for name in (*HIDDEN, "in/a.png"):
        for path in (tmp_path / name, (tmp_path / name).with_suffix(".txt")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    assert outcomes(read(tmp_path)) == {"in/a.png#0": pair("x", b"x")}
    assert files.matches(f"{tmp_path}/**/*.png") == [f"{tmp_path}/in/a.png"]
    assert files.matches(f"{tmp_path}/*/a.png") == [f"{tmp_path}/in/a.png"]
    assert files.matches(f"{tmp_path}/.ipynb*/*.png") == [f"{tmp_path}/.ipynb_checkpoints/a.png"]


def test_a_folder_that_is_hidden_itself_is_read(tmp_path):
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data/a.jsonl").write_text('{"text": "x"}')
    assert outcomes(read(tmp_path / ".data")) == {"@0": (RawText("x"),)}
    assert files.matches(f"{tmp_path}/.data/*.jsonl") == [f"{tmp_path}/.data/a.jsonl"]


@pytest.mark.parametrize("log", [27, 28, 31])
def test_zstd_with_a_long_window_is_read(log, tmp_path):
    data = b"".join(b'{"text": "%d"}\n' % n for n in range(999))
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(data) + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << log
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert len(read(tmp_path / "a.jsonl.zst")) == 999


@pytest.mark.parametrize("suffix", PACKED)
def test_all_that_stands_before_a_cut_is_read(suffix, tmp_path):
    lines = [json.dumps({"text": f"{n} {os.urandom(40).hex()}"}).encode() + b"\n" for n in range(3000)]
    packed = PACKED[suffix](b"".join(lines))
    unpacked = 0
    for end in (0, 1, 20, len(packed) // 2, len(packed) - 5):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(packed[:end])
        *before, last = read(path) or [None]
        assert not end or last.reason.startswith("broken file")
        assert [r.segments[0].text for r in before] == [json.loads(line)["text"] for line in lines[: len(before)]]
        if end > 2e5:  # zstd's blocks are of 128 KiB
            assert len(before) > 0.9 * 3000 * end / len(packed) - 131072 / len(lines[0])
        unpacked = max(unpacked, len(before))
    assert unpacked > 1400


def test_frames_of_zstd_follow_each_other_and_garbage_after_them_is_a_fault(tmp_path):
    frames = [zstandard.compress(b'{"text": "%d"}\n' % n) for n in range(5)]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    assert len(read(path)) == 5
    path.write_bytes(b"".join(frames) + b"garbage")
    *before, fault = read(path)
    assert len(before) == 5
    assert fault.reason.startswith("broken file")


INSIDE = ("a.png", "in/b.png", "./a.png", "in/../a.png", "link.png")
OUTSIDE = (
    "../o/c.png",
    "{root}/o/c.png",
    "/etc/passwd",
    "in/../../o/c.png",
    "out.png",
    "away/c.png",
    "gs://b/c.png",
)
FORMS = {
    "jsonl": lambda d, name: (d / "d.jsonl", json.dumps({"image": name, "caption": "c"})),
    "segments": lambda d, name: (d / "d.jsonl", json.dumps({"segments": [{"image": name}, {"text": "c"}]})),
    "page": lambda d, name: (d / "d.jsonl", json.dumps({"images": [name, None], "texts": [None, "c"]})),
    "mmc4": lambda d, name: (
        d / "d.jsonl",
        json.dumps({"text_list": ["c"], "image_info": [{"image_name": name, "matched_text_index": 0}]}),
    ),
    "struct": lambda d, name: (d / "d.jsonl", json.dumps({"image": {"path": name, "bytes": None}, "caption": "c"})),
    "array": lambda d, name: (d / "d.json", json.dumps([{"image_path": name, "caption": "c"}])),
    "csv": lambda d, name: (d / "metadata.csv", f'file_name,text\n"{name}",c\n'),
    "table": lambda d, name: (d / "metadata.jsonl", json.dumps({"file_name": name, "text": "c"})),
    "coco": lambda d, name: (
        d / "d.coco",
        json.dumps({"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "caption": "c"}]}),
    ),
    "parquet": lambda d, name: (d / "d.parquet", name),
}


@pytest.fixture
def tree(tmp_path):
    for name in ("d/a.png", "d/in/b.png", "o/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    (tmp_path / "d/link.png").symlink_to("a.png")
    (tmp_path / "d/out.png").symlink_to(tmp_path / "o/c.png")
    (tmp_path / "d/away").symlink_to(tmp_path / "o")
    return tmp_path


def images_of(root, form, name, **options):
    """The images that are read where data names one, and the reasons of what is not."""
    path, content = FORMS[form](root / "d", name.format(root=root))
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"image": [content], "caption": ["c"]}), path)
    else:
        path.write_text(content)
    whole = {"csv": path.parent, "table": path.parent}.get(form, path)
    found = read(whole, format={"coco": "coco", "csv": "folder", "table": "folder"}.get(form), **options)
    path.unlink()
    images = [s.data for r in found if hasattr(r, "segments") for s in r.segments if hasattr(s, "data")]
    reasons = [r.reason for r in found if hasattr(r, "reason")]
    return images, [r for r in reasons if not r.startswith(("not named in metadata", "no image by its name"))]


@pytest.mark.parametrize("form", FORMS)
def test_data_names_files_of_its_own_folder_alone(form, tree):
    for name in INSIDE:
        assert images_of(tree, form, name) == ([b"image"], []), name
    for name in OUTSIDE:
        images, reasons = images_of(tree, form, name)
        assert images == [], name
        assert "--allow-paths" in reasons[0]
    for name in set(OUTSIDE) - {"gs://b/c.png", "/etc/passwd"}:
        assert images_of(tree, form, name, allow_paths=True) == ([b"image"], []), name


def test_the_folder_of_the_option_bounds_what_is_read(tree):
    (tree / "d/d.jsonl").write_text('{"image": "c.png", "caption": "c"}\n{"image": "../d/a.png", "caption": "c"}')
    found = outcomes(read(tree / "d/d.jsonl", images=str(tree / "o")))
    assert list(found.values()) == [pair("c", b"image"), "image lies outside the folder of the input"]


def test_links_of_a_folder_lead_nowhere_else(tree):
    (tree / "d/a.txt").symlink_to("/etc/hostname")
    (tree / "d/out.txt").write_text("c")
    (tree / "d/link.txt").write_text("c")
    found = outcomes(read(tree / "d"))
    assert found["a.png"] == "caption lies outside the folder of the input"
    assert found["out.png"] == "image lies outside the folder of the input"
    assert found["link.png#0"] == pair("c", b"image")
    assert found["away"] == "no image by its name"


def test_an_image_or_a_text_that_is_too_large_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 100)
    (tmp_path / "a.png").write_bytes(b"i" * 101)
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "c"}')
    assert outcomes(read(tmp_path / "a.jsonl")) == {"@0": "image too large"}


@pytest.mark.parametrize("names", [("0.tar", "0.parquet", "0_stats.json"), ("0.parquet", "0_stats.json")])
def test_what_img2dataset_writes_beside_its_shards_is_no_input(names, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    for inputs in (tmp_path, f"{tmp_path}/*"):
        assert [os.path.basename(s.path) for s in input_shards([str(inputs)], None, ReadOptions())] == [names[0]]


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("a/", "a"),
        ("./a", "a"),
        ("a//b/./c/", "a/b/c"),
        ("a/../b/", "a/../b"),  # a may be a link
        ("/", "/"),
        ("gs://a/b//c/", "gs://a/b//c"),
        ("", ""),
    ],
)
def test_a_path_has_one_plain_form(path, plain):
    assert files.plain(path) == plain
