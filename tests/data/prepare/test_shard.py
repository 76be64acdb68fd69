"""What becomes of a document between a reader and its record: losses, parts of pages, limits."""

import json
import weakref

import numpy as np
import pytest
from PIL import Image as Picture

import helpers
from data.readers.samples import encoded, noise
from transfusion_jax.data.datasets import plain_statistics
from transfusion_jax.data.documents import Image, Text
from transfusion_jax.data.prepare import shard
from transfusion_jax.data.readers import Fault, RawDocument, RawImage, RawText, records
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.data.store.dataset import PART, PreparedDocuments
from transfusion_jax.data.store.record import Segment, merged
from transfusion_jax.data.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(bos=256, eos=257, boi=258, eoi=259, pad=260)


def stored(folder, *lines, **options):
    """Texts with their losses, and images by their mean, of each document; and the reasons of faults by key."""
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 100))):
        (folder / f"{name}.png").write_bytes(encoded(Picture.new("RGB", (16, 16), colour), "PNG"))
    (folder / "bad.png").write_bytes(encoded(Picture.fromarray(noise(64, 64, 3)), "PNG")[:600])
    (folder / "dot.png").write_bytes(encoded(Picture.new("RGB", (1, 1)), "PNG"))
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepared = helpers.prepare(folder / "out", [str(folder / "a.jsonl")], **options)
    faults = [json.loads(line) for line in (folder / "out/quarantine.jsonl").read_text().splitlines()]
    return documents_of(prepared), {fault["key"]: fault["reason"] for fault in faults}


def documents_of(prepared):
    documents = PreparedDocuments(prepared, "train", "pixels", plain_statistics(3))
    return [[shown(prepared, s) for s in documents[n].segments] for n in range(len(documents.images))]


def shown(prepared, segment):
    if isinstance(segment, Text):
        text = prepared.tokenizer.decode(segment.tokens)
        return text if segment.loss else (text, False)
    return round(float(segment.latent.mean() + 1) * 127.5)


RED, BLUE = 67, 33
PAGES = {
    "a damaged image": (
        {"texts": [None, "hello", None, "bye"], "images": ["red.png", None, "bad.png", None]},
        [RED, "hello", "bye"],
        {"@0#2": "damaged image"},
    ),
    "an image that is too small": (
        {"texts": [None, "hello", None, "bye"], "images": ["dot.png", None, "blue.png", None]},
        ["hello", BLUE, "bye"],
        {"@0#0": "too small"},
    ),
    "a missing image and one that is damaged": (
        {"texts": [None, "x", None, None], "images": ["no.png", None, "bad.png", "red.png"]},
        ["x", RED],
        {"@0#0": "image cannot be read", "@0#2": "damaged image"},
    ),
    "every image": (
        {"texts": [None, "x", None], "images": ["bad.png", None, "dot.png"]},
        ["x"],
        {"@0#0": "damaged image", "@0#2": "too small"},
    ),
    "everything": (
        {"texts": [None, None], "images": ["bad.png", "dot.png"]},
        None,
        {"@0#0": "damaged image", "@0#1": "too small", "@0": "no segment that can be used"},
    ),
    "an image of MMC4": (
        {
            "text_list": ["one", "two"],
            "image_info": [
                {"image_name": "bad.png", "matched_text_index": 0},
                {"image_name": "red.png", "matched_text_index": 1},
            ],
        },
        ["one", RED, "two"],
        {"@0#0": "damaged image"},
    ),
    "an image between marks": (
        {"text": "a <image> b <image>", "images": ["bad.png", "red.png"]},
        ["a ", " b ", RED],
        {"@0#1": "damaged image"},
    ),
}


@pytest.mark.parametrize("wrong", PAGES)
def test_a_page_stays_without_what_cannot_be_decoded(wrong, tmp_path):
    line, expected, reasons = PAGES[wrong]
    documents, faults = stored(tmp_path, line, min_size=8)
    assert documents == ([expected] if expected else [])
    assert {key: reason.partition(":")[0] for key, reason in faults.items()} == reasons


@pytest.mark.parametrize(
    "line",
    [
        {"caption": "c", "image": "bad.png"},
        {"caption": ["c", "d"], "image": "dot.png"},
        {"text": "<image> c", "images": ["bad.png"]},
        {"text": "a <image> b", "image": "bad.png"},
        {"segments": [{"image": "red.png", "loss": False}, {"text": "x", "loss": False}, {"image": "bad.png"}]},
    ],
)
def test_what_is_no_page_is_lost_with_its_image(line, tmp_path):
    documents, faults = stored(tmp_path, line, {"text": "good"}, min_size=8)
    assert documents == [["good"]]
    assert {reason.partition(":")[0] for reason in faults.values()} <= {"damaged image", "too small"}


MASKS = [
    [("question? ", False), ("answer", True)],
    [("a", True), ("b", False), ("c", True)],
    [("a", False)],
    [("a", False), ("b", False), ("c", True), ("d", True)],
    [("x" * (PART + 5), False), ("y", True)],
    [("x" * (PART - 1), False), ("yz", True), ("w" * PART, False)],
    [("x" * PART, True), ("y" * PART, False)],
    [("a" * 70000, True), ("b" * 70000, True)],
]


@pytest.mark.parametrize("mask", MASKS, ids=[str(n) for n in range(len(MASKS))])
def test_texts_without_a_loss_keep_that_in_records_and_in_rows(mask, tmp_path):
    line = {"segments": [{"text": text, "loss": loss} for text, loss in mask]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({"text": "next"}))
    prepared = helpers.prepare(tmp_path / "out", [str(tmp_path / "a.jsonl")])
    documents = PreparedDocuments(prepared, "train", "pixels", None)
    assert documents.text_lengths.tolist() == [sum(len(text) for text, _ in mask), 4]
    document, after = documents[0], documents[1]
    tokens = np.concatenate([segment.tokens for segment in document.segments])
    assert bytes(tokens.astype(np.uint8)).decode() == "".join(text for text, _ in mask)
    expected = np.concatenate([np.full(len(text), loss) for text, loss in mask])
    losses = np.concatenate([np.full(len(s.tokens), s.loss) for s in document.segments])
    np.testing.assert_array_equal(losses, expected)
    assert [s.loss for s in after.segments] == [True]
    for begin, end in ((0, 3), (PART - 2, PART + 3), (0, 10**9)):
        np.testing.assert_array_equal(documents.text(0, begin, end), tokens[begin:end])
    sizes = [sum(len(s.tokens) for s in documents.record(n).segments) for n in range(documents.first_record(1))]
    assert max(sizes) <= PART
    length = min(len(tokens) + 1, 200)
    config = helpers.tiny_config(model__vocabulary=256, data__context_length=256, data__max_text=256)
    row = assemble(0, [Piece(document, len(tokens) + 1 - length, length, 0)], config, SPECIAL)
    of_row = np.append(expected, mask[-1][1])[-length:]  # EOS belongs to the last
    np.testing.assert_array_equal(row.token_weight[:length], of_row)


def test_texts_that_all_bear_a_loss_are_one_segment_as_ever(tmp_path):
    lines = [{"segments": [{"text": "one "}, {"text": "two"}]}, {"text": "one two"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    documents = PreparedDocuments(helpers.prepare(tmp_path / "out", [str(tmp_path / "a.jsonl")]), "train", "", None)
    first, second = documents.record(0), documents.record(1)
    assert [len(first.segments), len(second.segments)] == [1, 1]
    np.testing.assert_array_equal(first.segments[0].tokens, second.segments[0].tokens)


def test_neighbours_that_bear_a_loss_alike_are_merged():
    segments = [Segment(np.array([n]), loss) for n, loss in enumerate((True, True, False, True))]
    found = merged(segments)
    assert [(s.tokens.tolist(), s.loss) for s in found] == [([0, 1], True), ([2], False), ([3], True)]


@pytest.mark.parametrize("form", ["segments", "page", "marks"])
def test_too_many_images_are_refused_before_they_are_read(form, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(records.ImageFolder, "read", lambda self, name, what="image": read.append(name) or b"")
    names = ["red.png"] * 66_000
    line = {
        "segments": {"segments": [{"image": name} for name in names]},
        "page": {"images": [*names, None], "texts": [None] * len(names) + ["x"]},
        "marks": {"text": "<image>" * len(names) + "x", "images": names},
    }[form]
    documents, faults = stored(tmp_path, line, {"text": "good"})
    assert documents == [["good"]]
    assert faults == {"@0": "too many images: 66,000, and a document of this image size holds 65,535 at most"}
    assert read == []


def test_as_many_images_as_the_index_counts_are_counted_right(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "COUNTED", 3)
    page = {"images": ["red.png"] * 3 + [None], "texts": [None] * 3 + ["x"]}
    documents, faults = stored(tmp_path, page, {"images": ["red.png"] * 4, "texts": [None] * 4})
    assert documents == [[RED, RED, RED, "x"]]
    assert list(faults.values()) == ["too many images: 4, and a document of this image size holds 3 at most"]


def test_the_larger_the_images_the_fewer_a_document_holds():
    assert records.most_images(8**2) == 65_535
    assert records.most_images(256**2) == 1365
    assert records.most_images(256**2, channels=1) == 4096
    assert records.most_images(8192**2) == records.most_images(20_000**2) == 1


@pytest.mark.parametrize(
    "line",
    [
        {"segments": [{"image": "red.png"}] * 9 + [{"text": "x"}]},
        {"images": ["red.png"] * 9, "texts": [None] * 9},
    ],
)
def test_images_of_a_document_that_are_too_large_together_are_refused(line, tmp_path, monkeypatch):
    size = len(encoded(Picture.new("RGB", (16, 16), (200, 0, 0)), "PNG"))
    monkeypatch.setattr(records.files, "LARGEST", 8 * size)
    documents, faults = stored(tmp_path, line, {"text": "good"})
    assert documents == [["good"]]
    assert faults["@0"].startswith("document too large")


META = [
    ({"title": "cut \ud83d"}, False),
    ({"\ud83d": 1}, False),
    ({"score": float("nan")}, False),
    ({"score": [1, {"x": float("inf")}]}, False),
    ({"title": "é\x1b[31m"}, True),
    ({"deep": json.loads("[" * 900 + "]" * 900)}, True),
]


@pytest.mark.parametrize(("meta", "kept"), META, ids=["half", "half of a key", "NaN", "infinity", "escape", "deep"])
def test_what_cannot_be_kept_beside_a_document_is_a_fault(meta, kept, tmp_path):
    documents, faults = stored(tmp_path, {"segments": [{"text": "x"}], "meta": meta}, {"text": "good"})
    assert documents == ([["x"], ["good"]] if kept else [["good"]])
    assert kept or faults["@0"].startswith("meta cannot be kept")


def test_what_other_readers_make_is_checked_too(tmp_path):
    job = shard.PrepareJob((), helpers.ReadOptions(image_size=8))
    faults: list[Fault] = []
    for raw in (RawDocument("k", (RawText("\ud800"),)), RawDocument("k", (RawText("x"),), {"a": object()})):
        with pytest.raises(records.RecordError):
            shard._convert(raw, job, helpers.tokenizers.load_tokenizer("bytes"), faults)
    assert faults == []


class Silent:
    """A tokenizer that has no tokens for spaces and full stops."""

    def encode(self, text):
        return np.array([ord(c) for c in text if c not in " ."], np.int32)


def test_a_text_of_no_tokens_is_a_fault():
    job, image = shard.PrepareJob((), helpers.ReadOptions(image_size=8)), Picture.new("RGB", (8, 8))
    picture, blank, text = RawImage(encoded(image, "PNG")), RawText(" . "), RawText("a")
    for segments in ((blank,), (blank, picture), (picture, text, blank)):
        with pytest.raises(records.RecordError, match="no tokens"):
            shard._convert(RawDocument("k", segments), job, Silent(), [])
    faults: list[Fault] = []
    made = shard._convert(RawDocument("k", (blank, picture, text), places=(0, 3, 4)), job, Silent(), faults)
    assert faults == [Fault("k#0", "no tokens: the tokenizer leaves nothing of the text")]
    assert [s.tokens is None for s in made.records[0].segments] == [True, False]
    assert isinstance(Image(made.pixels), Image)


def test_faults_are_written_as_they_come_and_none_is_kept(tmp_path, monkeypatch):
    alive = weakref.WeakSet()

    def faults(part, options):
        for number in range(500):
            alive.add(fault := Fault(f"{part.path[-7]}{number}" + "k" * 2000, "of some kind: " + "r" * 2000))
            yield fault
            del fault
            assert len(alive) <= 2
        yield RawDocument("good", (RawText("good"),))

    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("{}")
    monkeypatch.setattr(shard, "read_shard", faults)
    prepared = helpers.prepare(tmp_path / "out", [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [line["key"].rstrip("k") for line in lines[:-1]] == [f"{name}{n}" for name in "ab" for n in range(500)]
    assert {len(line["key"]) for line in lines[:-1]} == {shard.SHOWN}
    assert lines[-1]["reason"].startswith("duplicate: of a document in another shard")
    assert json.loads((tmp_path / "out/data.json").read_text())["quarantine"] == {
        "duplicate": 1,
        "of some kind": 1000,
    }
    assert documents_of(prepared) == [["good"]]


def test_of_many_faults_of_a_kind_some_have_a_line_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "LINES", 3)
    lines = "x\n" * 10 + '{"a": 1}\n' * 3 + '{"text": "good"}\n' + "y\n"
    (tmp_path / "a.jsonl").write_text(lines)
    prepared = helpers.prepare(tmp_path / "out", [str(tmp_path / "a.jsonl")])
    said = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [line["key"] for line in said] == ["@0", "@2", "@4", "@20", "@29", "@38", ""]
    assert said[-1]["reason"] == "not JSON: and 8 more, after 3 that have a line each"
    assert prepared.manifest["quarantine"] == {"neither image nor text": 3, "not JSON": 11}
    assert documents_of(prepared) == [["good"]]
