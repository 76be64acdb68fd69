"""Pictures of made-up results. What needs matplotlib or PyTorch is imported only by the tests that run."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image

import compile as compile_benchmark
import gpu
import harness
import memory
from harness import Lines, Report, Timing

pytestmark = pytest.mark.parity


@pytest.fixture
def plots():
    return importlib.import_module("plots")


def report(seconds=(1.5, 1.0, 4.0)):
    names = ("ours", "plain", "library")
    timings = {
        name: Timing(s, (0.9 * s, 1.2 * s), seconds[1] / s, None, None)
        for name, s in zip(names, seconds, strict=True)
    }
    return Report("a step", "plain", 5, timings, "FLOP/s", None, 0.0, [], {})


def labels(axes):
    return [label.get_text() for label in axes.get_xticklabels()], [t.get_text() for t in axes.get_yticklabels()]


def drawn(path):
    """Whether the file is a picture with something on it."""
    with Image.open(path) as image:
        return image.format == "PNG" and min(image.size) > 100 and np.asarray(image.convert("L")).std() > 5


def inside(figure):
    """Whether no text leaves the picture."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight()


def test_bars_are_medians_with_quartiles_and_speeds(plots):
    figure = plots.draw([report()])
    [axes] = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [1.5, 1.0, 4.0]
    assert labels(axes)[1] == ["ours", "plain", "library"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["0.67x", "1.00x", "0.25x"]
    [errors] = {tuple(segment[:, 0].round(3)) for segment in axes.collections[0].get_segments()}
    assert errors == (1.35, 1.8)
    assert axes.get_title("left") == "a step"
    assert axes.get_xlabel() == "seconds, median and quartiles of 5 rounds; speed against plain"
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert colors[0] == colors[2] != colors[1]  # the reference stands out
    assert inside(figure)


def test_short_times_are_milliseconds_and_each_report_has_its_own_axis(plots):
    long, short = plots.draw([report(), report((0.002, 0.001, 0.003))]).axes
    assert long.get_xlabel().startswith("seconds")
    assert short.get_xlabel().startswith("milliseconds")
    assert short.patches[0].get_width() == pytest.approx(2)


def test_lines_are_the_points_beside_growth_in_proportion(plots):
    points = {"blocked": [(4096, 0.04), (1024, 0.01)], "dense": [(1024, 0.03), (4096, 0.6)]}
    figure = plots.draw([Lines("time", "T", "seconds", points)])
    [axes] = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["blocked"] == [[1024, 0.01], [4096, 0.04]]
    assert lines["dense"] == [[1024, 0.03], [4096, 0.6]]
    assert lines["in proportion"] == [[1024, 0.01], [4096, 0.04]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["blocked", "dense", "in proportion"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("T", "seconds", "time")
    assert labels(axes)[0] == ["1,024", "4,096"]
    assert {"0.03", "0.1", "0.3"} <= set(labels(axes)[1])
    assert inside(figure)


def test_a_name_looks_alike_in_all_panels_and_no_panel_is_left_empty(plots):
    both, one, other = (Lines("", "T", "", {n: [(1, 1), (2, 3)] for n in names}) for names in ("ab", "b", "c"))
    figure = plots.draw([both, one, other])
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c", "in proportion"]
    look = [
        (axes.lines[-2].get_color(), axes.lines[-2].get_marker()) for axes in figure.axes
    ]  # the last is a guide
    assert look[0] == look[1] != look[2]


@pytest.mark.parametrize("y", [1e-5, 0.3, 12_812])
def test_a_single_point_can_be_drawn(plots, y):
    for linear in (False, True):
        assert inside(plots.draw([Lines("one", "T", "y", {"a": [(1024, y)]}, linear)]))


def test_attention_has_time_and_memory_of_each_kind():
    attention = importlib.import_module("attention")
    times, sizes = {"blocked": [(1024, 0.1)], "SDPA": [(1024, 0.2)]}, {"blocked": [(1024, 3.2)]}
    time, size = attention.lines("text", times, sizes)
    assert (time.title, time.y, time.points) == ("text: time, forward and backward", "seconds", times)
    assert (size.title, size.y, size.points) == ("text: memory", "temporary memory, MiB", sizes)
    assert len(attention.lines("text", times, {})) == 1


def test_memory_draws_each_thing_that_grows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "measure", lambda name, value, remat: memory.Point(name, value, 1, value << 20))
    monkeypatch.setattr("sys.argv", ["memory", "--plot", str(tmp_path / "a.png")])
    memory.main()
    assert "growth" in capsys.readouterr().out
    assert drawn(tmp_path / "a.png")
    lines = memory.lines([memory.Point("rows", 4, 1, 5 << 20), memory.Point("layers", 4, 1, 3 << 20)])
    assert lines.points["rows"] == [(2, 5)]
    assert lines.points["layers"] == [(1, 3)]


def test_compile_draws_seconds_and_instructions_from_zero(plots, tmp_path, monkeypatch, capsys):
    programs = [compile_benchmark.Program(2, 20.7, 12812), compile_benchmark.Program(32, 19.0, 12812)]
    figure = plots.draw(compile_benchmark.lines(programs))
    seconds, instructions = figure.axes
    assert seconds.lines[0].get_xydata().tolist() == [[2, 20.7], [32, 19.0]]
    assert instructions.lines[0].get_xydata().tolist() == [[2, 12812], [32, 12812]]
    assert seconds.get_ylim()[0] == instructions.get_ylim()[0] == 0
    assert (figure.legends, len(seconds.lines)) == ([], 1)

    monkeypatch.setattr(compile_benchmark, "LAYERS", (2,))
    monkeypatch.setattr(compile_benchmark, "measure", lambda layers, width: programs[0])
    monkeypatch.setattr(compile_benchmark, "compile_step", lambda config: None)
    monkeypatch.setattr(compile_benchmark.jax.config, "update", lambda name, value: None)
    monkeypatch.setattr("sys.argv", ["compile", "--json", "-", "--plot", str(tmp_path / "a.png")])
    compile_benchmark.main()
    assert json.loads(capsys.readouterr().out)["programs"][0]["instructions"] == 12812
    assert drawn(tmp_path / "a.png")


def test_gpu_draws_all_its_reports(plots, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "parity", lambda setting: [gpu.Error(1, 64, "out", 0.0, 0.0)])
    monkeypatch.setattr(gpu, "measure", lambda setting, options: iter([report(), report()]))
    monkeypatch.setattr(plots, "draw", lambda panels, draw=plots.draw: seen.extend(panels) or draw(panels))
    seen = []
    gpu.main(["--tiny", "--without-torch", "--plot", str(tmp_path / "a.png")])
    assert seen == [report(), report()]
    assert drawn(tmp_path / "a.png")


def test_any_report_can_be_published_as_a_picture(tmp_path, capsys):
    compared = harness.compare("a", {"x": lambda: sum(range(10)), "y": lambda: None}, reference="y", rounds=3)
    harness.publish(compared, None, str(tmp_path / "a.png"))
    assert "speed against y" in capsys.readouterr().out
    assert drawn(tmp_path / "a.png")
