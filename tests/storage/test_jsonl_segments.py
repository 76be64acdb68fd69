import pytest

from transfusion_jax.storage import jsonl_segments
from transfusion_jax.storage.atomic import DamagedFile, write_whole
from transfusion_jax.storage.jsonl import Lines, check_lines, free_path, keep_until, read_lines, write_lines


def steps(path):
    return [record["step"] for record in read_lines(path)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(jsonl_segments, "LARGE", 100)  # about four lines


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
    keep_until(path, step, remote / "aside")
    write_lines(path, [{"step": n} for n in range(10)])
    keep_until(path, step, remote / "aside")
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


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"3", b"{}", b'{"step": "2"}'])
def test_damaged_lines_are_left_out_and_the_file_is_kept_as_it_was(remote, tmp_path, line):
    for folder in (remote, tmp_path):
        path, part = folder / "metrics.jsonl", remote / "metrics/00000.jsonl"
        write_lines(path, [{"step": 1}, {"step": 2}, {"step": 3}])
        file = path if folder == tmp_path else part
        first, _, third, _ = file.read_bytes().split(b"\n")
        damaged = b"\n".join([first, line, third, b""])
        file.write_bytes(damaged)
        assert steps(path) == [1, 3]
        with pytest.raises(DamagedFile, match=r"metrics\.jsonl is damaged \(line 2\)"):
            check_lines(path)
        kept = keep_until(path, 2, folder / "aside")
        assert keep_until(path, 2, folder / "aside") is None
        assert steps(path) == [1]
        assert kept == folder / "aside/damaged-1/metrics.jsonl"
        assert kept.read_bytes() == damaged
        lines = Lines(path)
        lines.append({"step": 2})
        lines.flush()
        assert steps(path) == [1, 2]
