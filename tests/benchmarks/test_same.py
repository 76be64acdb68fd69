import json
import subprocess
import sys

import numpy as np
import pytest

import same
import same_probe


def write(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return same.files(folder)


def test_equal_leaves_are_the_same_though_they_are_no_numbers():
    leaves = {"loss": np.float32([1, np.nan]), "rows": np.arange(3)}
    assert same.compare_arrays(leaves, {name: leaf.copy() for name, leaf in leaves.items()}).same


def test_a_flipped_bit_is_found_and_its_leaf_named():
    this = {"a": np.ones(4, np.float32), "b": np.ones((2, 3), np.float32)}
    other = {**this, "b": np.nextafter(this["b"], np.float32(2))}
    found = same.compare_arrays(this, other)
    assert not found.same
    assert found.text == "1 of 2 leaves differ; at most 1.2e-07, in b"
    assert same.compare_arrays(this, other, tolerance=1e-6).same
    assert not same.compare_arrays(this, other, tolerance=1e-8).same
    assert not same.compare_arrays({"a": np.zeros(1)}, {"a": -np.zeros(1)}).same


def test_another_shape_or_dtype_or_a_nan_is_beyond_any_tolerance():
    ones = np.ones(3, np.float32)
    for other in (ones[:2], ones.astype(np.float64), np.float32([1, np.nan, 1])):
        assert not same.compare_arrays({"a": ones}, {"a": other}, tolerance=1.0).same


def test_a_leaf_that_one_lacks_is_named():
    found = same.compare_arrays({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1)}, tolerance=1.0)
    assert (found.same, found.text) == (False, "0 of 2 leaves differ; only in this tree: b")


def test_metrics_may_drift_where_that_is_allowed():
    this, other = {"step 1 loss": 2.0, "step 1 rows": 4}, {"step 1 loss": 2.0001, "step 1 rows": 4}
    assert not same.compare(this, other).same
    assert same.compare(this, other, drift=1e-4) == same.Verdict(
        True, "1 of 2 differ, by at most 5e-05 of their value, in step 1 loss"
    )
    assert not same.compare(this, other, drift=1e-5).same
    assert not same.compare(this, {**other, "step 2 loss": 1.0}, drift=1e-4).same
    assert not same.compare({"data": "a"}, {"data": "b"}, drift=1.0).same


def test_the_speed_is_a_ratio_of_medians(tmp_path):
    for name, speeds in (("this", (1.0, 30.0, 20.0)), ("other", (10.0, 11.0))):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": n, "elements_per_second": s}) for n, s in enumerate(speeds)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "held_out/loss": 1.0}']))
    found = same.speed(tmp_path / "this", tmp_path / "other")
    assert found == "1.905 times the elements per second, both at once"


def test_changed_and_missing_files_are_found(tmp_path):
    this = write(tmp_path / "this", index=b"0", rows=b"1", log=b"2")
    assert same.compare(this, write(tmp_path / "equal", index=b"0", rows=b"1", log=b"2")).same
    changed = same.compare(this, write(tmp_path / "changed", index=b"0", rows=b"x", log=b"2"))
    assert not changed.same
    assert changed.text.startswith("1 of 3 differ; rows: ")
    missing = same.compare(this, write(tmp_path / "missing", index=b"0"))
    assert (missing.same, missing.text) == (False, "0 of 3 differ; only in this tree: log and 1 more")
    assert not same.compare(write(tmp_path / "none"), write(tmp_path / "neither")).same


def test_a_changed_loss_is_found_and_a_timing_is_not(tmp_path):
    def metrics(name, loss, seconds):
        (tmp_path / name).mkdir()
        line = f'{{"step": 5, "loss": {loss}, "seconds_per_step": {seconds}, "crc": "{name}"}}\n'
        (tmp_path / name / "metrics.jsonl").write_text(line)
        return same.metrics(tmp_path / name)

    this = metrics("this", 1.5, 0.1)
    assert same.compare(this, metrics("slower", 1.5, 0.2)).same
    assert same.compare(this, metrics("other", 1.25, 0.1)).text == "1 of 2 differ; step 5 loss: 1.5 and 1.25"


def test_an_unknown_revision_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["same.py", "no-such-revision"])
    with pytest.raises(SystemExit) as ended:
        same.main()
    assert ended.value.code == 2
    assert "there is no revision 'no-such-revision'" in capsys.readouterr().err


def test_a_command_that_fails_is_reported_with_its_last_line(tmp_path):
    this = same.Tree("this tree", same.ROOT, tmp_path)
    with pytest.raises(same.CommandFailed, match="failed with this tree: no such luck"):
        same.run_all([(this, ["-c", "raise SystemExit('no such luck')"])])


def test_what_a_check_started_has_ended_though_another_command_could_not_be_started(tmp_path):
    this = same.Tree("this tree", same.ROOT, tmp_path)
    missing = same.Tree("other", same.ROOT, tmp_path / "missing")
    started = []
    with pytest.MonkeyPatch.context() as patch:
        start = subprocess.Popen

        def remember(*arguments, **options):
            started.append(start(*arguments, **options))
            return started[-1]

        patch.setattr(subprocess, "Popen", remember)
        with pytest.raises(FileNotFoundError):
            same.run_all([(this, ["-c", "import time; time.sleep(600)"]), (missing, ["-c", ""])])
    assert [process.poll() is None for process in started] == [False]


def test_functions_are_found_where_they_were_before_they_moved(tmp_path, monkeypatch):
    (tmp_path / "moved.py").write_text("def kept(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    kept = ("not_yet.kept", "moved.sub.kept", "moved.kept")
    monkeypatch.setattr(same_probe, "PLACES", {"kept": kept, "gone": ("moved.gone", "nowhere.at.all.gone")})
    assert same_probe.find("kept") is sys.modules["moved"].kept
    with pytest.raises(SystemExit, match=r"gone is not at moved\.gone or nowhere\.at\.all\.gone"):
        same_probe.find("gone")


@pytest.mark.parametrize("name", same_probe.PLACES)
def test_every_function_that_the_probe_uses_is_in_one_of_its_places(name):
    assert callable(same_probe.find(name))
