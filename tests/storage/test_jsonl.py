import json

import pytest

from transfusion_jax.errors import StorageError
from transfusion_jax.storage.atomic import DamagedFile
from transfusion_jax.storage.jsonl import append_line, check_lines, read_lines, write_lines


def test_lines_come_back_and_a_torn_last_one_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    assert read_lines(path) == []
    write_lines(path, [{"step": 1, "a": 1.1}])
    append_line(path, {"step": 2, "b": [2]})
    with path.open("a") as lines:
        lines.write('{"c": 3')
    assert read_lines(path) == [{"step": 1, "a": 1.1}, {"step": 2, "b": [2]}]


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    path, records = tmp_path / "x.jsonl", [{"step": 1, "loss": 1.25}, {"step": 2, "rows": [3, 4], "why": "é"}]
    former = json.dumps({"step": 0, "loss": 2.5}).encode() + b"\n"
    append_line(path, records[0])
    append_line(path, records[1])
    whole = former + path.read_bytes()
    path.write_bytes(whole)
    check_lines(path)
    assert read_lines(path) == [{"step": 0, "loss": 2.5}, *records]
    second = whole.index(b"\n", len(former)) + 1  # a line after one with a CRC needs one
    for bit in range(8 * second, 8 * (len(whole) - 1)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="line "):
            check_lines(path)
        assert read_lines(path) in ([{"step": 0, "loss": 2.5}, records[0]], [])


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        append_line(tmp_path / "none/x.jsonl", {})
