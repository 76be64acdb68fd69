import base64
import gzip
import json

import pyarrow as pa
import pytest

from data.readers.samples import outcomes, pair, read, segments
from transfusion_jax.config import READERS
from transfusion_jax.data.readers import (
    RawDocument,
    RawImage,
    RawText,
    ReadOptions,
    files,
    input_shards,
    jsonl,
    records,
)

BASE64 = {"bytes": base64.b64encode(b"i").decode()}
MMC4 = {
    "text_list": ["One.", "Two.", "Three."],
    "image_info": [
        {"image_name": "b.png", "matched_text_index": 2, "matched_sim": 0.3},
        {"image_name": "a.png", "matched_text_index": 2},
        {"image_name": "a.png", "matched_text_index": 0},
    ],
    "similarity_matrix": [[0.1]],
}
EDIT = {"segments": [{"image": "a.png", "loss": False}, {"text": " redder", "loss": False}, {"image": "b.png"}]}
A, B = RawImage(b"image a"), RawImage(b"image b")


@pytest.mark.parametrize(
    ("line", "options", "expected"),
    [
        ({"text": " a\n", "url": "x"}, {}, [(RawText(" a\n"),)]),
        ({"content": "a", "text": "no"}, {"text_column": "content"}, [(RawText("a"),)]),
        ({"image": "a.png", "caption": " c\n", "text": "no"}, {}, [(RawText("c"), A)]),
        ({"image": BASE64, "text": "c"}, {}, [pair("c", b"i")]),
        ({"image": {"path": "b.png"}, "captions": ["c", "d"]}, {}, [(RawText("c"), B), (RawText("d"), B)]),
        ({"left": "a.png", "en": "c"}, {"image_column": "left", "text_column": "en"}, [(RawText("c"), A)]),
        ({"texts": ["x", None, "y"], "images": [None, "a.png", None]}, {}, [(RawText("x"), A, RawText("y"))]),
        ({"texts": [None, "y"], "images": [BASE64, ""]}, {}, [(RawImage(b"i"), RawText("y"))]),
        (MMC4, {}, [(A, RawText("One. Two."), B, A, RawText("Three."))]),
        ({"text_list": ["One.", "", "Three."], "image_info": []}, {}, [(RawText("One. Three."),)]),
        (EDIT, {}, [(RawImage(b"image a", False), RawText(" redder", False), B)]),
    ],
)
def test_every_form_of_line_is_a_document(line, options, expected, tmp_path):
    assert segments(read(write(tmp_path, line), **options)) == expected


def test_segments_carry_their_meta(tmp_path):
    scene = {"objects": [{"colour": "red"}]}
    [document] = read(write(tmp_path, {"segments": [{"text": "t"}], "meta": scene}))
    assert document == RawDocument("@0", (RawText("t"),), scene)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 5000, "[NaN, {}]"])
def test_a_number_that_nobody_reads_spoils_nothing(number, tmp_path):
    path = write(tmp_path, f'{{"text": "hello", "score": {number}}}'.encode(), f'{{"text": {number}}}'.encode())
    assert list(outcomes(read(path)).values()) == [(RawText("hello"),), "text is not a text"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"NaN", "not JSON: NaN"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 10_000, "not JSON"),
        ({}, "neither image nor text: keys are "),
        ({"id": 3, "txt": "a"}, "neither image nor text: keys are 'id', 'txt'"),
        ({"text": ""}, "empty text"),
        ({"text": 3}, "text is not a text: int"),
        ({"text": "\ud800"}, "text is not UTF-8"),
        ({"image": "a.png"}, "no caption"),
        ({"image": "a.png", "caption": " "}, "empty caption"),
        ({"image": "a.png", "caption": []}, "no caption"),
        ({"image": None, "caption": "c"}, "no image"),
        ({"image": {}, "caption": "c"}, "no image"),
        ({"image": 3, "caption": "c"}, "image is not bytes or a path: int"),
        ({"image": {"bytes": "???"}, "caption": "c"}, "image is not base64"),
        ({"image": "no.png", "caption": "c"}, "image cannot be read: No such file"),
        ({"image": ".", "caption": "c"}, "image cannot be read: Is a directory"),
        ({"image": "a\0.png", "caption": "c"}, "image cannot be read"),
        ({"image": "x" * 5000, "caption": "c"}, "image cannot be read: File name too long"),
        ({"image": "http://x.org/a.png", "caption": "c"}, "image is a URL: fetch the images first"),
        ({"image": {"url": "http://x.org/a.png"}, "caption": "c"}, "image is a URL: fetch the images first"),
        ({"texts": "abc", "images": []}, "texts and images are not lists"),
        ({"texts": ["a"], "images": []}, "lists of unequal length"),
        ({**MMC4, "text_list": None}, "text_list and image_info are not lists"),
        ({"segments": []}, "not of the form"),
        ({"segments": [{"text": "a"}], "loss": True}, "not of the form"),
        ({"segments": [{"text": "a"}], "meta": 3}, "not of the form"),
        ({"segments": [{"text": "a", "image": "a.png"}]}, "a segment holds a text or an image"),
        ({"segments": [{"text": "a", "losses": False}]}, "a segment holds a text or an image"),
        ({"segments": ["a"]}, "a segment holds a text or an image"),
        ({"segments": [{"text": "a", "loss": 0}]}, "loss is true or false, not of type int"),
        ({"segments": [{"text": "a"}, {"image": "no.png"}]}, "image cannot be read"),
    ],
)
def test_a_bad_line_is_a_fault_that_says_why_and_its_neighbours_stand(line, reason, tmp_path):
    before, after = {"text": "before"}, {"text": "after"}
    found = read(write(tmp_path, before, line, after))
    assert [r.key for r in found] == ["@0", "@19", f"@{20 + len(as_bytes(line))}"]
    assert found[1].reason.startswith(reason)
    assert len(found[1].reason) < 400
    assert segments([found[0], found[2]]) == [(RawText("before"),), (RawText("after"),)]


def test_a_named_field_that_is_missing_is_not_made_up_for(tmp_path):
    path = write(tmp_path, {"text": "a", "image": "a.png"}, EDIT)
    assert list(outcomes(read(path, image_column="left")).values()) == ["no image", "no image"]
    assert list(outcomes(read(path, text_column="en")).values()) == ["no caption", "neither image nor text"]


PAGES = {  # by what is wrong: the record, its faults, and what stays
    "images": (
        {
            **MMC4,
            "image_info": [
                {"image_name": "no.png", "matched_text_index": 1},
                {"raw_url": "http://x/y", "matched_text_index": 0},
            ],
        },
        {"@0#0": "image is a URL", "@0#2": "image cannot be read"},
        (RawText("One."), RawText("Two. Three.")),
    ),
    "an image's sentence": (
        {**MMC4, "image_info": [{"image_name": "a.png", "matched_text_index": 3}, "a.png"]},
        dict.fromkeys(("@0#0", "@0#1"), "matched_text_index is not a sentence's number"),
        (RawText("One. Two. Three."),),
    ),
    "a blank sentence": (
        {"text_list": ["One.", " \n", "Three."], "image_info": [{"image_name": "a.png", "matched_text_index": 2}]},
        {"@0#1": "empty text"},
        (RawText("One."), A, RawText("Three.")),
    ),
    "sentences that are none": (
        {"text_list": ["One.", None, 3, "\ud800"], "image_info": []},
        {"@0#1": "no text", "@0#2": "text is not a text", "@0#3": "text is not UTF-8"},
        (RawText("One."),),
    ),
    "places with nothing and with both": (
        {"texts": ["x", None, "y", " "], "images": [None, None, "a.png", None]},
        {"@0#1": "no text and no image", "@0#2": "a place must hold a text or an image", "@0#3": "empty text"},
        (RawText("x"),),
    ),
    "an image of a marked text": (
        {"text": "see <image> and <image>", "images": ["no.png", "b.png"]},
        {"@0#1": "image cannot be read"},
        (RawText("see "), RawText(" and "), B),
    ),
}


@pytest.mark.parametrize("wrong", PAGES)
def test_a_page_stays_without_what_is_wrong_in_it(wrong, tmp_path):
    line, faults, segments = PAGES[wrong]
    found = read(write(tmp_path, line))
    assert outcomes(found) == faults | {"@0": segments}
    lost = {int(key.partition("#")[2]) for key in faults}
    assert not lost & set(found[-1].places)
    assert len(found[-1].places) == len(segments)


def test_blank_lines_and_marks_of_windows_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}')
    assert outcomes(read(tmp_path / "a.jsonl")) == {"@0": (RawText("a"),), "@22": (RawText("b"),)}


@pytest.mark.parametrize("size", [1, 7, 16, 17, 18, 60, 1000])
def test_byte_ranges_share_the_lines_out(size, tmp_path, monkeypatch):
    path = write(tmp_path, *({"text": "t" * n} for n in range(1, 20)), b"", {"text": "last"})
    whole = read(path)
    assert len(whole) == 20
    monkeypatch.setattr(jsonl, "RANGE", size)
    shards = input_shards([str(path)], None, ReadOptions())
    assert len(shards) == -(-path.stat().st_size // size)
    assert [r for shard in shards for r in READERS["jsonl"].read(shard, ReadOptions())] == whole


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".zst", lambda data: pa.compress(data, "zstd", asbytes=True))],
)
def test_compressed_lines_are_read_and_what_came_before_a_cut_is_kept(suffix, pack, tmp_path):
    plain = write(tmp_path, *({"text": f"{n} " * 9999} for n in range(50)))
    whole, packed = read(plain), pack(plain.read_bytes())
    path = tmp_path / f"b.jsonl{suffix}"
    path.write_bytes(packed + packed)
    assert segments(read(path)) == segments(whole) * 2
    path.write_bytes(packed[: len(packed) // 2])
    *before, fault = read(path)
    assert before == whole[: len(before)]
    assert fault.reason.startswith("broken file")
    path.write_bytes(b"garbage" * 99)
    assert [r.reason.partition(":")[0] for r in read(path)] == ["broken file"]


@pytest.mark.parametrize("values", ["[{}]", "[[[[]]]]", "[1,2,3,4]"])
def test_a_line_of_too_many_values_is_a_fault(values, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "OBJECTS", 2)
    monkeypatch.setattr(records, "ITEMS", 3)
    path = write(tmp_path, {"text": "a"}, f'{{"text": "b", "of": {values}}}'.encode(), {"text": "c"})
    assert list(outcomes(read(path)).values()) == [(RawText("a"),), "too many values", (RawText("c"),)]


@pytest.mark.parametrize("value", [None, 0, "t", "", [1], {}])
@pytest.mark.parametrize(
    "form",
    [
        lambda value, count: {"texts": [value] * count, "images": [0] * count},
        lambda value, count: {"texts": [0] * count, "images": [value] * count},
        lambda value, count: {"text_list": [value] * count, "image_info": []},
        lambda value, count: {"text_list": [], "image_info": [value] * count},
        lambda value, count: {"segments": [value] * count},
        lambda value, count: {"segments": [{"text": value}] * count},
    ],
)
def test_a_document_of_too_many_parts_is_one_fault(form, value, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PARTS", 20)
    path = write(tmp_path, {"text": "a"}, form(value, 20), form(value, 21), {"text": "c"})
    first, *within, past, last = [(r.key, outcomes([r])[r.key]) for r in read(path)]
    assert (first[1], last[1]) == ((RawText("a"),), (RawText("c"),))
    assert past[1] in {"too many parts", "too many images"}
    assert {key.partition("#")[0] for key, _ in within} == {within[0][0].partition("#")[0]}


def test_a_text_that_is_too_long_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 5)
    found = outcomes(
        read(write(tmp_path, {"text": "ääääää"}, {"text": "äääää"}, {"image": "a.png", "caption": "c" * 6}))
    )
    assert list(found.values()) == ["text too long", (RawText("äääää"),), "caption too long"]


def test_a_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    path = write(tmp_path, {"text": "a"}, {"text": "b" * 100}, {"text": "c"})
    monkeypatch.setattr(files, "LARGEST", 50)
    assert outcomes(read(path)) == {"@0": (RawText("a"),), "@14": "line too long", "@127": (RawText("c"),)}


def as_bytes(line):
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def write(folder, *lines):
    (folder / "a.png").write_bytes(A.data)
    (folder / "b.png").write_bytes(B.data)
    (folder / "a.jsonl").write_bytes(b"".join(as_bytes(line) + b"\n" for line in lines))
    return folder / "a.jsonl"
