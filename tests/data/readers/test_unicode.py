"""Every text that readers take, with everything that can be wrong with one: in values, keys, names and paths."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import helpers
from data.readers.samples import encoded, read, tar
from transfusion_jax.cli import main
from transfusion_jax.data.datasets import plain_statistics
from transfusion_jax.data.documents import Text
from transfusion_jax.data.store.dataset import PreparedDocuments
from transfusion_jax.errors import STEERING

TROUBLES = {  # as bytes, of which some are no UTF-8
    "half of a pair": "\ud83d".encode(errors="surrogatepass"),
    "the other half": "\ude00".encode(errors="surrogatepass"),
    "halves in the wrong order": "\ude00\ud83d".encode(errors="surrogatepass"),
    "zero": b"\0",
    "a mark of Windows": b"\xef\xbb\xbf",
    "Latin-1": b"caf\xe9",
    "UTF-16": "caf\u00e9".encode("utf-16"),
    "an overlong form": b"\xc0\xaf",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "cut short": "😀".encode()[:3],
    "colours": b"\x1b[31mred",
    "a title": b"\x1b]0;title\x07",
    "a control of eight bits": "\x9b31m".encode(),
    "a bell and a delete": b"\x07\x7f",
    "a carriage return": b"innocent\rharmful",
    "right to left": "\u202egnp\u2066x".encode(),
    "a line's end": "\u2028".encode(),
    "no character": "\uffff".encode(),
    "joined": "👩\u200d🚀 e\u0301".encode(),
}
WHOLE = [b"x %s y" % trouble for trouble in TROUBLES.values()]  # a text with each
COUNT = len(WHOLE)


def is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def escaped(data):
    """As JSON, in which halves of pairs, and bytes that are no characters, are escapes."""
    how = "surrogatepass" if b"\xed" in data else "surrogateescape"
    return json.dumps(data.decode(errors=how)).encode()


def image(number):
    return encoded(Image.new("RGB", (4, 4), (10 * number, 0, 0)), "PNG")


def with_images(folder):
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(image(number))


def lines(folder, form, values):
    """The form with the number of each value for # and the value for @."""
    written = [form.replace(b"#", b"%d" % n).replace(b"@", value) for n, value in enumerate(values)]
    (folder / "a.jsonl").write_bytes(b"\n".join(written))
    return folder / "a.jsonl"


def table(folder, rows):
    with_images(folder)
    (folder / "metadata.csv").write_bytes(b"\n".join([b"file_name,text", *rows]))
    return folder


def named(folder, ending, data):
    """Files whose names have the troubles in them."""
    for n, trouble in enumerate(WHOLE):
        with open(os.fsencode(folder) + b"/" + trouble.replace(b"\0", b"") + ending, "wb") as file:
            file.write(data(n))
    return folder


def members(folder, found):
    decoded = [(name.decode(errors="surrogateescape"), data) for name, data in found]
    (folder / "a.tar").write_bytes(tar(decoded))
    return folder


def columns(folder, **values):
    pq.write_table(pa.table(values), folder / "a.parquet")
    return folder / "a.parquet"


def strings():
    """A column of strings that, as others write them, may be no UTF-8."""
    held = pa.array(WHOLE)
    return pa.Array.from_buffers(pa.string(), len(held), held.buffers())


def coco(folder, names, captions):
    with_images(folder)
    notes = [b'{"image_id": %d, "caption": %s}' % (n, caption) for n, caption in enumerate(captions)]
    listed = [b'{"id": %d, "file_name": %s}' % (n, name) for n, name in enumerate(names)]
    (folder / "a.json").write_bytes(
        b'{"images": [%s], "annotations": [%s]}' % (b",".join(listed), b",".join(notes))
    )
    return folder / "a.json"


ESCAPED = list(map(escaped, WHOLE))
NUMBERS = [b"%d" % n for n in range(COUNT)]
VALUES = {  # where the troubles stand in texts
    "text in a line": lambda folder: lines(folder, b'{"n": #, "text": @}', ESCAPED),
    "caption in a line": lambda folder: (
        with_images(folder) or lines(folder, b'{"image": "#.png", "caption": @}', ESCAPED)
    ),
    "segment": lambda folder: lines(folder, b'{"segments": [{"text": @}]}', ESCAPED),
    "part of a page": lambda folder: lines(folder, b'{"texts": [@], "images": [null]}', ESCAPED),
    "sentence": lambda folder: lines(folder, b'{"image_info": [], "text_list": [@]}', ESCAPED),
    "table": lambda folder: table(folder, [b'%d.png,"%s"' % (n, t) for n, t in enumerate(WHOLE)]),
    "beside an image": lambda folder: (
        with_images(folder) or ([(folder / f"{n}.txt").write_bytes(t) for n, t in enumerate(WHOLE)] and folder)
    ),
    "member": lambda folder: members(folder, [(b"%d.txt" % n, t) for n, t in enumerate(WHOLE)]),
    "field of a member": lambda folder: members(
        folder, [(b"%d.json" % n, b'{"text": %s}' % t) for n, t in enumerate(ESCAPED)]
    ),
    "column of bytes": lambda folder: columns(folder, text=WHOLE),
    "column of strings": lambda folder: columns(folder, text=strings()),
    "COCO's caption": lambda folder: coco(folder, [b'"%d.png"' % n for n in range(COUNT)], ESCAPED),
}
OTHERS = {  # where they stand in keys, names and paths, beside texts that are numbers
    "key that is not read": lambda folder: lines(folder, b'{"text": "#", @: 1}', ESCAPED),
    "value that is not read": lambda folder: lines(folder, b'{"text": "#", "of": [@]}', ESCAPED),
    "unknown field": lambda folder: lines(folder, b'{"txt": "#", @: 1}', ESCAPED),
    "bytes in a line": lambda folder: lines(folder, b'{"text": "#", "of": "@"}', WHOLE),
    "value of meta": lambda folder: lines(folder, b'{"segments": [{"text": "#"}], "meta": {"a": [@]}}', ESCAPED),
    "key of meta": lambda folder: lines(folder, b'{"segments": [{"text": "#"}], "meta": {@: 1}}', ESCAPED),
    "path of an image": lambda folder: lines(folder, b'{"caption": "#", "image": @}', ESCAPED),
    "path in a table": lambda folder: table(folder, [b'"%s",%d' % (t, n) for n, t in enumerate(WHOLE)]),
    "path in a column": lambda folder: columns(folder, image=strings(), caption=list(map(str, range(COUNT)))),
    "path in COCO's file": lambda folder: coco(folder, ESCAPED, [b'"%d"' % n for n in range(COUNT)]),
    "name of an image": lambda folder: named(named(folder, b".png", image), b".txt", NUMBERS.__getitem__),
    "name of a member": lambda folder: members(
        folder, [(t.replace(b"\0", b"") + b".txt", b"%d" % n) for n, t in enumerate(WHOLE)]
    ),
    "name of a shard": lambda folder: named(folder, b".jsonl", lambda n: b'{"text": "%d"}' % n),
}


@pytest.mark.parametrize("place", VALUES)
def test_a_text_is_stored_as_it_is_and_what_is_none_has_a_line(place, tmp_path):
    texts, faults = prepared(tmp_path, VALUES[place], place)
    right = {text.decode().strip() for text in WHOLE if is_text(text)}
    if place == "beside an image":  # where each line is a caption
        right = {line.strip() for text in right for line in text.split("\r")}
    assert {text.strip() for text in texts} == right
    wrong = [f for f in faults if f["reason"] != "no segment that can be used"]
    assert len(wrong) == sum(not is_text(text) for text in WHOLE)
    assert all("UTF-8" in fault["reason"] for fault in wrong)


@pytest.mark.parametrize("place", OTHERS)
def test_keys_names_and_paths_of_any_kind_end_nothing_and_every_record_is_accounted_for(place, tmp_path):
    texts, faults = prepared(tmp_path, OTHERS[place], place)
    assert set(texts) <= {str(n) for n in range(COUNT)}
    faults = [fault for fault in faults if not fault["reason"].startswith("not named in")]
    assert len(texts) + len(faults) == COUNT
    if place in ("name of an image", "name of a member", "name of a shard", "key that is not read"):
        assert faults == []


def prepared(folder, write, place):
    """The texts that are stored, and the lines of what is not."""
    (folder / "in").mkdir()
    path = write(folder / "in")
    found = helpers.prepare(folder / "out", [str(path)], format="coco" if "COCO" in place else None)
    for file in (folder / "out").rglob("*.json*"):
        assert not STEERING.search(file.read_bytes().decode()), file.name
    documents = PreparedDocuments(found, "train", "pixels", plain_statistics(3))
    read = [documents[n] for n in range(len(documents.images))]
    keys = [documents.origin(n) for n in range(len(read))]
    assert all(key.encode() for key in keys)
    texts = [found.tokenizer.decode(s.tokens) for d in read for s in d.segments if isinstance(s, Text)]
    return texts, [json.loads(line) for line in (folder / "out/quarantine.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("ready_workers")
@pytest.mark.parametrize("place", ["unknown field", "name of a member"])
def test_nothing_that_steers_a_terminal_is_printed(place, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    path = str(OTHERS[place](tmp_path / "in"))
    for more in (["--dry-run"], []):
        main(["prepare", path, "--output", str(tmp_path / "out"), "--held-out", "0", "--workers", "1", *more])
        said = capsys.readouterr()
        assert not STEERING.search(said.out + said.err)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("text", ["two words", "one\ntwo\n", "x"])
def test_a_caption_in_another_encoding_is_never_a_text(encoding, text, tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "b.tar").write_bytes(tar([("c.txt", text.encode(encoding))]))
    found = read(tmp_path)
    assert len(found) > 1
    assert all("UTF-8" in fault.reason for fault in found)
