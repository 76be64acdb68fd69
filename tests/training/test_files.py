import pytest

from transfusion_jax.errors import StorageError
from transfusion_jax.training.files import append_line, read_lines, write_lines


def test_lines_come_back_and_a_torn_last_one_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    assert read_lines(path) == []
    write_lines(path, [{"step": 1, "a": 1.1}])
    append_line(path, {"step": 2, "b": [2]})
    with path.open("a") as lines:
        lines.write('{"c": 3')
    assert read_lines(path) == [{"step": 1, "a": 1.1}, {"step": 2, "b": [2]}]


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        append_line(tmp_path / "none/x.jsonl", {})
