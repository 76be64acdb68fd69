import pytest

from transfusion_jax.errors import StorageError, UserError
from transfusion_jax.training.files import append_line, read_lines, write_lines


def test_lines_come_back_and_a_torn_last_one_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    assert read_lines(path) == []
    write_lines(path, [{"a": 1.1}])
    append_line(path, {"b": [2]})
    with path.open("a") as lines:
        lines.write('{"c": 3')
    assert read_lines(path) == [{"a": 1.1}, {"b": [2]}]


def test_another_damaged_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(UserError, match=r"x\.jsonl is damaged") as raised:
        read_lines(path)
    assert raised.value.exit_code == 2


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        append_line(tmp_path / "none/x.jsonl", {})
