import gzip
import json
import re
import tarfile

import pyarrow as pa
import pytest

from data.readers.samples import outcomes, pair, read, segments, tar
from transfusion_jax.data.readers import Fault, RawText, files

SAMPLES = [
    (f"{n}.{kind}", data) for n in range(4) for kind, data in (("jpg", b"image %d" % n), ("txt", b"c%d" % n))
]
PAIRS = [pair(f"c{n}", b"image %d" % n) for n in range(4)]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a.jpg": b"i", "a.txt": b" c \n"}, pair("c", b"i")),
        ({"in/a.b.txt": b"x", "in/a.JPG": b"i", "in/a.caption": b"c"}, pair("c", b"i")),
        ({"a.txt": b"c", "a.json": b'{"caption": "d"}', "a.webp": b"i"}, pair("c", b"i")),
        ({"a.png": b"i", "a.json": b'{"text": "d", "caption": "c"}'}, pair("c", b"i")),
        ({"a.png": b"i", "a.cls": b"3", "a.txt": "é".encode()}, pair("é", b"i")),
        ({"a.txt": b"\xef\xbb\xbf of Windows\n"}, (RawText(" of Windows\n"),)),
        ({"a.json": b'{"text": "t"}'}, (RawText("t"),)),
        ({"a.txt": b"t", "a.json": b'{"url": "http://x.org"}'}, (RawText("t"),)),
        ({"a.txt": b"t", "a.json": b'{"caption": "t", "width": 3}'}, "a caption and no image"),
        ({"a.json": b'{"caption": "t"}'}, "a caption and no image"),
        ({"a.json": b'{"text": "t", "image_path": "a.jpg"}'}, "images in fields that are not known"),
        ({"a.txt": b"see <image>"}, "the text has a mark <image> and there is no image"),
        ({"a.jpg": b"i"}, "no caption"),
        ({"a.jpg": b"i", "a.txt": b" \n"}, "empty caption"),
        ({"a.jpg": b"i", "a.txt": b"\xff\xfe"}, "caption is not UTF-8"),
        ({"a.jpg": b"i", "a.json": b'{"caption": "\\ud800"}'}, "caption is not UTF-8"),
        ({"a.jpg": b"i", "a.json": b'{"caption": 3}'}, "caption is not a text"),
        ({"a.jpg": b"i", "a.json": b'{"caption": null}'}, "no caption"),
        ({"a.jpg": b"i", "a.json": b"{"}, "not JSON"),
        ({"a.jpg": b"i", "a.json": b"[" * 99999}, "not JSON"),
        ({"a.jpg": b"i", "a.json": b"[]"}, "not a JSON object"),
        ({"a.jpg": b"i", "a.png": b"i", "a.txt": b"c"}, "several images"),
        ({"a.cls": b"3"}, "neither image nor text"),
    ],
)
def test_a_sample_is_a_document_or_a_fault_and_its_neighbours_stand(members, expected, tmp_path):
    (tmp_path / "a.tar").write_bytes(tar([*SAMPLES[:4], *members.items(), *SAMPLES[4:]]))
    key = next(iter(members)).partition(".")[0]
    found = outcomes(read(tmp_path / "a.tar"))
    assert found == {
        **dict(zip("01", PAIRS[:2], strict=True)),
        key: expected,
        **dict(zip("23", PAIRS[2:], strict=True)),
    }


def test_options_name_the_image_and_the_field_of_the_caption(tmp_path):
    data = json.dumps({"caption": "short", "long": ["one", "two"]}).encode()
    sample = {"a.jpg": b"i", "a.left.jpg": b"left", "a.txt": b"t", "a.json": data}
    (tmp_path / "a.tar").write_bytes(
        tar([*sample.items(), ("b.left.jpg", b"i"), ("b.txt", b"t"), ("c.json", data)])
    )
    found = read(tmp_path / "a.tar", image_column="left.jpg", text_column="long")
    assert outcomes(found) == {
        "a#0": pair("one", b"left"),
        "a#1": pair("two", b"left"),
        "b": "no caption",
        "c": "no image",
    }


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_read(format, tmp_path):
    long = "folder/" * 30 + "é"
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("README", "._a.jpg", "b.jpg", "b.txt"):
            (tmp_path / "file").write_bytes(b"x")
            archive.add(tmp_path / "file", name if format == tarfile.USTAR_FORMAT else f"{long}/{name}")
    found = {key.rpartition("/")[2]: outcome for key, outcome in outcomes(read(tmp_path / "a.tar")).items()}
    assert found == {"folder": "member is no file", "README": "member of no sample", "b": pair("x", b"x")}


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".tar", bytes),
        (".tar.gz", gzip.compress),
        (".tgz", lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:])),
        (".tar.zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)
def test_compressed_tars_are_read_and_what_came_before_a_cut_is_kept(suffix, pack, tmp_path):
    path, whole = tmp_path / f"a{suffix}", pack(tar(SAMPLES))
    path.write_bytes(whole)
    assert segments(read(path)) == PAIRS
    path.write_bytes(whole[: -len(whole) // 4])
    found = read(path)
    assert isinstance(found[-1], Fault)
    assert found[-1].reason.startswith("broken tar")
    assert segments(found[:-1]) == PAIRS[: len(found) - 1]


def damaged(at, data):
    whole = bytearray(tar(SAMPLES))
    whole[at : at + len(data)] = data
    return bytes(whole)


@pytest.mark.parametrize(
    ("data", "kept", "where", "reason"),
    [
        (b"", 0, 0, "no mark of its end"),
        (b"garbage" * 100, 0, 0, "bad checksum|invalid"),
        (tar(SAMPLES)[:4096], 2, 4096, "no mark of its end"),  # cut between members
        (tar(SAMPLES)[:4097], 2, 4096, "truncated"),
        (tar(SAMPLES)[: 4096 + 515], 2, 4096, "unexpected end"),
        (tar(SAMPLES)[: 5120 + 513], 2, 5120, "unexpected end"),  # within the caption: its image waits in vain
        (damaged(4096, b"xxx"), 2, 4096, "bad checksum"),
        (damaged(4096 + 124, b"\xff" * 12), 2, 4096, "checksum|header"),  # its size
    ],
)
def test_a_broken_tar_keeps_what_came_before_and_says_where(data, kept, where, reason, tmp_path):
    (tmp_path / "a.tar").write_bytes(data)
    *before, fault = read(tmp_path / "a.tar")
    assert segments(before) == PAIRS[:kept]
    assert fault.key == f"byte {where}"
    assert fault.reason.startswith("broken tar: ")
    assert re.search(reason, fault.reason)


def test_a_false_size_does_not_make_the_reader_wait(tmp_path):
    endless = tarfile.TarInfo("folder/.README")
    endless.size = 1 << 80
    (tmp_path / "a.tar").write_bytes(tar(SAMPLES)[:4096] + endless.tobuf(tarfile.GNU_FORMAT) + tar(SAMPLES)[4096:])
    *before, fault = read(tmp_path / "a.tar")
    assert segments(before) == PAIRS[:2]
    assert fault.key == f"byte {(tmp_path / 'a.tar').stat().st_size}"


def test_a_text_before_a_lost_image_is_not_taken_for_a_document(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar([("a.txt", b"of an image"), ("a.zip", b"x" * 600)])[:1600])
    [fault] = read(tmp_path / "a.tar")
    assert fault.key == "byte 1024"


def test_a_member_that_stands_twice_or_is_too_large_spoils_its_own_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 99)
    members = [*SAMPLES[:2], *SAMPLES[:2], ("1.jpg", b"x" * 100), ("1.txt", b"c"), *SAMPLES[4:]]
    (tmp_path / "a.tar").write_bytes(tar(members))
    found = outcomes(read(tmp_path / "a.tar"))
    assert found["0"] == "member twice in its sample"
    assert found["1"] == "member too large"
    assert [found["2"], found["3"]] == PAIRS[2:]
