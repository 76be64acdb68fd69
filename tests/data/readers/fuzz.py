"""Damaged inputs, and a check that readers and pictures take any of them calmly.

python tests/data/readers/fuzz.py --count 1000 --seed 7
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import gzip
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if __name__ == "__main__":
    sys.path[:0] = map(str, (Path(__file__).parents[3], Path(__file__).parents[2]))

from data.readers.samples import captions, encoded, noise, photographs, read, segments, tar
from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import Fault, RawDocument, RawImage
from transfusion_jax.data.readers.pictures import PictureError, decode

LIMIT = 20  # seconds for one mutant; all take far less
EXTREMES = (
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0" * 8,
    b"77777777777",
    b"\x80" + b"\xff" * 11,
)


@dataclass(frozen=True)
class Valid:
    """An input that is whole."""

    name: str  # of its file
    data: bytes
    units: tuple[tuple[int, int, tuple], ...] = ()  # first byte, last, and documents of what can be lost together
    soft: tuple[tuple[int, int], ...] = ()  # bytes whose damage is that of their unit alone


@dataclass(frozen=True)
class Mutant:
    """An input that was damaged."""

    number: int
    kind: str
    valid: Valid
    data: bytes


class Hang(BaseException):
    """A mutant took too long; not an `Exception`, so that nothing takes it for a fault."""


def mutants(seed, count):
    """Damaged inputs, each a function of the seed and its number."""
    for number in range(count):
        random = np.random.default_rng([seed, number])
        valid, kind = pick(valid_inputs(), random), pick(tuple(MUTATIONS), random)
        data = valid.data
        for _ in range(random.integers(1, 4)):
            data = MUTATIONS[kind](data, random)
        yield Mutant(number, kind, valid, data)


def check(mutant, folder):
    """Reads and decodes a mutant; the reasons of what was found to be broken.

    Raises:
        AssertionError: an undamaged record is lost, or something is left behind.
        Hang: it takes longer than `LIMIT`.
    """
    path, temporary = folder / mutant.valid.name, folder / "temporary"
    path.write_bytes(mutant.data)
    temporary.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        with time_limit():
            documents, reasons = outcome(path)
    finally:
        tempfile.tempdir = before
        path.unlink()
    assert os.listdir(temporary) == [], "a temporary file is left behind"
    assert not open_files(folder), "a file is left open"
    lost = [document for document in intact(mutant) if document not in documents]
    assert not lost, f"{len(lost)} undamaged records are lost, such as {str(lost[0])[:200]}"
    return reasons


def open_files(folder):
    """The files below a folder that this process holds open, deleted ones among them.

    Counting all descriptors would not do: other threads open and close theirs meanwhile.
    """
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(os.readlink(link))
    return [path for path in found if path.startswith(f"{folder.resolve()}{os.sep}")]


def outcome(path):
    """The segments of a file's documents, and the reasons of all that is broken."""
    if path.suffix == ".picture":
        return [], broken(path.read_bytes())
    try:
        records = read(path)
    except ConfigError as error:
        return [], [f"ConfigError: {error}"]
    documents = [r.segments for r in records if isinstance(r, RawDocument)]
    images = [s.data for segments in documents for s in segments if isinstance(s, RawImage)]
    faults = [r.reason for r in records if isinstance(r, Fault)]
    return documents, faults + [reason for image in images for reason in broken(image)]


def broken(data):
    """Why an image cannot be decoded, in a list that is empty if it can."""
    try:
        pixels = decode(data, 8, 3)
    except PictureError as error:
        return [str(error)]
    assert pixels.shape == (8, 8, 3)
    return []


def intact(mutant):
    """The documents that the damage did not touch, and that a reader must still find."""
    valid, data = mutant.valid, mutant.data
    if valid.name.endswith(".jsonl"):
        lines = set(data.split(b"\n"))
        return [d for begin, end, found in valid.units if valid.data[begin:end] in lines for d in found]
    shorter = min(len(valid.data), len(data))
    old, new = (np.frombuffer(part[:shorter], np.uint8) for part in (valid.data, data))
    changed = np.flatnonzero(old != new)
    if len(valid.data) == len(data) and all(any(b <= c < e for b, e in valid.soft) for c in changed):
        return [d for b, e, found in valid.units if not ((b <= changed) & (changed < e)).any() for d in found]
    if valid.name.endswith(".parquet"):
        return []
    first = changed[0] if len(changed) else shorter
    return [d for _, end, found in valid.units if end + 512 <= first for d in found]  # 512: the header that ends it


@contextlib.contextmanager
def time_limit():
    def stop(signum, frame):
        raise Hang

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def pick(choices, random):
    return choices[random.integers(len(choices))]


def place(data, random):
    return int(random.integers(len(data) + 1))


def flip(data, random):
    array = np.frombuffer(data, np.uint8).copy()
    for at in random.integers(0, max(len(array), 1), random.integers(1, 9)) if len(array) else ():
        array[at] ^= 1 << random.integers(8)
    return array.tobytes()


def cut(data, random):
    return data[: place(data, random)]


def remove(data, random):
    begin = place(data, random)
    return data[:begin] + data[begin + int(random.integers(1, 600)) :]


def repeat(data, random):
    begin = place(data, random)
    part = data[begin : begin + int(random.integers(1, 2000))]
    return data[:begin] + part * int(random.integers(2, 5)) + data[begin:]


def splice(data, random):
    other, at = pick(valid_inputs(), random).data, place(data, random)
    begin = place(other, random)
    return (
        data[:at]
        + other[begin : begin + int(random.integers(1, 2000))]
        + data[at + int(random.integers(2) * 100) :]
    )


def exaggerate(data, random):
    """Writes a huge or a negative number somewhere, by preference where headers are."""
    at = place(data[:64] if random.integers(2) else data, random)
    extreme = pick(EXTREMES, random)
    return data[:at] + extreme + data[at + len(extreme) :]


def resize_member(data, random):
    """Gives a block of 512 bytes, as a tar's header is, another size and a checksum that fits."""
    at = 512 * int(random.integers(len(data) // 512 + 1))
    header = bytearray(data[at : at + 512].ljust(512, b"\0"))
    header[124:136] = pick((b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000001\0"), random)
    header[156:157] = bytes([pick(b"0017LKSxgVD5", random)])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def repeat_blocks(data, random):
    """A member of a tar, or several, twice."""
    begin, end = sorted(512 * int(n) for n in random.integers(0, len(data) // 512 + 1, 2))
    return data[:end] + data[begin:end] + data[end:]


MUTATIONS = {f.__name__: f for f in (flip, cut, remove, repeat, splice, exaggerate, resize_member, repeat_blocks)}


@cache
def valid_inputs():
    lines, tars = json_lines(), tar_input()
    packed = [("a.jsonl.gz", lines), ("a.jsonl.zst", lines), ("a.tar.gz", tars), ("a.tar.zst", tars)]
    compressed = [Valid(name, (zstd if name.endswith("zst") else gzip.compress)(v.data)) for name, v in packed]
    pictures = [Valid(f"{number}.picture", data) for number, data in enumerate(picture_files())]
    return (*pictures, *compressed, *[lines, tars] * 5, *[parquet(table) for table in tables()] * 3)


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


def small(number):
    return Image.fromarray(noise(9 + number, 12, 3, seed=number))


def pairs():
    return [
        (f"{number:03}", caption, encoded(small(number), "PNG"))
        for number, caption in enumerate(captions().values())
    ]


def tar_input():
    units, soft, members, at = [], [], [], 0
    for key, caption, image in pairs():
        begin = at
        for name, data in ((f"{key}.png", image), (f"{key}.txt", caption.encode())):
            members.append((name, data))
            soft.append((at + 512, at := at + 512 + -(-len(data) // 512) * 512))
        units.append((begin, at, expected(tar(members[-2:]), "a.tar")))
    return Valid("a.tar", tar(members), tuple(units), tuple(soft))


def json_lines():
    image = {"bytes": base64.b64encode(encoded(small(2), "JPEG")).decode()}
    forms = [
        {"text": "a text"},
        {"image": image, "caption": ["a", "b"]},
        {"texts": ["a", None, "b"], "images": [None, image, None]},
        {"text_list": ["a", "b"], "image_info": []},
        {
            "segments": [{"image": image, "loss": False}, {"text": "redder"}, {"image": image}],
            "meta": {"scene": [1, 2]},
        },
    ]
    lines = [
        json.dumps({**form} if "segments" in form else {**form, "id": n}).encode()
        for n in range(4)
        for form in forms
    ]
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    units = tuple(
        (int(b), int(b) + len(line), expected(line, "a.jsonl")) for b, line in zip(starts, lines, strict=False)
    )
    return Valid("a.jsonl", b"\n".join(lines) + b"\n", units)


def tables():
    _, texts, images = zip(*pairs(), strict=True)
    structs = [{"bytes": image, "path": None} for image in images]
    yield pa.table({"text": [text * 20 for text in texts]})
    yield pa.table({"image": structs, "caption": [[text, text] for text in texts]})
    yield pa.table({"images": [[image, None] for image in images], "texts": [[None, text] for text in texts]})


def parquet(table):
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=3, write_page_checksum=table.num_columns == 1)
    units, metadata = [], pq.ParquetFile(file).metadata
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        begin = min(c.dictionary_page_offset or c.data_page_offset for c in columns)
        part = io.BytesIO()
        pq.write_table(table.slice(3 * group, 3), part)
        units.append(
            (begin, begin + sum(c.total_compressed_size for c in columns), expected(part.getvalue(), "a.parquet"))
        )
    return Valid("a.parquet", file.getvalue(), tuple(units), tuple(unit[:2] for unit in units))


def picture_files():
    image, photograph = small(3), Image.open(io.BytesIO(photographs()["0001.png"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"):
        yield encoded(image, format)
    yield encoded(photograph, "JPEG", exif=exif, progressive=True)
    yield encoded(photograph.convert("CMYK"), "JPEG")
    yield encoded(photograph.convert("P"), "PNG", transparency=3)
    yield encoded(photograph, "TIFF", compression="tiff_lzw")
    yield encoded(photograph, "TIFF", compression="jpeg", exif=exif)
    yield encoded(photograph, "PNG", exif=exif)
    yield encoded(image, "GIF", save_all=True, append_images=[small(4), small(5)])
    yield encoded(Image.fromarray(noise(9, 9).astype(np.uint16) * 257), "PNG")


def expected(data, name):
    """What a reader finds in a whole file, so that damage alone makes a difference."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(data)
        return tuple(segments(read(Path(folder, name))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    reasons, crashes, slowest, begin = collections.Counter(), 0, 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for mutant in mutants(options.seed, options.count):
            start = time.monotonic()
            try:
                found = check(mutant, Path(folder))
            except (Exception, Hang):  # noqa: BLE001 - any is what is looked for
                crashes += 1
                print(f"mutant {mutant.number}, {mutant.kind} of {mutant.valid.name}:\n{traceback.format_exc()}")
                continue
            slowest = max(slowest, time.monotonic() - start)
            reasons.update({reason.partition(":")[0] for reason in found} or {"(none)"})
    for reason, count in reasons.most_common():
        print(f"{count:6}  {reason}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{options.count} mutants in {time.monotonic() - begin:.0f} s, the slowest in {slowest:.2f} s, "
        f"{memory} MiB at most, crashes {crashes}"
    )
    return bool(crashes)


if __name__ == "__main__":
    sys.exit(main())
