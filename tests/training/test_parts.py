import pytest

from transfusion_jax.files import write_whole
from transfusion_jax.training import parts
from transfusion_jax.training.files import Lines, free_path, keep_until, read_lines, write_lines


def steps(path):
    return [record["step"] for record in read_lines(path)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "LARGE", 40)  # about three lines


def test_lines_are_put_whole_in_parts_that_follow_one_another(remote):
    path = remote / "metrics.jsonl"
    lines = Lines(path)
    for step in range(10):
        lines.append({"step": step})
    assert steps(path) == [0, *range(1, 8)]  # the first at once, then full parts; the last is not due yet
    lines.flush()
    assert steps(path) == list(range(10))
    assert [part.name for part in (remote / "metrics").iterdir()] == [f"{n:05d}.jsonl" for n in range(3)]
    more = Lines(path)  # of the next process
    more.append({"step": 9, "again": True}, in_place_of_last=True)
    more.append({"step": 10})
    more.flush()
    assert steps(path) == list(range(11))
    assert read_lines(path)[9] == {"step": 9, "again": True}


@pytest.mark.parametrize("step", [-1, 0, 3, 5, 9, 99])
def test_lines_are_cut_back_and_go_on(remote, step):
    path = remote / "metrics.jsonl"
    keep_until(path, step)
    write_lines(path, [{"step": n} for n in range(10)])
    keep_until(path, step)
    assert steps(path) == [n for n in range(10) if n <= step]
    lines = Lines(path)
    lines.append({"step": 100})
    lines.flush()
    assert steps(path) == [n for n in range(10) if n <= step] + [100]


def test_written_lines_take_the_place_of_what_was_there(remote):
    write_lines(remote / "x.jsonl", [{"step": n} for n in range(10)])
    write_lines(remote / "x.jsonl", [{"step": 3}])
    assert steps(remote / "x.jsonl") == [3]
    write_whole(remote / "aside/rewind-1/x", "")
    assert free_path(remote / "aside", "rewind") == remote / "aside/rewind-2"
