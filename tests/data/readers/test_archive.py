"""Archives with every kind of member, in every order, with every end."""

import gzip
import io
import itertools
import tarfile
import tracemalloc

import numpy as np
import pytest
import zstandard

from data.readers.samples import outcomes, pair, read, tar
from transfusion_jax.data.readers import Fault, RawDocument, RawText, archive, files

IMAGES = {str(n): b"\x89PNG\r\n\x1a\n" + bytes([n]) * (700 * n) for n in range(5)}
PAIRS = {key: pair(f"caption {key}", image) for key, image in IMAGES.items()}
SAMPLE = [("0.png", IMAGES["0"]), ("0.txt", b"caption 0")]
PACKS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.zst": zstandard.compress}


def regular(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def linked(kind, name, data, ahead=False):
    members = [regular(f".all/{name}", data), special(name, kind, f".all/{name}")]
    return members[::-1] if ahead else members


KINDS = {  # the members that an image stands in
    "regular": lambda name, data: [regular(name, data)],
    "hard link": lambda name, data: linked(tarfile.LNKTYPE, name, data),
    "symbolic link": lambda name, data: linked(tarfile.SYMTYPE, name, data),
    "link ahead": lambda name, data: linked(tarfile.SYMTYPE, name, data, ahead=True),
    "links of links": lambda name, data: [
        special(name, tarfile.SYMTYPE, f".a/{name}"),
        special(f".a/{name}", tarfile.SYMTYPE, f"../.b/{name}"),
        special(f".b/{name}", tarfile.LNKTYPE, f"./.c/{name}"),
        regular(f".c/{name}", data),
    ],
    "another ending": lambda name, data: [regular(name.replace(".png", ".JFIF"), data)],
    "an unknown ending": lambda name, data: [regular(name.replace(".png", ".picture"), data)],
}
ORDERS = {  # of the parts of samples, each its image and its caption
    "sorted": lambda samples: [part for sample in samples for part in sample],
    "captions first": lambda samples: [part for sample in samples for part in reversed(sample)],
    "images, then captions": lambda samples: [*(s[0] for s in samples), *(s[1] for s in samples)],
    "captions, then images": lambda samples: [*(s[1] for s in samples), *(s[0] for s in samples)],
    "mixed": lambda samples: [
        samples[n // 2][n % 2] for n in np.random.default_rng(3).permutation(2 * len(samples)).tolist()
    ],
}


def written(members, format=tarfile.GNU_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as out:
        for info, data in members:
            out.addfile(info, io.BytesIO(data))
    return file.getvalue()


def archive_of(kind, order, format=tarfile.GNU_FORMAT):
    samples = [
        (KINDS[kind](f"{key}.png", image), [regular(f"{key}.txt", f"caption {key}".encode())])
        for key, image in IMAGES.items()
    ]
    return written([member for part in ORDERS[order](samples) for member in part], format)


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


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["regular", "hard link", "link ahead", "an unknown ending"])
def test_an_archive_that_is_cut_gives_whole_samples_and_never_a_caption_alone(kind, order, suffix, tmp_path):
    data = archive_of(kind, order)
    for end in range(600, len(data.rstrip(b"\0")), 3000):
        (tmp_path / f"a{suffix}").write_bytes(PACKS[suffix](data[:end]))
        found = read(tmp_path / f"a{suffix}")
        assert [r for r in found if isinstance(r, Fault) and r.reason.startswith("broken tar")]
        documents = {r.key: r.segments for r in found if isinstance(r, RawDocument)}
        pictured = {key: segments for key, segments in documents.items() if len(segments) == 2}
        assert pictured.items() <= PAIRS.items()
        if order != "captions, then images":  # where no image has come, nothing tells that one was to come
            assert documents == pictured


def unmarked(data):
    return data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512)


ENDS = {  # what is done to an archive, and the faults that tell of it
    "whole": (lambda data: data, set()),
    "without a mark": (unmarked, {"broken tar"}),
    "garbage after the mark": (lambda data: data + b"garbage" * 999, {"what follows the end of a tar is none"}),
    "garbage for a mark": (lambda data: unmarked(data) + b"x" * 1024, {"broken tar"}),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
def test_the_end_of_an_archive_spoils_nothing_before_it(end, order, tmp_path):
    change, faults = ENDS[end]
    (tmp_path / "a.tar").write_bytes(change(archive_of("regular", order)))
    found = outcomes(read(tmp_path / "a.tar"))
    assert {key: found.pop(key) for key in PAIRS} == PAIRS
    assert set(found.values()) == faults


JOINTS = {  # how a second archive follows the first
    "as it is": lambda one, two: one + two,
    "after one block of zeros": lambda one, two: unmarked(one) + bytes(512) + two,
    "after many": lambda one, two: one + bytes(1 << 16) + two,
    "and garbage": lambda one, two: one + two + b"garbage" * 999,
}


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
def test_archives_that_follow_each_other_are_read_as_one(joint, suffix, order, tmp_path):
    more = tar([("x.png", IMAGES["1"]), ("x.txt", b"caption 1"), ("y.txt", b"alone")])
    (tmp_path / f"a{suffix}").write_bytes(PACKS[suffix](JOINTS[joint](archive_of("regular", order), more)))
    found = outcomes(read(tmp_path / f"a{suffix}"))
    expected = PAIRS | {"x": PAIRS["1"], "y": (RawText("alone"),)}
    assert {key: found.pop(key) for key in expected} == expected
    assert set(found.values()) == ({"what follows the end of a tar is none"} if joint == "and garbage" else set())
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar(SAMPLE)) + gzip.compress(more))
    assert outcomes(read(tmp_path / "b.tar.gz")) == {"0": PAIRS["0"], "x": PAIRS["1"], "y": (RawText("alone"),)}


def test_a_name_of_no_member_is_no_mark_of_the_end(tmp_path):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2
    whole = unmarked(tar([*SAMPLE, ("x.txt", b"of an image?")]))
    (tmp_path / "a.tar").write_bytes(whole + long.tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0") + bytes(9999))
    found = outcomes(read(tmp_path / "a.tar"))
    assert found.pop("0") == PAIRS["0"]
    assert list(found.values()) == ["broken tar"]


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


def test_many_small_members_of_one_sample_are_not_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST", 3)
    (tmp_path / "a.tar").write_bytes(tar([(f"a.{n}", b"") for n in range(9)]))
    assert outcomes(read(tmp_path / "a.tar")) == {"a": "too many members"}


@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [1 << 80, 1 << 62, 1 << 30, 3 << 20])
def test_a_header_of_a_false_or_a_huge_size_breaks_the_archive_there(size, kind, order, tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    whole = archive_of("regular", order).rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    (tmp_path / "a.tar").write_bytes(whole + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    found = outcomes(read(tmp_path / "a.tar"))
    assert {key: found.pop(key) for key in PAIRS} == PAIRS
    assert "broken tar" in found.values()


@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
def test_names_before_names_without_end_break_the_archive(order, tmp_path):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2
    whole = archive_of("regular", order).rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    (tmp_path / "a.tar").write_bytes(whole + (long.tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0")) * 3000)
    found = outcomes(read(tmp_path / "a.tar"))
    assert found == PAIRS | {f"byte {len(whole)}": "broken tar"}


def endless(data):
    """An archive without the blocks of zeros at its end."""
    data = data.rstrip(b"\0")
    return data + bytes(-len(data) % 512)


def pax(keys, size, kind=tarfile.XHDTYPE):
    """A PAX header of some bytes, whose keys begin with given letters."""
    lines = b"".join(b"%d %s%06x=\n" % (len(keys) + 11, keys.encode(), n) for n in range(size // (len(keys) + 11)))
    return header(kind, lines)


def header(kind, data, name="x"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def sparse(blocks):
    """The header of an old GNU sparse file whose map goes on for many blocks."""
    info = tarfile.TarInfo("x.png")
    info.type = tarfile.GNUTYPE_SPARSE
    first = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    first[386:410], first[482] = b"00000000000\0" * 2, 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    entries = (b"00000000000\0" * 42).ljust(512, b"\1")
    return bytes(first) + entries * blocks


HEADERS = {
    "names before names": header(tarfile.GNUTYPE_LONGNAME, b"n" * 600) * 20,
    "PAX headers in a row": pax("k", 4000) * 4,
    "Solaris's in a row": pax("k", 4000, tarfile.SOLARIS_XHDTYPE) * 4,
    "global ones in a row": pax("k", 4000, tarfile.XGLTYPE) * 4,
    "one of Solaris": pax("k", 12000, tarfile.SOLARIS_XHDTYPE),
    "a map of a sparse file": sparse(20),
    "its map as PAX has it": header(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + header(tarfile.REGTYPE, b"9999\n" + b"0\n" * 9999, "x.png"),
}


@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_a_member_that_are_long_together_break_the_archive_there(kind, order, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LONGEST", 8000)
    whole = endless(archive_of("regular", order))
    (tmp_path / "a.tar").write_bytes(whole + HEADERS[kind] + tar([("x.png", b"i"), ("x.txt", b"c")]))
    [fault] = [record for record in read(tmp_path / "a.tar") if isinstance(record, Fault)]
    assert fault.reason.startswith("broken tar: headers of a member of more than 8,000 bytes")
    assert outcomes(read(tmp_path / "a.tar")) == PAIRS | {f"byte {len(whole)}": "broken tar"}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_headers_of_other_members_are_not_kept(kind, tmp_path):
    data = b"".join(pax(f"{n}k", 4000, kind) + header(tarfile.REGTYPE, b"c", f"{n}.txt") for n in range(9))
    members = list(archive._members(io.BytesIO(data + bytes(1024)), "r:", lambda key, info: False))
    assert [(member.key, member.info.pax_headers) for member in members] == [(str(n), {}) for n in range(9)]


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
