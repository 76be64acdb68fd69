"""Records whose images stand under names of every kind: understood, or a fault that says what to do."""

import base64
import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.readers.samples import outcomes, pair, read, tar
from transfusion_jax.data.readers import RawDocument, RawImage, RawText, fields

PNG = b"\x89PNG\r\n\x1a\n"
A, B = RawImage(b"image a"), RawImage(b"image b")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(A.data)
    (tmp_path / "b.png").write_bytes(B.data)
    return tmp_path


def of(folder, record, **options):
    (folder / "a.jsonl").write_text(json.dumps(record))
    return outcomes(read(folder / "a.jsonl", **options))


UNDERSTOOD = [
    ({"text": "see <image> and <image>", "images": ["a.png", "b.png"]}, (RawText("see "), A, RawText(" and "), B)),
    ({"text": "<image><image> two", "images": ["a.png", "b.png"]}, (A, B, RawText(" two"))),
    ({"text": "<image>\nof one", "images": ["a.png"]}, pair("of one", A.data)),
    ({"text": "of one", "images": ["a.png"]}, pair("of one", A.data)),
    ({"text": "before <image> after", "image": "a.png"}, (RawText("before "), A, RawText(" after"))),
    ({"caption": "c", "images": [{"path": "a.png", "bytes": None}]}, pair("c", A.data)),
    ({"caption": "c", "image_path": "a.png"}, pair("c", A.data)),
    ({"caption": "c", "file_name": "a.png"}, pair("c", A.data)),
    ({"text": "c", "file_name": "a.png"}, pair("c", A.data)),
    ({"text": "c", "filepath": "a.png", "width": 3}, pair("c", A.data)),
    ({"text": "c", "img": "a.png", "url": "http://x.org/page"}, pair("c", A.data)),
    ({"captions": ["c"], "image_file": "a.png", "id": 3}, pair("c", A.data)),
    ({"text": "c", "jpg": {"bytes": base64.b64encode(b"image a").decode()}}, pair("c", A.data)),
    ({"text": "c", "image_url": "data:image/png;base64,aW1hZ2UgYQ=="}, pair("c", A.data)),
    ({"text": "no image", "images": []}, (RawText("no image"),)),
    ({"text": "no image", "images": None, "url": "https://x.org/"}, (RawText("no image"),)),
    (
        {"text": "of a web page", "url": "https://x.org/a", "timestamp": "2019", "score": 0.3},
        (RawText("of a web page"),),
    ),
    ({"text": "code", "path": "src/a.py", "size": 3}, (RawText("code"),)),
    ({"text": "counted", "image_count": 3, "has_images": True}, (RawText("counted"),)),
]


@pytest.mark.parametrize(("record", "expected"), UNDERSTOOD)
def test_layouts_that_leave_no_doubt_are_understood(record, expected, folder):
    assert list(of(folder, record).values()) == [expected]


SAME = [  # what says the image again, or where it is from
    {"image_path": "in/a.png"},
    {"file_name": "./a.png"},
    {"image_url": "http://x.org/of.jpg"},
    {"source": "http://x.org/of.jpg"},
    {"url": "http://x.org/of.jpg", "image_id": "a", "image_size": [3, 4]},
    {"images": ["a.png"]},
    {"images": []},
    {"image_bytes": None},
]
OTHER = [  # what says another
    {"image_2": "b.png"},
    {"image_path": "b.png"},
    {"images": ["a.png", "b.png"]},
    {"mask": {"path": "b.png"}},
    {"after": "data:image/png;base64,aaaa"},
    {"second": {"bytes": "aGk=", "path": "a.png"}},
    {"file_name": "b.png"},
    {"image_2": "http://x.org/of.jpg"},
    {"pages": [{"file": "b.png"}, {"file": "c.png"}]},
]


@pytest.mark.parametrize("text", ["text", "caption"])
@pytest.mark.parametrize("beside", SAME)
def test_fields_that_say_the_same_image_leave_no_doubt(beside, text, folder):
    assert list(of(folder, {text: "c", "image": "a.png"} | beside).values()) == [pair("c", A.data)]


@pytest.mark.parametrize("text", ["text", "caption"])
@pytest.mark.parametrize("beside", OTHER)
def test_an_image_in_another_field_is_never_left_out(beside, text, folder):
    record = {text: "c", "image": "a.png"} | beside
    assert list(of(folder, record).values()) == ["images in several fields"]
    assert list(of(folder, record, image_column="image").values()) == [pair("c", A.data)]


@pytest.mark.parametrize("path", [None, "x.png"])
def test_names_beside_the_bytes_of_an_image_are_its_own(path, folder):
    image = {"bytes": base64.b64encode(b"image a").decode(), "path": path}
    assert list(of(folder, {"text": "c", "image": image, "file_name": "b.png"}).values()) == [pair("c", A.data)]
    assert list(of(folder, {"text": "c", "image": image, "image_2": image}).values()) == [pair("c", A.data)]
    other = image | {"bytes": "aGk="}
    assert list(of(folder, {"text": "c", "image": image, "image_2": other}).values()) == [
        "images in several fields"
    ]


def test_files_of_one_name_in_two_folders_are_two_images(folder):
    (folder / "before").mkdir()
    (folder / "before/a.png").write_bytes(A.data)
    record = {"text": "c", "image": "before/a.png", "image_2": "after/a.png"}
    assert list(of(folder, record).values()) == ["images in several fields"]
    many = {"text": "c", "images": [f"{n}.png" for n in range(99)], "paths": [f"in/{n}.png" for n in range(99)]}
    assert list(of(folder, many).values()) == ["images in several fields"]  # they are too many to be compared


UNKNOWN = "images in fields that are not known: keys are"
REFUSED = [
    (
        {"text": "see <image>", "images": ["a.png", "b.png"]},
        "marks and images differ: 1 marks",
    ),
    ({"text": "no mark", "images": ["a.png", "b.png"]}, "marks and images differ: 0 marks"),
    ({"text": "<image> <image>", "image": "a.png"}, "marks and images differ: 2 marks"),
    ({"text": "<image>", "image": "a.png"}, "marks and images differ"),
    ({"text": "see <image>"}, "the text has a mark <image> and there is no image"),
    ({"caption": "a caption"}, "a caption and no image: keys are 'caption'"),
    ({"caption": "a caption", "url": "http://x.org/1.jpg"}, "image is a URL: fetch the images first"),
    ({"caption": "a caption", "url": "http://x.org/1"}, "image is a URL: fetch the images first"),
    ({"text": "c", "url": "http://x.org/1.jpg?w=3"}, "image is a URL: fetch the images first"),
    ({"text": "c", "image": []}, "no image"),
    ({"text": "c", "image_path": None}, "no image"),
    ({"text": "c", "pics": ["a.png"]}, "images in fields that are not known: keys are 'pics'"),
    (
        {"text": "c", "left_image": "a", "right_image": "b"},
        "images in fields that are not known: keys are 'left_image', 'r",
    ),
    (
        {"text": "c", "media": [{"kind": "photo", "at": "x/a.JPG"}]},
        "images in fields that are not known: keys are 'media'",
    ),
    ({"text": "c", "data": "data:image/png;base64,aaaa"}, f"{UNKNOWN} 'data'"),
    ({"text": "c", "image": "data:image/png;base64,a"}, "image is not base64"),
    ({"text": "c", "data": {"bytes": "aaaa"}}, "images in fields that are not known: keys are 'data'"),
    ({"image": "a.png", "conversations": []}, "no caption"),
    ({"info": {}, "images": [{"id": 1}], "annotations": []}, "images and no text: keys are 'info', 'images', 'ann"),
]


@pytest.mark.parametrize(("record", "reason"), REFUSED)
def test_a_record_that_leaves_doubt_is_a_fault_and_no_text(record, reason, folder):
    (folder / "a.jsonl").write_text(json.dumps(record))
    [fault] = read(folder / "a.jsonl")
    assert fault.reason.startswith(reason)
    if reason.startswith((UNKNOWN, "a caption")):
        assert "--image-column" in fault.reason


NAMES = [
    "image",
    "images",
    "img",
    "pic",
    "photos",
    "media",
    "files",
    "x",
    "Image_0",
    "content",
    "frame",
    "path",
    "url",
]
IMAGES = ["a.png", "in/B.JPEG", "http://x.org/c.webp", {"path": "a.png"}, {"bytes": "aGk="}, {"file": "a.tiff"}]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.sampled_from(["text", "caption", "captions"]),
    name=st.sampled_from(NAMES),
    image=st.sampled_from(IMAGES) | st.lists(st.sampled_from(IMAGES), min_size=1, max_size=3),
    marks=st.integers(0, 3),
)
def test_the_text_of_an_image_is_never_a_text_alone(text, name, image, marks, folder):
    found = of(folder, {text: "words " + "<image> " * marks, name: image, "id": 3}).values()
    assert found
    documents = [r for r in found if isinstance(r, tuple)]
    pages = isinstance(image, list) and len(image) == marks > 1  # which stay where their images are lost
    assert pages or all(any(isinstance(s, RawImage) for s in segments) for segments in documents)
    assert not any("<image>" in s.text for segments in documents for s in segments if isinstance(s, RawText))


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        ({"words": "c", "pic": "a.png"}, {"image_column": "pic", "text_column": "words"}, pair("c", b"image a")),
        ({"text": "<image> c", "pics": ["a.png"]}, {"image_column": "pics"}, pair("c", b"image a")),
        ({"text": "c <image>", "thumbnail_image": "x"}, {"text_column": "text"}, (RawText("c <image>"),)),
        ({"caption": "c"}, {"text_column": "caption"}, (RawText("c"),)),
        ({"text": "c", "url": "http://x.org/File:a.jpg"}, {"text_column": "text"}, (RawText("c"),)),
        ({"words": "c", "image": "a.png"}, {"text_column": "words"}, pair("c", b"image a")),
    ],
)
def test_options_settle_what_a_record_leaves_open(record, options, expected, folder):
    assert list(of(folder, record, **options).values()) == [expected]


@pytest.mark.parametrize(("record", "reason"), [r for r in REFUSED if r[1] != "no image"])
def test_a_json_member_alone_is_held_to_the_same(record, reason, tmp_path):
    (tmp_path / "a.tar").write_bytes(tar([("0.json", json.dumps(record).encode())]))
    assert not [r for r in read(tmp_path / "a.tar") if isinstance(r, RawDocument)]


def test_known_endings_and_beginnings_are_those_of_images():
    assert fields.is_image("a/B.JPG")
    assert fields.is_image("https://x.org/a.png?size=3#top")
    assert not any(map(fields.is_image, ("a.png/b", ".png", "._a.png", "a.heic", "https://x.org/?a.png")))
    starts = (PNG, b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF....WEBP", b"....ftypavif")
    assert all(map(fields.looks_like_image, starts))
    assert not any(map(fields.looks_like_image, (b"", b"MM\0*", b"....ftypheic", b"RIFF....WAVE", b"a text")))
    assert len(set(fields.IMAGES)) == len(list(itertools.chain(fields.IMAGES)))


KEYS = [*fields.FIELDS, *fields.FILES, *fields.URLS, *fields.CAPTIONS, "text", "texts", "text_list", "image_info"]
KEYS += ["segments", "meta", "loss", "bytes", "path", "image_name", "raw_url", "matched_text_index", "x"]
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["", " ", "a.png", "<image> c", "c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=st.dictionaries(st.sampled_from(KEYS), ANY, max_size=4))
def test_any_record_is_a_document_or_has_a_line(record, folder):
    assert of(folder, record)
    (folder / "a.tar").write_bytes(tar([("0.json", json.dumps(record).encode()), ("1.txt", b"good")]))
    found = outcomes(read(folder / "a.tar"))
    assert found.pop("1") == (RawText("good"),)
    assert found
