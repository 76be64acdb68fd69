"""Archives with every kind of member, in every order."""

import gzip
import io
import itertools
import tarfile
import tracemalloc

import pytest

from data.readers.archives import (
    IMAGES,
    KINDS,
    ORDERS,
    PACKS,
    PAIRS,
    SAMPLE,
    archive_of,
    endless,
    header,
    regular,
    special,
    written,
)
from data.readers.samples import outcomes, pair, read, tar
from transfusion_jax.data.readers import Fault, RawDocument, RawText, archive, files


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_read_right_whatever_its_members_and_their_order(kind, order, suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(PACKS[suffix](archive_of(kind, order)))
    assert outcomes(read(tmp_path / f"a{suffix}")) == PAIRS


@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
def test_samples_come_in_the_order_of_their_first_members(order, tmp_path):
    (tmp_path / "a.tar").write_bytes(archive_of("regular", order))
    assert [r.key for r in read(tmp_path / "a.tar")] == list(IMAGES)


WAYS = ("./{}", "{}", "/{}", ".//{}", "in/../{}", "././{}")  # to write a member's name


@pytest.mark.parametrize("folder", ["", "d/", "d.x/e/"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("apart", [False, True])
def test_the_members_of_a_sample_are_its_own_however_their_names_are_written(folder, order, apart, tmp_path):
    expected = {}
    images, texts = [], []
    for number, (one, other) in enumerate(itertools.product(WAYS, repeat=2)):
        images.append((one.format(f"{folder}{number}.png"), IMAGES["1"]))
        texts.append((other.format(f"{folder}{number}.txt"), b"caption 1"))
        expected[f"{folder}{number}"] = PAIRS["1"]
    members = images + texts if apart else [m for both in zip(images, texts, strict=True) for m in both]
    (tmp_path / "a.tar").write_bytes(tar(members[::order]))
    assert outcomes(read(tmp_path / "a.tar")) == expected


NOWHERE = "member is a link to what the archive does not hold"
UNKNOWN = "no image that can be read: members are"
BAD = {  # what stands in an image's place, and the reason
    "a named pipe": (special("x.png", tarfile.FIFOTYPE), "member is no file: .png is a named pipe"),
    "a device": (special("x.png", tarfile.CHRTYPE), "member is no file: .png is a device"),
    "a disk": (special("x.png", tarfile.BLKTYPE), "member is no file: .png is a device"),
    "a folder": (special("x.png", tarfile.DIRTYPE), "member is no file: .png is a folder"),
    "a link to nothing": (special("x.png", tarfile.SYMTYPE, "y.png"), NOWHERE),
    "a hard link to nothing": (special("x.png", tarfile.LNKTYPE, "y"), NOWHERE),
    "a link to itself": (special("x.png", tarfile.SYMTYPE, "x.png"), NOWHERE),
    "a link out of it": (special("x.png", tarfile.SYMTYPE, "../../etc/passwd"), NOWHERE),
    "a link to the host": (special("x.png", tarfile.SYMTYPE, "/etc/passwd"), NOWHERE),
    "a link to a folder": (special("x.png", tarfile.SYMTYPE, "folder"), NOWHERE),
    "an unknown image": (regular("x.heic", b"\0\0\0\x18ftypheic"), f"{UNKNOWN} .heic, .txt"),
    "a raw photograph": (regular("x.nef", b"MM\0*"), f"{UNKNOWN} .nef, .txt"),
    "a sound": (regular("x.mp3", b"ID3"), f"{UNKNOWN} .mp3, .txt"),
}
AROUND = [
    regular(f"{key}.{kind}", data)
    for key in "01"
    for kind, data in (("png", IMAGES[key]), ("txt", f"caption {key}".encode()))
]


@pytest.mark.parametrize("place", ["first", "last", "apart"])
@pytest.mark.parametrize("bad", BAD)
def test_a_caption_whose_image_is_not_understood_is_a_fault_of_its_own(bad, place, tmp_path):
    member, reason = BAD[bad]
    caption = regular("x.txt", b"of an image")
    members = {
        "first": [member, caption, *AROUND],
        "last": [*AROUND, caption, member],
        "apart": [*AROUND[:2], member, *AROUND[2:], caption],
    }[place]
    (tmp_path / "a.tar").write_bytes(written([special("folder", tarfile.DIRTYPE), *members]))
    found = read(tmp_path / "a.tar")
    assert [r.segments for r in found if isinstance(r, RawDocument)] == [PAIRS["0"], PAIRS["1"]]
    faults = [r for r in found if isinstance(r, Fault)]
    assert {fault.key for fault in faults} == {"x"}
    assert faults[0].reason.startswith(reason)


def test_links_in_a_ring_end(tmp_path):
    ring = [special(f"{a}.png", tarfile.SYMTYPE, f"{b}.png") for a, b in ("ab", "bc", "ca")]
    (tmp_path / "a.tar").write_bytes(written(ring))
    assert outcomes(read(tmp_path / "a.tar")) == dict.fromkeys("abc", "member is a link of links without end")


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links_to_them_are_read(format, tmp_path):
    folder = "a folder of a long name/" * 12
    members = [
        regular(f"{folder}é.png", IMAGES["1"]),
        special("x.png", tarfile.LNKTYPE, f"{folder}é.png"),
        regular("x.txt", b"caption 1"),
        regular(f"{folder}é.txt", b"caption 1"),
    ]
    (tmp_path / "a.tar").write_bytes(written(members, format))
    assert outcomes(read(tmp_path / "a.tar")) == {f"{folder}é": PAIRS["1"], "x": PAIRS["1"]}


def octal(number):
    return b"%011o\0" % number


def old_sparse(name, parts, size):
    """A sparse member as GNU's old format has it: the places of its parts stand in the header."""
    info, data = regular(name, b"".join(data for _, data in parts))
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:434] = b"".join(octal(at) + octal(len(data)) for at, data in parts)
    header[482:495] = b"\0" + octal(size)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def new_sparse(name, parts, size):
    """One as POSIX's format with GNU's extension has it: they stand before its data."""
    places = b"2\n" + b"".join(b"%d\n%d\n" % (at, len(data)) for at, data in parts)
    info, data = regular(f"GNUSparseFile.0/{name}", places.ljust(512, b"\0") + b"".join(data for _, data in parts))
    about = {"major": "1", "minor": "0", "name": name, "realsize": str(size)}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in about.items()}
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("sparse", [old_sparse, new_sparse])
def test_sparse_members_are_what_they_stand_for(sparse, order, tmp_path):
    parts = [(0, IMAGES["1"]), (1 << 20, b"end")]
    image = IMAGES["1"] + bytes((1 << 20) - len(IMAGES["1"])) + b"end"
    members = [
        sparse("x.png", parts, len(image)),
        *(tar([member])[:1024] for member in (("0.txt", b"0"), ("x.txt", b"s"))),
    ]
    (tmp_path / "a.tar").write_bytes(b"".join(members[::order]) + bytes(1024))
    assert outcomes(read(tmp_path / "a.tar")) == {"x": pair("s", image), "0": (RawText("0"),)}


def test_a_text_alone_is_a_document_where_nothing_of_its_name_stands_elsewhere(tmp_path):
    members = [
        ("a.txt", b"alone"),
        ("b.txt", b"with a class"),
        ("b.cls", b"3"),
        ("0.png", IMAGES["0"]),
        ("0.txt", b"caption 0"),
    ]
    (tmp_path / "a.tar").write_bytes(tar(members))
    found = {"a": (RawText("alone"),), "b": (RawText("with a class"),), "0": PAIRS["0"]}
    assert outcomes(read(tmp_path / "a.tar")) == found
    (tmp_path / "a.tar").write_bytes(tar([*members, ("c.txt", b"x"), ("0.txt", b"newer")]))
    assert outcomes(read(tmp_path / "a.tar")) == found | {"c": (RawText("x"),), "0": "a caption without its image"}


@pytest.mark.parametrize(("limit", "value"), [("MEMBERS", 3), ("UNPACKED", 2000)])
def test_what_lies_apart_in_too_large_an_archive_is_a_fault(limit, value, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, limit, value)
    members = [
        ("0.png", IMAGES["0"]),
        ("0.txt", b"caption 0"),
        ("1.png", IMAGES["1"]),
        ("2.png", b"i"),
        ("1.txt", b"c"),
    ]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar(members)))
    found = read(tmp_path / "a.tar.gz")
    assert found[0].segments == PAIRS["0"]
    assert [r.reason[:18] for r in found[1:]] == ["members lie apart,"] * 3


def test_what_follows_the_end_of_a_compressed_archive_is_not_unpacked_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "UNPACKED", 1 << 16)
    written = []
    monkeypatch.setattr(archive.tempfile, "TemporaryFile", lambda: Counted(written))
    data = archive_of("regular", "images, then captions") + bytes(32 << 20)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data, 1))
    assert outcomes(read(tmp_path / "a.tar.gz")) == PAIRS
    assert sum(written) < 4 << 20


class Counted(io.BytesIO):
    def __init__(self, written):
        super().__init__()
        self.written = written

    def write(self, data):
        self.written.append(len(data))
        return super().write(data)


def test_hidden_members_are_no_data(tmp_path):
    names = ("._a.png", "__MACOSX/a.png", "__MACOSX/._a.png", ".ipynb_checkpoints/a.png", "in/.hidden/a.txt")
    members = [(name, b"hidden") for name in names]
    (tmp_path / "a.tar").write_bytes(tar([*members, ("./a.png", IMAGES["1"]), ("./a.txt", b"caption 1"), *members]))
    assert outcomes(read(tmp_path / "a.tar")) == {"a": PAIRS["1"]}


@pytest.mark.parametrize(
    "members",
    [
        [("a.png", bytes(16 << 20))],
        [(f"a.{n}", bytes(1 << 18)) for n in range(64)],
        [("a.txt", bytes(1 << 19)), ("b.png", b"i"), *((f"a.{n}", bytes(1 << 18)) for n in range(64))],
    ],
    ids=["one member", "many members", "many members apart"],
)
def test_a_small_archive_that_unpacks_to_a_large_sample_takes_little_memory(members, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 1 << 19)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar([*members, *SAMPLE])))
    tracemalloc.start()
    found = outcomes(read(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["0"] == PAIRS["0"]
    assert found["a"] == "member too large"
    assert peak < 6 << 20  # of 16


@pytest.mark.parametrize(
    ("names", "ordered"),
    [("", True), ("a.x", True), ("a.x a.y b.x", True), ("a.x b.x a.y", False), ("a.x none a.y b.x", True)],
)
def test_an_archive_is_ordered_where_each_key_has_one_run(names, ordered):
    data = b"".join(header(tarfile.REGTYPE, b"", name) for name in names.split())
    found = archive.survey_archive(io.BytesIO(data + bytes(1024)))
    assert (found.ordered, found.members) == (ordered, len(names.split()))


def test_many_small_members_of_one_sample_are_not_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST", 3)
    (tmp_path / "a.tar").write_bytes(tar([(f"a.{n}", b"") for n in range(9)]))
    assert outcomes(read(tmp_path / "a.tar")) == {"a": "too many members"}


def test_an_index_of_long_names_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "NAMES", 1000)
    for length in (300, 990):
        path = tmp_path / f"{length}.tar"
        first = written([regular("n" * length + ".cls", b"1")])
        path.write_bytes(endless(first) + archive_of("regular", "images, then captions"))
        found = outcomes(read(path))
        assert {found[key] == PAIRS[key] for key in PAIRS} == {length == 300}


def test_members_of_no_sample_have_so_many_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "STRAYS", 3)
    for order in ORDERS:
        path = tmp_path / f"{order}.tar"
        first = written([regular(f"{n}" * 2000, b"x") for n in range(9)])
        path.write_bytes(endless(first) + archive_of("regular", order))
        faults = [record for record in read(path) if isinstance(record, Fault)]
        assert [len(fault.key) for fault in faults] == [archive.SHOWN] * 4
        assert faults[-1].reason.endswith("and perhaps others, after 3 that have a line each")
