import subprocess
import sys

import pytest

import suite


def test_lines_that_moved_are_the_same_and_those_that_are_gone_are_not_missed(tmp_path):
    other = ["import os", "def f(x):", "    if x:", "        return os", "    return x", "", "f(1)"]
    this = ["import os", "", "def f(x):", "    if x:", "        return os", "    return 0"]
    a, b, gone = (f"{suite.PACKAGE}/{name}.py" for name in ("a", "b", "gone"))
    files = {"this": {a: this, b: ["y = 1", "if y:", "    y = 2", "z = y"]}}
    files["other"] = {a: other, gone: ["x = 1", "y = 1", "if y:", "    y = 2", "z = y"]}
    for name, texts in files.items():
        (tmp_path / name / suite.PACKAGE).mkdir(parents=True)
        for path, lines in texts.items():
            (tmp_path / name / path).write_text("\n".join(lines))
    trees = tmp_path / "this", tmp_path / "other"
    executed = {a: frozenset({1, 2, 3, 4, 5, 7}), gone: frozenset({1, 3, 4})}
    assert suite.lost_lines({a: frozenset({1, 3, 4}), b: frozenset({2, 3})}, executed, *trees) == {
        f"{a}:5": "return os"
    }
    executed = {a: frozenset({1}), gone: frozenset({1, 4})}
    assert suite.lost_lines({}, executed, *trees) == {f"{a}:1": "import os", f"{b}:3": "y = 2"}


def test_the_table_names_the_largest_files_and_adds_up_the_rest():
    this = suite.Files(True, 10.0, 3, {"a.py": 6.0, "b.py": 1.0, "c.py": 2.0, "start and collect": 1.0})
    other = suite.Files(False, 40.0, 3, {"a.py": 4.0, "b.py": 30.0, "c.py": 3.0, "start and collect": 3.0})
    lines = suite.seconds_table("test", {"this tree": this, "main": other}, shown=2).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["b.py", "a.py"]
    assert lines[3].split() == ["2", "others", "3.0", "6.0"]
    assert lines[-3].split() == ["CPU", "seconds", "10.0", "40.0"]
    assert lines[-2].endswith("3, failed")
    assert lines[-1] == "25% of the CPU seconds of main"


def test_the_probe_counts_each_file_and_its_children(tmp_path):
    busy = (
        "import subprocess, sys\ndef test_{0}():\n    subprocess.run([sys.executable, '-c', '{1}'], check=True)\n"
    )
    (tmp_path / "test_long.py").write_text(busy.format("long", "sum(range(20_000_000))"))
    (tmp_path / "test_short.py").write_text(busy.format("short", "pass"))
    (tmp_path / "Makefile").write_text(f"test:\n\t{sys.executable} -m pytest -q\n")
    (tmp_path / "work").mkdir()
    found = suite.measure(suite.Tree("this tree", tmp_path, tmp_path / "work"), "test")
    assert (found.passed, found.tests) == (True, 2)
    assert found.by_file["test_long.py"] > found.by_file["test_short.py"] > 0
    assert sum(found.by_file.values()) == pytest.approx(found.seconds)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["test", "--beside", "no-such-revision"], "there is no revision"), (["test", "--lines"], "add --beside REV")],
)
def test_what_cannot_be_compared_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["suite.py", *words])
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("target", suite.TARGETS)
def test_the_makefile_runs_pytest_and_installs_nothing(target, tmp_path):
    words = ["make", "--dry-run", "--old-file=wanted", f"VENV={suite.installed(tmp_path)}", target]
    said = subprocess.run(words, cwd=suite.ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in said.splitlines()] == [f"{tmp_path}/venv/bin/pytest"]
