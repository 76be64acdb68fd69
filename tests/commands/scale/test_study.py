"""`transfusion scale` as it is run: what it prints and writes, and what it refuses."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ladders import ladder, point, write
from transfusion_jax.cli import main

ROOT = Path(__file__).parents[3]
LAWS = {
    "linear": {"loss_text": lambda c: 1 + 100 * c**-0.2, "cider": lambda c: 2e-4 * c**0.35},
    "chameleon": {"loss_text": lambda c: 1 + 120 * c**-0.2, "cider": lambda c: 1e-4 * c**0.35},
}


@pytest.fixture
def workdir(tmp_path):
    """A ladder with samples and configs, and one more metric."""
    points = []
    for p in ladder(LAWS, noise=0.002, seeds=(0, 1)):
        name = f"{p.family}-{p.size}-{p.seed}.png"
        Image.new("RGB", (8, 4), "red").save(tmp_path / name)
        about = {"samples": name, "config": {"<b>": [1]}, "commit": "0123abc"}
        points.append(point(p.family, p.size, p.elements, p.seed, about, **p.scores, speed=1.0))
    write(tmp_path / "points.jsonl", points)
    return tmp_path


def test_fit_prints_the_papers_ratios(capsys):
    assert main(["scale", "fit", "--points", "paper"]) == 0
    out = capsys.readouterr().out
    for label, ratio in (("C4 perplexity ↓", "0.491"), ("CIDEr × 100 ↑", "0.234")):
        [line] = [x for x in out.splitlines() if x.startswith(label) and "2.02e22" in x]
        assert ratio in line.split()
    assert "chameleon has 1 point: a line takes 2" in out


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("scaling", "scale fit --points paper"),
        ("ladder", "scale table --points docs/ladder.csv"),
        ("ladder", "scale fit --points docs/ladder.csv"),
    ],
)
def test_pages_print_what_commands_print(page, command, capsys):
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    assert f"$ transfusion {command}\n{out}```\n" in (ROOT / f"docs/{page}.md").read_text()


def test_the_ladder_s_prose_by_seeds_alone(capsys):
    """1.14; 0.76 … 1.79 if the deviation of seeds were known, and wider since 8 degrees of freedom say it."""
    assert main(["scale", "fit", "--points", "docs/ladder.csv", "--metric", "text/prose_perplexity", "--json"]) == 0
    [prose] = json.loads(capsys.readouterr().out)["metrics"]
    [parity] = prose["parity"]
    noise = parity["noise"]
    assert (noise["kind"], noise["freedom"]) == ("seeds", 8)
    assert noise["sigma"] == pytest.approx(0.018, abs=0.0005)
    assert parity["ratio"] == pytest.approx(1.14, abs=0.005)
    narrower = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 8)
    low, high = (parity["ratio"] * (end / parity["ratio"]) ** narrower for end in parity["interval"])
    assert (low, high) == (pytest.approx(0.76, abs=0.02), pytest.approx(1.79, abs=0.05))
    chameleon, linear = prose["families"]
    assert chameleon["line"]["lack_of_fit"]["p"] < 0.01 < 0.5 < linear["line"]["lack_of_fit"]["p"]


def test_every_interval_says_what_it_assumes(workdir, capsys):
    command = ["scale", "fit", "--workdir", str(workdir), "--bootstrap", "100"]
    assert main([*command, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    cider, loss = whole["metrics"]
    assert whole["flops"] == "exact"
    for part in (*intervals(cider), *intervals(loss)):
        assert part["noise"]["kind"] == "seeds"
        law = "curve with a limit" if "limit" in part else "straight line"
        assert part["noise"]["assumes"].startswith(f"the {law} is true")
    assert loss["parity"][0]["noise_by_curve"]["assumes"].startswith("the curve with a limit is true")
    assert loss["parity"][0]["interval_by_curve"][0] < loss["parity"][0]["ratio_by_curve"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "FLOPs are exact, patch coders included" in said
    assert "95 %, noise of seeds, assumes: the straight line is true" in said
    assert main([*command, "--flops", "6nd"]) == 0
    assert "FLOPs are 6ND, as the paper counts: patch coders are left out" in capsys.readouterr().out


def intervals(value):
    """Everything in a study that has an interval, but for the score of the reference."""
    if isinstance(value, list):
        return [found for part in value for found in intervals(part)]
    if not isinstance(value, dict):
        return []
    own = [value] if {"interval", "slope_error"} & value.keys() else []
    return own + [found for part in value.values() for found in intervals(part)]


def test_a_unet_is_not_flattered(tmp_path, capsys):
    """Families whose scores follow from exact FLOPs alone are on a par by them, and not by 6ND."""
    points = []
    for family, share in (("linear", 1.0), ("unet", 2.0), ("chameleon", 1.0)):
        for p in ladder({family: {"loss_text": lambda c, share=share: 40 * (share * c) ** -0.1}}):
            points.append(replace(p, flops_exact=share * p.flops_6nd))
    write(tmp_path / "points.jsonl", points)
    ratios = {}
    for options in ((), ("--flops", "exact"), ("--flops", "6nd")):
        assert main(["scale", "fit", "--workdir", str(tmp_path), "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        ratios[options] = [found["flops"], *(p["ratio"] for p in found["metrics"][0]["parity"])]
    assert ratios[()] == ratios["--flops", "exact"] == ["exact", pytest.approx(1), pytest.approx(1)]
    assert ratios["--flops", "6nd"] == ["6nd", pytest.approx(1), pytest.approx(0.5)]


def test_points_without_scores_are_named(tmp_path, capsys):
    points = [point(size=size, loss_text=2.0) for size in ("0.2M", "0.4M")]
    write(tmp_path / "points.jsonl", [*points, point(size="0.8M"), point(size="0.4M", seed=1)])
    assert main(["scale", "fit", "--workdir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "without any score, and left out: ours 0.8M, 1e+07 elements, seed 0; ours 0.4M" in said
    assert main(["scale", "table", "--workdir", str(tmp_path)]) == 0
    assert "2.00 (1 of 2)" in capsys.readouterr().out


def test_table_averages_seeds(tmp_path, capsys):
    points = [point(seed=seed, loss_text=loss) for seed, loss in enumerate((1.0, 2.0))]
    write(tmp_path / "points.jsonl", [*points, point("theirs", cider=5.0)])
    command = ["scale", "table", "--workdir", str(tmp_path)]
    assert main(command) == 0
    head, ours, theirs = (re.split("  +", line.strip()) for line in capsys.readouterr().out.splitlines())
    assert head == ["family", "size", "elements", "runs", "cider ↑", "loss_text ↓"]
    assert ours == ["ours", "0.2M", "10M", "2", "–", "1.50 ± 0.71"]
    assert theirs == ["theirs", "0.2M", "10M", "1", "5.00", "–"]
    assert main([*command, "--metric", "loss_text", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][1] == [*theirs[:4], "–"]


def test_fit_prints_json(workdir, capsys):
    command = ["scale", "fit", "--workdir", str(workdir), "--json", "--flops", "exact", "--bootstrap", "200"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["flops"], found["reference"], found["unused"]) == ("exact", "chameleon", ["speed"])
    cider, loss = found["metrics"]
    assert (cider["floor"], loss["floor"]) == (4.0, None)
    by_family = {family["family"]: family for family in cider["families"]}
    assert [p["left_out"] for p in by_family["chameleon"]["points"]] == ["floor", "", "", "", ""]
    [parity] = cider["parity"]
    assert parity["ratio"] == pytest.approx(0.5 ** (1 / 0.35), rel=0.05)
    assert parity["reference"]["flops"] == pytest.approx(7 * 3.2e6 * 1e7)
    assert loss["families"][0]["curve"]["identified"]
    assert loss["families"][0]["curve"]["limit"] == pytest.approx(1, abs=0.15)
    assert len(loss["families"][0]["points"][0]["seeds"]) == 2


def test_options_change_what_is_fitted(workdir, capsys):
    def fit(*options):
        assert main(["scale", "fit", "--workdir", str(workdir), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    assert [m["name"] for m in fit("--metric", "cider", "--metric", "speed:higher")["metrics"]] == [
        "cider",
        "speed",
    ]
    usual, without = fit(), fit("--metric", "cider:higher:0")
    assert usual["metrics"][0]["families"][1]["line"]["count"] == 4
    assert without["metrics"][0]["families"][1]["line"]["count"] == 5
    assert fit("--reference", "linear")["metrics"][0]["parity"][0]["family"] == "chameleon"
    intervals = [
        fit(*o)["metrics"][1]["parity"][0]["interval"] for o in ((), ("--seed", "1"), ("--bootstrap", "0"))
    ]
    assert intervals[0] != intervals[1]
    assert intervals[2] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points", "none.jsonl"], "there is no none.jsonl"),
        (["--workdir", "nowhere"], "there is no nowhere/points.jsonl"),
        (["--points", "paper", "--flops", "exact"], "has no flops_exact: use --flops 6nd"),
        (["--points", "paper", "--reference", "llama"], "no point is of --reference llama"),
        (["--points", "paper", "--metric", "fid"], "--metric fid: no point has it"),
        (["--points", "paper", "--bootstrap", "-1"], "--bootstrap: -1 must be at least 0"),
        (["--points", "paper", "--seed", "-1"], "--seed: -1 must be at least 0"),
    ],
)
def test_what_cannot_be_honoured_is_one_sentence(arguments, message, capsys):
    assert main(["scale", "fit", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_plot_writes_figures_a_page_and_tables(workdir, capsys):
    assert main(["scale", "plot", "--workdir", str(workdir), "--bootstrap", "200"]) == 0
    plots = workdir / "plots"
    assert f"written to {plots}/report.html" in capsys.readouterr().out
    with Image.open(plots / "scaling.png") as image:
        assert image.size[0] > 1000
        assert np.asarray(image.convert("L")).std() > 5
    assert ElementTree.parse(plots / "scaling.svg").getroot().tag.endswith("svg")
    check_page((plots / "report.html").read_text())
    check_latex((plots / "tables.tex").read_text())


class Page(HTMLParser):
    """Tags with their attributes, and whether those that open are closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_page(text):
    page = Page()
    page.feed(text)
    assert not page.open
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 + 20  # a figure for each metric, samples of each run
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in images)
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import', text)  # it needs no network
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in page.tags)
    heads = [a for tag, a in page.tags if tag == "th"]
    assert heads
    assert all(a["scope"] == "col" for a in heads)
    assert next(tag for tag, _ in page.tags if tag in ("h1", "h2")) == "h1"
    assert sum(tag == "details" for tag, _ in page.tags) == 20
    assert '"<b>"' in page.text  # a config's text is text
    assert "Samples along the ladder" in page.text
    assert "linear 0.2M, 1e+07 elements, seed 1" in page.text


def check_latex(text):
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3
    assert r"loss\_text" in text
    assert (
        text.count(
            "FLOPs are exact, patch coders included. 95 \\%, noise of seeds, assumes: the straight line is true"
        )
        == 3
    )
    assert r"\times10^{14}" in text
    assert text.isascii()
    columns = [len(c) for c in re.findall(r"\\begin{tabular}{(\w+)}", text)]
    for width, body in zip(columns, re.findall(r"\\toprule(.*?)\\bottomrule", text, re.S), strict=True):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {row.count("&") + 1 for row in rows} == {width}


def test_plot_of_a_file_needs_a_place_and_writes_the_same_bytes_again(tmp_path, capsys):
    plot = ["scale", "plot", "--points", "paper", "--metric", "cider"]
    assert main(plot) == 2
    assert "needs --output DIR" in capsys.readouterr().err
    written = []
    for name in ("one", "other"):
        assert main([*plot, "--output", str(tmp_path / name), "--json"]) == 0
        paths = [Path(path) for path in json.loads(capsys.readouterr().out)["written"]]
        written.append({path.name: path.read_bytes() for path in paths})
    assert list(written[0]) == ["scaling.png", "scaling.svg", "report.html", "tables.tex"]
    assert written[0] == written[1]


def test_samples_that_are_missing_are_named(workdir, capsys):
    (workdir / "linear-0.4M-1.png").unlink()
    assert main(["scale", "plot", "--workdir", str(workdir)]) == 2
    assert "linear 0.4M, 1e+07 elements, seed 1: samples is" in capsys.readouterr().err
    assert not (workdir / "plots").exists()


def test_plot_without_matplotlib_says_what_to_install(workdir, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "transfusion_jax.scaling.plots"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "transfusion_jax.scaling.report", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["scale", "plot", "--workdir", str(workdir)]) == 2
    assert "pip install 'transfusion-jax[plot]'" in capsys.readouterr().err
    assert main(["scale", "fit", "--workdir", str(workdir)]) == 0
