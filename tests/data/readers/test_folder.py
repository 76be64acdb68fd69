import json

import pytest

from data.readers.samples import outcomes, pair, read
from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import ReadOptions, coco, files, folder, input_shards, read_shard, records

COCO = {
    "images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}, {"id": 3, "file_name": "no.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 1, "caption": "one of a\n"},
        {"id": 2, "image_id": 2, "caption": "one of b"},
        {"id": 3, "image_id": 1, "caption": "two of a"},
        {"id": 4, "image_id": 3, "caption": "lost"},
    ],
}
KARPATHY = {
    "images": [
        {"filepath": "in", "filename": "c.jpg", "split": "train", "sentences": [{"raw": "c1"}, {"raw": "c2"}]},
        {"filename": "a.jpg", "split": "restval", "sentences": [{"raw": "a1"}]},
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "b1"}]},
    ]
}


def test_captions_stand_one_a_line_beside_their_images_in_sorted_order(tmp_path):
    put(tmp_path, {"b.jpg": b"b", "b.txt": "one\n\n two \r\n", "in/a.b.PNG": b"a", "in/a.b.txt": b"\xef\xbb\xbfx"})
    put(tmp_path, {"c.gif": b"c", "d.jpg": b"d", "d.txt": " \n", "e.jpg": b"e", "e.txt": b"\xff", ".f.jpg": b"f"})
    found = outcomes(read(tmp_path))
    assert found == {
        "b.jpg#0": pair("one", b"b"),
        "b.jpg#1": pair("two", b"b"),
        "c.gif": "no caption",
        "d.jpg#0": "empty caption",
        "e.jpg#0": "caption is not UTF-8",
        "in/a.b.PNG#0": pair("x", b"a"),
    }
    assert list(found) == sorted(found)


def test_too_many_captions_of_one_image_are_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "COUNTED", 3)
    put(tmp_path, {"a.jpg": b"a", "a.txt": b"c\n" * 9, "b.jpg": b"b", "b.txt": b"c\n" * 5, "c.jpg": b"c"})
    put(tmp_path, {"c.txt": b"1\n\n2\n3\n"})
    found = outcomes(read(tmp_path))
    assert {found["a.jpg"], found["b.jpg"]} == {"too many captions"}
    assert [found[f"c.jpg#{n}"][0].text for n in range(3)] == ["1", "2", "3"]


def test_tables_of_captions_name_their_images(tmp_path):
    lines = [b'{"file_name": "a.jpg", "text": ["one", "two"]}', b"{", b'{"text": "c"}', b'{"file_name": "b.jpg"}']
    put(tmp_path, {"x/a.jpg": b"a", "x/b.jpg": b"b", "x/unnamed.jpg": b"c", "x/metadata.jsonl": b"\n".join(lines)})
    put(tmp_path, {"y/metadata.csv": b'file_name,text\n../x/b.jpg,"of ""b"",\nand c"\nno.jpg,c\n,d\nz.jpg\n'})
    assert outcomes(read(tmp_path)) == {
        "x/a.jpg#0": pair("one", b"a"),
        "x/a.jpg#1": pair("two", b"a"),
        "x/metadata.jsonl@47": "not JSON",
        "x/metadata.jsonl@49": "no file_name",
        "x/b.jpg": "no caption",
        "x/unnamed.jpg": "not named in x/metadata.jsonl",
        "y/../x/b.jpg": pair('of "b",\nand c', b"b"),
        "y/no.jpg": "image cannot be read",
        "y/metadata.csv@5": "no file_name",
        "y/z.jpg": "image cannot be read",
    }


def test_an_option_names_the_column_of_captions(tmp_path):
    put(tmp_path, {"a.jpg": b"a", "metadata.csv": "file_name,text,en\na.jpg,no,yes\n"})
    assert outcomes(read(tmp_path, text_column="en")) == {"a.jpg": pair("yes", b"a")}
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ConfigError, match=r"--text-column needs a metadata\.jsonl or metadata\.csv"):
        input_shards([str(tmp_path)], None, ReadOptions(text_column="en"))


def test_a_row_that_is_not_csv_or_not_utf8_leaves_the_others(tmp_path):
    long, latin = b"a.jpg," + b"x" * 200_000, "a.jpg,caf\xe9".encode("latin-1")
    put(tmp_path, {"a.jpg": b"a", "b.jpg": b"b"})
    put(tmp_path, {"metadata.csv": b"\n".join([b"file_name,text", long, latin, b"b.jpg,b"])})
    found = outcomes(read(tmp_path))
    assert list(found.values()) == ["not CSV", "caption is not UTF-8", pair("b", b"b")]


DOUBTFUL = {  # rows of a table, and what becomes of each image
    "an unclosed quote": ['a.png,"a sign', "b.png,a car", "c.png,a tree"],
    "one that a later row closes": ['a.png,"a sign', 'b.png,"a car"', "c.png,a tree"],
    "one that a later row seems to close": ['a.png,"a sign', "b.png,a car", 'c.png,"'],
    "one that a text's quote closes": ['a.png,"a sign', 'b.png,a "red" car', "c.png,a tree"],
    "a long text of several lines": ['a.png,"' + "x" * 140_000, "b.png,said by a", '"', "c.png,a tree"],
    "two unclosed quotes": ['a.png,"a sign', 'b.png,"', 'c.png,"a tree'],
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_a_caption_never_holds_rows_and_a_row_is_never_made_of_a_caption(kind, tmp_path):
    put(tmp_path, dict.fromkeys(("a.png", "b.png", "c.png"), b"i"))
    put(tmp_path, {"metadata.csv": "\n".join(["file_name,caption", *DOUBTFUL[kind]]) + "\n"})
    found = outcomes(read(tmp_path))
    assert {"a.png", "b.png", "c.png"} <= found.keys()
    assert [r for r in found.values() if not isinstance(r, str)] in ([], [pair("a tree", b"i")])
    assert [key for key in found if key.startswith("metadata.csv@")]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("file_name,caption\na.png,a sign, and a car\n", "more fields than columns"),
        ("file_name,caption\n" + "," * folder.LINE + "\na.png,a\n", "not CSV"),
    ],
)
def test_a_row_that_leaves_doubt_has_a_line(table, reason, tmp_path):
    put(tmp_path, {"a.png": b"i", "metadata.csv": table})
    assert outcomes(read(tmp_path)) == {"metadata.csv@2": reason, "a.png": "not named in metadata.csv"}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("file_name,caption,caption", "two columns are called 'caption'"),
        ("file_name,caption" + "," * (folder.COLUMNS - 1), "too many columns"),
        ("file_name,caption," + "c" * 140_000, "not CSV"),
    ],
)
def test_columns_that_leave_doubt_have_a_line_for_all_rows(columns, reason, tmp_path):
    put(tmp_path, {"a.png": b"i", "metadata.csv": f"{columns}\n" + "a.png,one,two\n" * 9})
    assert outcomes(read(tmp_path)) == {"metadata.csv": reason, "a.png": "not named in metadata.csv"}


def test_a_table_may_have_many_columns(tmp_path):
    columns = ",".join(f"c{number}" for number in range(folder.COLUMNS - 2))
    put(tmp_path, {"a.png": b"i", "metadata.csv": f"file_name,caption,{columns}\na.png,one\n"})
    assert outcomes(read(tmp_path)) == {"a.png": pair("one", b"i")}


def test_a_row_after_one_that_is_not_csv_is_read_where_no_quote_is_open(tmp_path):
    put(tmp_path, {"a.png": b"i", "b.png": b"i"})
    put(tmp_path, {"metadata.csv": 'file_name,caption\na.png,"a" sign\nb.png,"one,\ntwo"\n'})
    assert outcomes(read(tmp_path)) == {
        "metadata.csv@2": "not CSV",
        "b.png": pair("one,\ntwo", b"i"),
        "a.png": "not named in metadata.csv",
    }


def test_a_table_says_what_is_read_of_its_own_folder_alone(tmp_path):
    put(
        tmp_path,
        {"a/metadata.csv": "file_name,text\n1.png,one\n../b/4.png,four\n", "a/1.png": b"1", "a/x.md": b"x"},
    )
    put(tmp_path, {"a/2.png": b"2", "a/2.txt": "two", "b/3.png": b"3", "b/3.txt": "three", "b/4.png": b"4"})
    put(tmp_path, {"b/5.heic": b"5", "b/6.png": b"6", "ab.png": b"7", "ab.txt": b"of ab"})
    assert outcomes(read(tmp_path)) == {
        "a/1.png": pair("one", b"1"),
        "a/../b/4.png": pair("four", b"4"),
        "a/2.png": "not named in a/metadata.csv",
        "a/2.txt": "not used",
        "a/x.md": "no image by its name",
        "b/3.png#0": pair("three", b"3"),
        "b/5.heic": ".heic is not read",
        "b/6.png": "no caption",
        "ab.png#0": pair("of ab", b"7"),
    }


@pytest.mark.parametrize("kind", ["metadata.csv", "metadata.jsonl", "captions.json"])
def test_a_table_is_read_once_for_all_its_shards_and_again_where_it_changes(kind, tmp_path, monkeypatch):
    names = [f"{n}.png" for n in range(20)]
    rows = [
        {"file_name": name, "text": name, "id": n, "image_id": n, "caption": name} for n, name in enumerate(names)
    ]
    content = {
        "metadata.csv": "\n".join(["file_name,text", *(f"{name},{name}" for name in names)]),
        "metadata.jsonl": "\n".join(map(json.dumps, rows)),
        "captions.json": json.dumps({"images": rows, "annotations": rows}),
    }[kind]
    put(tmp_path, dict.fromkeys(names, b"i") | {kind: content})
    path, format = (tmp_path / kind, "coco") if kind == "captions.json" else (tmp_path, None)
    options = ReadOptions(shard_size=3)
    shards = input_shards([str(path)], format, options)
    opened = []
    open_file = files.open_file
    monkeypatch.setattr(files, "open_file", lambda path: opened.append(path) or open_file(path))
    found = [record for shard in shards for record in read_shard(shard, options)]
    assert [r.key.partition("#")[0] for r in found] == names
    assert opened.count(str(tmp_path / kind)) == 1
    put(tmp_path, {kind: content.replace("1.png", "x.png")})
    assert [r.key.partition("#")[0] for r in read_shard(shards[0], options)] == ["0.png", "x.png", "2.png"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_table_that_is_a_link_out_of_the_folder_is_read_where_paths_are_allowed(name, tmp_path):
    table = "file_name,text\na.png,c\n" if name.endswith("csv") else '{"file_name": "a.png", "text": "c"}'
    put(tmp_path, {"in/a.png": b"i", "out": table})
    (tmp_path / "in" / name).symlink_to(tmp_path / "out")
    assert outcomes(read(tmp_path / "in")) == {
        name: "table lies outside the folder of the input",
        "a.png": f"not named in {name}",
    }
    assert outcomes(read(tmp_path / "in", allow_paths=True)) == {"a.png": pair("c", b"i")}


def test_files_of_coco_give_each_caption_in_the_order_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "OBJECTS", 3)  # such a file holds more than a record may
    put(tmp_path, {"pictures/a.jpg": b"a", "pictures/b.jpg": b"b", "captions.json": json.dumps(COCO)})
    found = outcomes(read(tmp_path / "captions.json", format="coco", images=str(tmp_path / "pictures")))
    assert found == {
        "b.jpg#0": pair("one of b", b"b"),
        "a.jpg#0": pair("one of a", b"a"),
        "a.jpg#1": pair("two of a", b"a"),
        "no.jpg": "image cannot be read",
    }


def test_karpathys_splits_are_chosen_by_name(tmp_path):
    put(tmp_path, {"in/c.jpg": b"c", "a.jpg": b"a", "b.jpg": b"b", "dataset_coco.json": json.dumps(KARPATHY)})
    path = tmp_path / "dataset_coco.json"
    assert list(outcomes(read(path, format="coco"))) == ["in/c.jpg#0", "in/c.jpg#1", "a.jpg#0", "b.jpg#0"]
    found = outcomes(read(path, format="coco", split="train,restval"))
    assert found == {"in/c.jpg#0": pair("c1", b"c"), "in/c.jpg#1": pair("c2", b"c"), "a.jpg#0": pair("a1", b"a")}
    with pytest.raises(ConfigError, match="no split 'tran': did you mean 'train'"):
        read(path, format="coco", split="tran")
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    with pytest.raises(ConfigError, match="no split 'train'"):
        read(tmp_path / "captions.json", format="coco", split="train")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"images": [3]}', '{"images": [], "annotations": 3}'])
def test_what_is_no_file_of_coco_is_a_sentence(text, tmp_path):
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ConfigError, match=r"captions\.json (cannot be read|is not a file of COCO)"):
        read(tmp_path / "captions.json", format="coco")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"x": [[]] * 5}, "too many values: more than 5 objects"),
        ({"x": [{}] * 5}, "too many values: more than 5 objects"),
        ({"x": [1] * 50}, "too many values: .* 40 commas"),
        ({"x": "x" * 999}, "too large: above"),
    ],
)
def test_a_file_of_coco_that_would_fill_the_memory_is_a_sentence(values, words, tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "BYTES", 900)
    monkeypatch.setattr(coco, "OBJECTS", 5)
    monkeypatch.setattr(records, "ITEMS", 40)
    (tmp_path / "c.json").write_text(json.dumps({"images": [], "annotations": []} | values))
    with pytest.raises(ConfigError, match=f"c.json cannot be read: {words}"):
        read(tmp_path / "c.json", format="coco")


def test_bad_entries_of_coco_are_faults(tmp_path):
    images = [
        {"id": 1},
        {"id": 2, "file_name": "a.jpg"},
        {"file_name": "a.jpg", "sentences": [{}, 3, {"raw": "c"}]},
    ]
    put(tmp_path, {"a.jpg": b"a", "captions.json": json.dumps({"images": images, "annotations": [{}]})})
    assert outcomes(read(tmp_path / "captions.json", format="coco")) == {
        "images[0]": "no file_name",
        "a.jpg": "no caption",
        "a.jpg#0": "no caption",
        "a.jpg#1": "caption is not a text",
        "a.jpg#2": pair("c", b"a"),
        "annotations[0]": "caption of no image",
    }


def test_a_caption_of_coco_is_of_the_one_image_that_has_its_id(tmp_path):
    images = [
        {"file_name": "none.jpg"},
        {"id": None, "file_name": "null.jpg"},
        {"id": 1, "file_name": "a.jpg", "split": "train"},
        {"id": 1, "file_name": "b.jpg", "split": "train"},
        {"id": 2, "file_name": "c.jpg", "split": "train"},
        {"id": "2", "file_name": "c.jpg", "split": "train"},
        {"id": 3, "file_name": "d.jpg", "split": "test"},
    ]
    about = [None, 1, 2, 3, 7, "x"]
    notes = [{"caption": "of none"}, *({"image_id": a, "caption": f"of {a}"} for a in about)]
    put(tmp_path, {image["file_name"]: image["file_name"] for image in images})
    put(tmp_path, {"captions.json": json.dumps({"images": images, "annotations": notes})})
    lost = dict.fromkeys((f"annotations[{n}]" for n in (0, 1, 5, 6)), "caption of no image")
    several = dict.fromkeys(("a.jpg", "b.jpg"), "captions of several images")
    found = {"c.jpg#0": pair("of 2", b"c.jpg")}
    rest = {"none.jpg": "no caption", "null.jpg": "no caption", "d.jpg#0": pair("of 3", b"d.jpg")}
    path = tmp_path / "captions.json"
    assert outcomes(read(path, format="coco")) == lost | several | found | rest
    assert outcomes(read(path, format="coco", split="train")) == lost | several | found


def put(folder, contents):
    for name, data in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
