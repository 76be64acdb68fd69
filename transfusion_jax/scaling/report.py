"""A study as files: figures, LaTeX tables, and one page with all of it that needs no other file."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
from html import escape

import matplotlib
from matplotlib.figure import Figure

from transfusion_jax.config import ConfigError
from transfusion_jax.scaling import tables
from transfusion_jax.scaling.plots import describe_panel, draw_study
from transfusion_jax.scaling.points import Point, flops_of
from transfusion_jax.scaling.study import Study
from transfusion_jax.scaling.tables import Table, amount, flops
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.paths import Place, place

FIGURE, PAGE, LATEX = "scaling", "report.html", "tables.tex"
KEYS = (
    "Filled points are in the fits, hollow ones are left out; a bar spans seeds. Lines are least squares of the "
    "logarithms with their 95 % band (what it assumes stands below the tables), dashed where extrapolated; dotted "
    "curves have a limit. An arrow leads from "
    "the reference's largest run to the FLOPs at which a family reaches its score: the number is the parity FLOP "
    "ratio. A dotted level is a metric's floor."
)
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; color: #1a1a1a; }
h1, h2, h3 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0 0 1rem; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d5d5d5; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
thead th { border-bottom: 2px solid #1a1a1a; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0 0 1rem; }
.figures figure { flex: 1 1 20rem; max-width: 36rem; }
img { max-width: 100%; height: auto; }
figcaption { color: #444; }
pre { overflow-x: auto; background: #f4f4f4; padding: .7rem; }
summary { cursor: pointer; }
"""


def write_report(found: Study, folder: Place, output: Place) -> list[Place]:
    """Writes `scaling.png`, `scaling.svg`, `report.html` and `tables.tex`; returns their paths.

    Args:
        found: the study.
        folder: where paths of samples are seen from.
        output: the folder to write to; it is made.

    Raises:
        ConfigError: a picture of samples is missing, or not one that a page shows.
    """
    page = html(found, folder)
    figure = draw_study(found, found.panels)
    files = {
        f"{FIGURE}.png": encode(figure, "png"),
        f"{FIGURE}.svg": encode(figure, "svg"),
        PAGE: page.encode(),
        LATEX: tables.latex(found).encode(),
    }
    for name, content in files.items():
        write_whole(output / name, content)
    return [output / name for name in files]


def encode(figure: Figure, kind: str) -> bytes:
    """The figure as a file, the same bytes each time."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": FIGURE}):
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def html(found: Study, folder: Place) -> str:
    """The page: figures, tables, the ladder's samples, every point with its config."""
    samples = _samples(found, folder)  # first, since a picture may be missing
    families = list(dict.fromkeys(point.family for point in found.points))
    title = f"Scaling of {', '.join(families)}"
    head = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>'
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(tables.summary(found))}.</p>",
        "<h2>Curves</h2>",
        *_figures(found),
        "<h2>Fits and ratios</h2>",
        *map(_table, tables.tables(found)),
        *_notes(found),
        *samples,
        "<h2>Points</h2>",
        _table(_points(found)),
        *_runs(found),
    ]
    return "\n".join([head, "<body>", "<main>", *body, "</main>", "</body>", "</html>", ""])


def _figures(found: Study) -> list[str]:
    shown = []
    for panel in found.panels:
        source = _data("image/svg+xml", encode(draw_study(found, [panel], keys=False), "svg"))
        shown.append(f'<figure><img src="{source}" alt="{escape(describe_panel(found, panel))}"></figure>')
    return [f"<p>{KEYS}</p>", '<div class="figures">', *shown, "</div>"]


def _notes(found: Study) -> list[str]:
    lines = tables.notes(found)
    return ["<ul>", *(f"<li>{escape(line)}</li>" for line in lines), "</ul>"] if lines else []


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    return (
        f'<div class="wide"><table><caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>"
    )


def _points(found: Study) -> Table:
    """Every point with all metrics of the study."""
    names = [panel.metric.name for panel in found.panels]
    rows = []
    for point in _climbing(found):
        scores = [f"{point.scores[name]:.4g}" if name in point.scores else tables.NOTHING for name in names]
        sizes = [amount(point.parameters), amount(point.elements), flops(flops_of(point, found.flops))]
        rows.append([point.family, point.size, str(point.seed), *sizes, *scores])
    labels = [f"{panel.metric.label} {panel.metric.arrow}" for panel in found.panels]
    head = ["family", "size", "seed", "parameters", "elements", f"FLOPs ({tables.FLOPS[found.flops]})", *labels]
    return Table("Every point, as it was measured", head, rows)


def _samples(found: Study, folder: Place) -> list[str]:
    """Pictures of samples, family by family up the ladder."""
    shown = []
    for family in dict.fromkeys(point.family for point in found.points):
        climbing = [p for p in _climbing(found) if p.family == family and "samples" in p.about]
        if climbing:
            shown += [f"<h3>{escape(family)}</h3>", '<div class="figures">']
        for point in climbing:
            compute = f"{flops(flops_of(point, found.flops))} FLOPs ({tables.FLOPS[found.flops]})"
            about = f"{point.label}, {compute}"
            source = _picture(point, folder)
            shown.append(
                f'<figure><img src="{source}" alt="Samples of {escape(about)}">'
                f"<figcaption>{escape(about)}</figcaption></figure>"
            )
        shown += ["</div>"] if climbing else []
    return ["<h2>Samples along the ladder</h2>", *shown] if shown else []


def _picture(point: Point, folder: Place) -> str:
    name = str(point.about["samples"])
    path = place(name) if "://" in name or name.startswith("/") else folder / name
    kind = mimetypes.guess_type(name)[0] or ""
    if not kind.startswith("image/") or not path.is_file():
        raise ConfigError(f"{point.label}: samples is {path}, where there is no picture")
    return _data(kind, path.read_bytes())


def _runs(found: Study) -> list[str]:
    """What else is known of each run, folded."""
    shown = []
    for point in _climbing(found):
        about = {name: value for name, value in point.about.items() if name != "samples"}
        if about:
            content = escape(json.dumps(about, indent=2, ensure_ascii=False))
            shown.append(f"<details><summary>{escape(point.label)}</summary><pre>{content}</pre></details>")
    return ["<h2>Runs</h2>", *shown] if shown else []


def _climbing(found: Study) -> list[Point]:
    families = list(dict.fromkeys(point.family for point in found.points))
    return sorted(found.points, key=lambda p: (families.index(p.family), flops_of(p, found.flops), p.size, p.seed))


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
