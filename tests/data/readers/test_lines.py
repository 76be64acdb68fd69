import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.readers.samples import outcomes, read
from transfusion_jax.data.readers import Fault, InputShard, RawText, files, lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.text('[]{},"\\ \n', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\]},', max_size=3), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(VALUES, max_size=6),
    indent=st.sampled_from([None, 1, "\t"]),
    chunk=st.integers(1, 40),
    ascii=st.booleans(),
)
def test_the_values_of_an_array_are_found_however_it_is_written_and_cut(values, indent, chunk, ascii, tmp_path):
    data = b"\xef\xbb\xbf \n" + json.dumps(values, indent=indent, ensure_ascii=ascii).encode() + b"\n"
    (tmp_path / "a.json").write_bytes(data)
    whole, lines.CHUNK = lines.CHUNK, chunk
    try:
        found = list(lines.records_of_shard(InputShard(str(tmp_path / "a.json"))))
    finally:
        lines.CHUNK = whole
    assert [json.loads(part) for _, part in found] == values
    assert all(data[offset:].startswith(part) for offset, part in found)


DOCUMENTS = [{"text": 'one ] [ , \\ " {'}, {"text": "two"}, {"text": ""}, 3, {"text": "three"}]
WHOLE = json.dumps(DOCUMENTS).encode()
KEPT = [(RawText(DOCUMENTS[0]["text"]),), (RawText("two"),), "empty text", "not a JSON object", (RawText("three"),)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (WHOLE, KEPT),
        (WHOLE + b" \n\n", KEPT),
        (WHOLE[:-1], [*KEPT[:4], "broken file"]),
        (WHOLE[:40], [KEPT[0], "broken file"]),
        (WHOLE + b"more", [*KEPT, "broken file"]),
        (WHOLE.replace(b'"two"', b"two"), [KEPT[0], "not JSON", *KEPT[2:]]),
        (WHOLE + b' "lost" ' + WHOLE, [*KEPT, "not a JSON object", *KEPT]),
        (b"\xef\xbb\xbf" + WHOLE + b"\nlost\n" + WHOLE, [*KEPT, "not JSON", *KEPT]),
        (WHOLE + b"\n" + WHOLE, [*KEPT, *KEPT]),
        (b"[]", []),
        (b"[", ["broken file"]),
        (b"  [\n]\n", []),
    ],
)
@pytest.mark.parametrize(("suffix", "pack"), [(".json", bytes), (".json.gz", gzip.compress)])
def test_an_array_is_read_value_by_value_and_damage_spoils_what_it_is_in(data, expected, suffix, pack, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(pack(data))
    assert (
        list(outcomes(read(tmp_path / f"a{suffix}") if expected or suffix != ".json" else []).values()) == expected
    )


@pytest.mark.parametrize("indent", [0, 1, 4, "\t"])
def test_objects_of_several_lines_are_read_one_after_the_other(indent, tmp_path):
    written = [json.dumps(d, indent=indent).encode() for d in DOCUMENTS if isinstance(d, dict)]
    for name, data in (("a.json", b"\n".join(written)), ("b.json.gz", gzip.compress(b"".join(written)))):
        (tmp_path / name).write_bytes(data)
        assert list(outcomes(read(tmp_path / name)).values()) == [k for k in KEPT if k != "not a JSON object"]
    (tmp_path / "a.json").write_bytes(b"\n".join(written)[:-9])
    assert list(outcomes(read(tmp_path / "a.json")).values()) == [*KEPT[:3], "broken file"]


def test_a_cut_archive_of_an_array_keeps_what_stands_before(tmp_path):
    texts = [{"text": f"{n:05} {n * n} " * 9} for n in range(4000)]
    packed = gzip.compress(json.dumps(texts).encode())
    (tmp_path / "a.json.gz").write_bytes(packed[: len(packed) // 2])
    *before, fault = read(tmp_path / "a.json.gz")
    assert len(before) > 500
    assert [r.segments[0].text for r in before] == [t["text"] for t in texts[: len(before)]]
    assert fault.reason.startswith("broken file")


def test_a_value_that_is_too_large_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 30)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b" * 99}, {"text": "c"}]))
    assert list(outcomes(read(tmp_path / "a.json")).values()) == [
        (RawText("a"),),
        "value too long",
        (RawText("c"),),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_lines_are_lines_whatever_stands_in_them(name, tmp_path):
    (tmp_path / name).write_text('{"text": "[a]"}\n[1, 2]\n{"text": "b"}\n')
    assert [type(r) is Fault for r in read(tmp_path / name)] == [False, True, False]
    (tmp_path / "b.jsonl").write_text('[1, 2]\n{"text": "b"}\n')
    assert [type(r) is Fault for r in read(tmp_path / "b.jsonl")] == [True, False]
