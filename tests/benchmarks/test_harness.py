import importlib
import importlib.util
import sys

import pytest

import harness


@pytest.mark.parametrize("name", ["blocks", "plan", "tpu_compile", "gpu_compile"])
def test_a_benchmark_that_draws_nothing_refuses_the_flag(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--plot", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    assert "unrecognized arguments: --plot" in capsys.readouterr().err


def test_a_picture_that_could_not_be_drawn_is_refused_at_once(tmp_path, monkeypatch, capsys):
    def refusal(path):
        with pytest.raises(SystemExit):
            harness.parser(None, plot=True).parse_args(["--plot", str(path)])
        return capsys.readouterr().err

    assert "a.svg does not end in .png" in refusal(tmp_path / "a.svg")
    assert "there is no folder" in refusal(tmp_path / "missing" / "a.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "matplotlib is not installed" in refusal(tmp_path / "a.png")


def test_nothing_is_drawn_unless_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plots", None)  # importing it would fail
    harness.deliver({}, "text", None, None, [harness.Lines("", "", "", {"a": [(1, 1)]})])
    assert capsys.readouterr().out == "text\n"
