"""Points are read whole or refused, and what the fits use of them is stated."""

import csv
import json
from dataclasses import replace

import pytest

from ladders import point, write
from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError
from transfusion_jax.flops import six_nd
from transfusion_jax.scaling import metrics
from transfusion_jax.scaling.options import ALL, FRONTIER, PAPER
from transfusion_jax.scaling.points import BEATEN, FLOORED, comparable, read_points, rungs

LOSS = metrics.known_metrics(["loss_text"])[0]


def test_json_lines_and_csv_hold_the_same_points(tmp_path):
    points = [point(loss_text=2.0, fid=float(90 + i), seed=i, about={"commit": "1e5"}) for i in range(3)]
    lines = write(tmp_path / "points.jsonl", points)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    with (tmp_path / "points.csv").open("w") as file:
        file.write("# a comment\n")
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    assert read_points(lines) == read_points(tmp_path / "points.csv") == points


def test_what_is_empty_is_absent_and_what_is_about_the_run_is_no_metric(tmp_path):
    about = {"wall_seconds": 3.0, "config": {"steps": 4}, "device": "cpu"}
    path = write(tmp_path / "points.jsonl", [point(loss_text=2.0, about={**about, "fid": None})])
    assert read_points(path) == [point(loss_text=2.0, about=about)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("points.txt", "", "read from .jsonl or .csv"),
        ("points.jsonl", "", "holds no point"),
        ("points.jsonl", "{", "line 1 of the points is no JSON"),
        ("points.jsonl", "[]", "no JSON object"),
        ("points.jsonl", '{"family": "a", "size": "b", "elements": 1, "flops_6nd": 1}', "no parameters"),
        (
            "points.csv",
            "family,size,parameters,elements,flops_6nd\na,b,1,0,1\n",
            "elements must be a number above 0",
        ),
        ("points.csv", "family,size,parameters,elements,flops_6nd\na,b,1,x,1\n", "not 'x'"),
        ("points.csv", "family,size,parameters,elements,flops_6nd\na,b,1,1,1,9\n", "line 2 of the points has more"),
        ("points.csv", "family,size,parameters,elements,flops_6nd,seed\na,b,1,1,1,0.5\n", "seed must be a whole"),
        ("points.csv", "family,size,parameters,elements,flops_6nd,seed\na,b,1,1,1,nan\n", "seed must be a whole"),
        ("points.csv", "family,size,parameters,elements,flops_6nd\na,b,1,1,1\na,b,1,1,1\n", "twice"),
    ],
)
def test_what_is_no_point_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_points(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no .*points\.jsonl"):
        read_points(tmp_path / "points.jsonl")


def test_the_papers_points_have_the_papers_counts():
    points = read_points(PAPER)
    assert [p.size for p in points] == ["0.16B", "0.37B", "0.76B", "1.4B", "7B", "7B"]
    for p in points:
        config = configs.load(f"configs/paper.py:{p.size.lower()}")
        assert p.flops_6nd == six_nd(config.model, p.elements) == 6 * p.parameters * p.elements
        assert p.elements == 0.5e12


def test_seeds_of_a_rung_count_as_their_geometric_mean():
    [rung] = rungs([point(loss_text=2.0), point(loss_text=8.0, seed=1)], LOSS, "6nd", ALL)
    assert rung.score == pytest.approx(4)
    assert rung.seeds == (2, 8)
    assert rung.flops == 6 * 2e5 * 1e7


def test_the_frontier_leaves_out_what_is_beaten_with_no_more_flops():
    points = [
        point(size="0.2M", elements=1e7, loss_text=4.0),
        point(size="0.2M", elements=2e7, loss_text=3.5),  # beaten by the next, with as many
        point(size="0.4M", elements=1.001e7, loss_text=3.0),
        point(size="0.8M", elements=1e7, loss_text=3.2),  # beaten by the one before, with fewer
        point(size="1.6M", elements=1e7, loss_text=2.0),
    ]
    assert [r.left_out for r in rungs(points, LOSS, "6nd", FRONTIER)] == ["", BEATEN, "", BEATEN, ""]
    assert not any(r.left_out for r in rungs(points, LOSS, "6nd", ALL))
    higher = replace(LOSS, better=metrics.HIGHER)
    assert [r.left_out for r in rungs(points, higher, "6nd", FRONTIER)] == ["", BEATEN, BEATEN, BEATEN, BEATEN]


@pytest.mark.parametrize(
    ("name", "worst", "over"),
    [("fid", 100.0, 100.1), ("clip", 17.0, 16.9), ("cider", 4.0, 3.9), ("cider", 4.0, 0.0)],
)
def test_the_papers_floors(name, worst, over):
    [metric] = metrics.known_metrics([name])
    sizes = ("0.2M", worst), ("0.4M", over)
    points = [point(size=size, **{name: score}) for size, score in sizes]
    assert [r.left_out for r in rungs(points, metric, "6nd", ALL)] == ["", FLOORED]
    seeds = [point(**{name: worst}), point(seed=1, **{name: over})]
    assert [r.left_out for r in rungs(seeds, metric, "6nd", ALL)] == [FLOORED]  # one seed is enough


def test_a_floored_rung_beats_nothing():
    [metric] = metrics.known_metrics(["cider"])
    points = [point(cider=30.0), point(seed=1, cider=3.0), point(size="0.4M", cider=10.0)]
    assert [r.left_out for r in rungs(points, metric, "6nd", FRONTIER)] == [FLOORED, ""]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_score_without_a_logarithm_is_named(score):
    with pytest.raises(
        ConfigError, match=r"ours 0\.2M, 1e\+07 elements, seed 0: loss_text is .* take that point out"
    ):
        rungs([point(loss_text=score)], LOSS, "6nd", ALL)


def test_exact_flops_are_used_where_they_are_asked_for():
    [rung] = rungs([point(loss_text=2.0)], LOSS, "exact", ALL)
    assert rung.flops == 7 * 2e5 * 1e7
    with pytest.raises(ConfigError, match="has no flops_exact: use --flops 6nd"):
        rungs([replace(point(loss_text=2.0), flops_exact=None)], LOSS, "exact", ALL)


def test_points_compare_by_exact_flops_and_by_6nd_where_none_has_them():
    with_them, without = point(loss_text=2.0), replace(point(seed=1, loss_text=2.0), flops_exact=None)
    assert comparable([with_them]) == "exact"
    assert comparable([without]) == comparable(read_points(PAPER)) == "6nd"
    with pytest.raises(
        ConfigError, match=r"seed 1 has no flops_exact, but other points have: .* --flops 6nd, which"
    ):
        comparable([with_them, without])


def test_metrics_are_named_with_direction_and_floor():
    names = "fid", "held_out/loss_text", "speed", "loss_image"
    assert [m.name for m in metrics.known_metrics(names)] == ["fid", "held_out/loss_text", "loss_image"]
    assert not metrics.known_metrics(["loss_image"])[0].shared
    assert metrics.parse_metric("fid", names).floor == 100
    assert metrics.parse_metric("fid:lower:80", names).floor == 80
    assert metrics.parse_metric("speed:higher", names) == metrics.Metric("speed", "speed", "higher")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fdi", "no point has it; did you mean 'fid'"),
        ("speed", "say which way is better: speed:lower or speed:higher"),
        ("fid:higher", "lower is better in fid"),
        ("fid:up", "lower or higher, not 'up'"),
        ("fid:lower:x", "'x' is no number"),
        ("fid:lower:1:2", "must be NAME"),
    ],
)
def test_metrics_that_cannot_be_honoured_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        metrics.parse_metric(spec, ["fid", "speed"])
