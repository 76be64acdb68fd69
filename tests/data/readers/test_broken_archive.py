"""Archives that are cut, that end as they should not, or whose headers lie about sizes."""

import gzip
import io
import tarfile

import pytest

from data.readers.archives import IMAGES, ORDERS, PACKS, PAIRS, SAMPLE, archive_of, endless, header
from data.readers.samples import outcomes, read, tar
from transfusion_jax.data.readers import Fault, RawDocument, RawText, archive


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
        assert documents == pictured


ENDS = {  # what is done to an archive, and the faults that tell of it
    "whole": (lambda data: data, set()),
    "without a mark": (endless, {"broken tar"}),
    "garbage after the mark": (lambda data: data + b"garbage" * 999, {"what follows the end of a tar is none"}),
    "garbage for a mark": (lambda data: endless(data) + b"x" * 1024, {"broken tar"}),
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
    "after one block of zeros": lambda one, two: endless(one) + bytes(512) + two,
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
    whole = endless(tar([*SAMPLE, ("x.txt", b"of an image?")]))
    (tmp_path / "a.tar").write_bytes(whole + long.tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0") + bytes(9999))
    found = outcomes(read(tmp_path / "a.tar"))
    assert found.pop("0") == PAIRS["0"]
    assert list(found.values()) == ["broken tar"]


@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [1 << 80, 1 << 62, 1 << 30, 3 << 20])
def test_a_header_of_a_false_or_a_huge_size_breaks_the_archive_there(size, kind, order, tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    whole = endless(archive_of("regular", order))
    (tmp_path / "a.tar").write_bytes(whole + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    found = outcomes(read(tmp_path / "a.tar"))
    assert {key: found.pop(key) for key in PAIRS} == PAIRS
    assert "broken tar" in found.values()


@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
def test_names_before_names_without_end_break_the_archive(order, tmp_path):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2
    whole = endless(archive_of("regular", order))
    (tmp_path / "a.tar").write_bytes(whole + (long.tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0")) * 3000)
    found = outcomes(read(tmp_path / "a.tar"))
    assert found == PAIRS | {f"byte {len(whole)}": "broken tar"}


def pax(keys, size, kind=tarfile.XHDTYPE):
    """A PAX header of some bytes, whose keys begin with given letters."""
    lines = b"".join(b"%d %s%06x=\n" % (len(keys) + 11, keys.encode(), n) for n in range(size // (len(keys) + 11)))
    return header(kind, lines)


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


def sized(kind, size, name):
    """A header of a size that may be negative, in the numbers of GNU."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136], data[148:156] = size.to_bytes(12, "big", signed=True), b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


NEGATIVE = {
    **{f"a file, {size}": sized(tarfile.REGTYPE, size, "x.png") for size in (-1, -512, -1024, -(2**40), -(2**80))},
    "a link": sized(tarfile.LNKTYPE, -(2**40), "x.png"),
    "a folder": sized(tarfile.DIRTYPE, -(2**40), "x.png"),
    "a kind of its own": sized(b"9", -512, "x.png"),
    "a long name": sized(tarfile.GNUTYPE_LONGNAME, -1024, "x"),
    "a PAX header": sized(tarfile.XHDTYPE, -512, "x"),
    **{
        f"as PAX has it, {size}": header(tarfile.XHDTYPE, b"%d size=%d\n" % (len(f"00 size={size}\n"), size))
        + header(tarfile.REGTYPE, b"", "x.png")
        for size in (-1, -512, -1024, -1536, -2048, -(2**70))
    },
    "a part of a sparse file": header(tarfile.XHDTYPE, b"22 GNU.sparse.size=99\n25 GNU.sparse.map=0,-9,7,9\n")
    + header(tarfile.REGTYPE, b"12345678", "x.png"),
}


@pytest.mark.parametrize("order", ["sorted", "images, then captions"])
@pytest.mark.parametrize("kind", NEGATIVE)
def test_a_negative_size_breaks_the_archive_there(kind, order, tmp_path):
    """Headers would be read again and again, and members beyond what a sample may hold."""
    whole = endless(archive_of("regular", order))
    (tmp_path / "a.tar").write_bytes(whole + NEGATIVE[kind] + tar([("x.png", b"i"), ("x.txt", b"c")]))
    found = outcomes(read(tmp_path / "a.tar"))
    assert found.pop(f"byte {len(whole)}") == "broken tar"
    assert {key: found[key] for key in PAIRS} == PAIRS


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_headers_of_other_members_are_not_kept(kind, tmp_path):
    data = b"".join(pax(f"{n}k", 4000, kind) + header(tarfile.REGTYPE, b"c", f"{n}.txt") for n in range(9))
    members = list(archive._members(io.BytesIO(data + bytes(1024)), "r:", lambda key, info: False))
    assert [(member.key, member.info.pax_headers) for member in members] == [(str(n), {}) for n in range(9)]
