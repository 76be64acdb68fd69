"""One folder that mixes all that people have: prepared, killed and prepared on, and decoded by other means."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from data.readers.samples import encoded, noise, tar
from transfusion_jax.cli import main
from transfusion_jax.errors import STEERING

SIDE = 16
COLOURS = [(20 + 37 * n % 200, n * 5, 255 - n * 5) for n in range(40)]


def png(number, size=SIDE):
    return encoded(Image.new("RGB", (size, size), COLOURS[number]), "PNG")


DAMAGED = encoded(Image.fromarray(noise(64, 64, 3)), "PNG")[:900]


class Everything:
    """The folder, the documents in it, and by source and key how the reasons begin why the rest is not used."""

    def __init__(self, root):
        self.folder, self.documents, self.faults = root / "in", [], {}
        self.folder.mkdir()
        (root / "secret.png").write_bytes(png(0))
        self.images()
        self.lines(root)
        self.archives()
        self.others()

    def put(self, name, data, *documents, **faults):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.holds(name, *documents, **faults)

    def holds(self, name, *documents, **faults):
        self.documents += documents
        self.faults |= {(name, key): reason for key, reason in faults.items()}

    def images(self):
        self.put("photos/a.png", png(1))
        self.put("photos/a.txt", b"one\ntwo", ["one", COLOURS[1]], ["two", COLOURS[1]])
        self.put("photos/b.jfif", png(2))
        self.put("photos/b.txt", "ça".encode(), ["ça", COLOURS[2]])
        self.put("photos/.ipynb_checkpoints/a-checkpoint.png", png(3))
        self.put("photos/.ipynb_checkpoints/a-checkpoint.txt", b"hidden")
        self.put("photos/._a.png", b"of macOS")
        self.put("__MACOSX/a.png", png(3))
        self.put("photos/c.heic", b"\0\0\0\x18ftypheic")
        self.put("photos/c.txt", b"of a HEIC")
        self.put("photos/d.png", DAMAGED)
        self.put("photos/d.txt", b"damaged")
        self.put("photos/e.png", png(4))
        self.put("photos/e.txt", b"caf\xe9")
        for ending, data in ((b"png", png(5)), (b"txt", b"of a Latin name")):
            with open(os.fsencode(self.folder) + b"/photos/caf\xe9." + ending, "wb") as file:
                file.write(data)
        os.mkfifo(self.folder / "photos/pipe.png")
        self.documents.append(["of a Latin name", COLOURS[5]])
        self.faults |= {
            ("", "photos/c.heic"): ".heic is not read: convert it to JPEG or PNG",
            ("", "photos/c.txt"): "captions of no image",
            ("", "photos/d.png#0"): "damaged image",
            ("", "photos/e.png#0"): "caption is not UTF-8",
            ("", "photos/pipe.png"): "image cannot be read: Not a regular file",
        }
        for name in ("tables/red.png", "tables/blue.png", "tables/bad.png", "tables/dot.png"):
            number = 6 + ("blue" in name)
            self.put(name, DAMAGED if "bad" in name else png(number, 1 if "dot" in name else SIDE))
            self.faults["", name] = "no caption"

    def lines(self, root):
        red, blue = COLOURS[6], COLOURS[7]
        page = {"texts": [None, "hello", None, "bye"], "images": ["red.png", None, "bad.png", None]}
        tiny = {"texts": [None, "Hello", None, "Bye"], "images": ["red.png", None, "dot.png", None]}
        mmc4 = {
            "text_list": ["first", "  ", "third"],
            "image_info": [{"image_name": "red.png", "matched_text_index": 2}],
        }
        records = [  # each with its documents, and the reasons of what is lost
            (
                {"segments": [{"text": "question? ", "loss": False}, {"text": "answer"}]},
                [("question? ", False), "answer"],
            ),
            ({"text": "see <image> and <image>", "images": ["red.png", "blue.png"]}, ["see ", red, " and ", blue]),
            ({"caption": "a dog", "image_path": "red.png"}, ["a dog", red]),
            ({"caption": "a cat", "url": "http://x/1.jpg"}, "image is a URL"),
            ({"text": "a bird", "pics": ["red.png"]}, "images in fields that are not known"),
            (page, [red, "hello", "bye"], "#2 damaged image"),
            (tiny, [red, "Hello", "Bye"], "#2 too small"),
            (
                {"texts": [None, "h", None], "images": ["blue.png", None, None]},
                [blue, "h"],
                "#2 no text and no image",
            ),
            (mmc4, ["first", red, "third"], "#1 empty text"),
            ({"segments": [{"text": "hi"}], "meta": {"title": "cut \ud83d"}}, "meta cannot be kept"),
            ({"caption": "x", "image": "\ud83d.png"}, "image cannot be read"),
            ({"text": "fine", "score": float("nan")}, ["fine"]),
            ({"caption": "y", "image": str(root / "secret.png")}, "image lies outside the folder of the input"),
            ({"caption": "z", "image": "../../secret.png"}, "image lies outside the folder of the input"),
            ({"images": ["red.png"] * 66_000, "texts": [None] * 66_000}, "too many images: 66,000"),
            ({"text": "\x1b[31mred\u202e"}, ["\x1b[31mred\u202e"]),
            ({"segments": [{"image": "red.png", "loss": False}, {"image": "bad.png"}]}, "damaged image"),
        ]
        at, data, faults, documents = 0, b"", {}, []
        for record, *outcomes in records:
            for outcome in outcomes:
                if isinstance(outcome, list):
                    documents.append(outcome)
                else:
                    place, _, reason = outcome.partition(" ") if outcome[0] == "#" else ("", "", outcome)
                    faults[f"@{at}{place}"] = reason
            line = json.dumps(record).encode() + b"\n"
            at, data = at + len(line), data + line
        self.put("tables/lines.jsonl", data, *documents, **faults)

    def archives(self):
        def sample(key, number):
            return [(f"{key}.png", png(number)), (f"{key}.txt", f"tar {key}".encode())]

        def pairs(*numbers):
            return [[f"tar {n}", COLOURS[n]] for n in numbers]

        self.put("set/00000.tar", tar([*sample(8, 8), ("8.json", b"{}")]), *pairs(8))
        pq.write_table(pa.table({"caption": ["no"], "url": ["u"]}), self.folder / "set/00000.parquet")
        self.put("set/00000_stats.json", b"{}")
        (a, b), (c, d) = sample(9, 9), sample(10, 10)
        self.put("apart.tar", tar([a, c, b, d]), *pairs(9, 10))
        (a, b), (c, d) = sample(21, 21), sample(22, 22)
        self.put("apart.tar.gz", gzip.compress(tar([a, c, b, d])), *pairs(21, 22))
        file = io.BytesIO(tar([*sample(11, 11), ("12.txt", b"tar 12")]))
        with tarfile.open(fileobj=file, mode="a") as out:
            for name, target in (("12.png", "11.png"), ("13.png", "/etc/hostname")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                out.addfile(info)
        self.put(
            "links.tar", file.getvalue(), *pairs(11), ["tar 12", COLOURS[11]], **{"13": "member is a link to what"}
        )
        odd = [("14.heic", b"x"), ("14.txt", b"a caption"), ("15.picture", png(15)), ("15.txt", b"tar 15")]
        self.put("odd.tar", tar(odd), *pairs(15), **{"14": "no image that can be read"})
        large = [("16.png", bytes(129 << 20)), ("16.txt", b"large"), *sample(17, 17)]
        self.put("large.tar.gz", gzip.compress(tar(large), 1), *pairs(17), **{"16": "member too large"})
        cut = tar([*sample(18, 18), *sample(19, 19)])
        self.put("cut.tar", cut[: 512 * 5], *pairs(18), **{"byte 2048": "broken tar"})

    def others(self):
        array = [{"caption": "of an array", "image": "tables/red.png"}, {"text": "[,]"}, {"text": ""}]
        offset = json.dumps(array).index('{"text": ""}')
        documents = [["of an array", COLOURS[6]], ["[,]"]]
        self.put("array.json", json.dumps(array).encode(), *documents, **{f"@{offset}": "empty text"})
        texts = [f"{n} {os.urandom(200).hex()}" for n in range(2000)]
        lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        packed = zstandard.compress(lines)
        self.put("cut.jsonl.zst", packed[: len(packed) * 3 // 4])
        whole = zstandard.ZstdDecompressor().decompressobj().decompress(packed[: len(packed) * 3 // 4])
        whole = whole[: whole.rindex(b"\n") + 1]
        kept = whole.count(b"\n")
        assert kept > 1000
        self.holds("cut.jsonl.zst", *([text] for text in texts[:kept]), **{f"@{len(whole)}": "broken file"})
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        long = packer.compress(b'{"text": "a long window"}\n') + packer.flush()
        self.put("long.jsonl.zst", long, ["a long window"])
        os.mkfifo(self.folder / "pipe.jsonl")
        (self.folder / "nowhere.tar").symlink_to("nothing.tar")
        self.holds("pipe.jsonl", file="no regular file: a named pipe")
        self.holds("nowhere.tar", file="no regular file: a link that leads nowhere")
        rows = {"image": [png(20), DAMAGED, None], "caption": ["of a table", "b", "c"]}
        pq.write_table(pa.table(rows), self.folder / "table.parquet")
        self.holds("table.parquet", ["of a table", COLOURS[20]], **{"1": "damaged image", "2": "no image"})


@pytest.mark.slow
def test_a_folder_that_mixes_everything_is_prepared_right_and_the_same_after_kills(tmp_path):
    everything = Everything(tmp_path)
    options = ["--image-size", str(SIDE), "--min-size", "4", "--held-out", "0", "--workers", "2"]
    command = ["prepare", str(everything.folder), *options, "--output"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    for done in (1, 5):
        killed = tmp_path / f"killed-{done}"
        run = [sys.executable, "-m", "transfusion_jax.cli", *command, str(killed)]
        process = subprocess.Popen(
            run, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list(killed.glob("shards/*[0-9].json"))) < done:
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "data.json").exists()
        assert main([*command, str(killed)]) == 0
        assert contents(killed) == contents(tmp_path / "whole")
    found = sorted(map(repr, decoded(tmp_path / "whole")))
    assert found == sorted(map(repr, everything.documents))
    quarantine = (tmp_path / "whole/quarantine.jsonl").read_text()
    assert not STEERING.search(quarantine)
    lines = [json.loads(line) for line in quarantine.splitlines()]
    faults = {
        (line["source"].removeprefix(str(everything.folder)).lstrip("/"), line["key"]): line["reason"]
        for line in lines
    }
    assert faults.keys() == everything.faults.keys()
    assert len(lines) == len(faults)
    for key, reason in everything.faults.items():
        assert faults[key].startswith(reason), key


def decoded(folder):
    """Every stored document, by what its format says and none of the package's code."""
    shards = json.loads((folder / "data.json").read_text())["shards"]
    for number in range(len(shards)):
        documents = records(folder / f"documents-{number:05d}.array_record")
        pixels = folder / f"pixels-{number:05d}.array_record"
        images = records(pixels) if pixels.exists() else [b""] * len(documents)
        for document, image in zip(documents, images, strict=True):
            colours = np.frombuffer(image, np.uint8).reshape(-1, SIDE * SIDE, 3)
            assert (colours == colours[:, :1]).all()
            yield segments(document, iter(map(tuple, colours[:, 0].tolist())))


def records(path: Path):
    reader = ArrayRecordReader(str(path))
    found = [data[:-4] for data in reader.read_all()] if reader.num_records() else []
    reader.close()
    return found


def segments(data, colours):
    (count,) = np.frombuffer(data, "<u4", 1).tolist()
    found, at = [], 4 + 8 * count
    for bits, length in np.frombuffer(data, "<u4", 2 * count, 4).reshape(-1, 2).tolist():
        text = bytes(np.frombuffer(data, "<u2", length, at).astype(np.uint8)).decode()
        at += 2 * length
        found.append(next(colours) if bits & 1 else text if bits & 2 else (text, False))
    assert json.loads(data[at:])["key"]
    return found


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
