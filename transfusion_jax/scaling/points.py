"""The points of a ladder: one for each finished run, read from JSON lines or CSV, and gathered into rungs.

A point has `family`, `size` (a name), `parameters`, `elements`, `flops_6nd`, perhaps `flops_exact` and `seed`, and
its scores by the names of their metrics. What else it has is about the run, and goes into the report: `config`,
`samples` (a picture, its path as seen from the file), `workdir`, `commit`, the numbers of `NUMBERS`, and any text.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.config import ConfigError, require
from transfusion_jax.scaling.metrics import Metric
from transfusion_jax.scaling.options import EXACT, FLOPS, FRONTIER, PAPER, SIX_ND
from transfusion_jax.storage.paths import Place, place

PAPER_FILE = Path(__file__).with_name("paper.csv")
POSITIVE = ("parameters", "elements", "flops_6nd")
TEXTS = ("family", "size", "name", "config", "samples", "workdir", "commit")  # cells of CSV that stay as they are
NUMBERS = ("wall_seconds", "parameters_total", "images", "steps", "learning_rate")  # of the run, and no scores
FLOORED, BEATEN = "floor", "beaten"
SAME = 1.01  # times as many FLOPs count as no more: sizes and steps are whole numbers


@dataclass(frozen=True)
class Point:
    """One finished run. Elements are those that it was trained on, FLOPs those of its whole training."""

    family: str
    size: str
    parameters: float
    elements: float
    flops_6nd: float
    flops_exact: float | None = None
    seed: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.family} {self.size}, {self.elements:.3g} elements, seed {self.seed}"


@dataclass(frozen=True)
class Rung:
    """All seeds of one family at one size and one number of elements, in one metric."""

    family: str
    size: str
    elements: float
    flops: float  # mean over seeds
    score: float  # geometric mean over seeds
    seeds: tuple[float, ...]  # their scores
    left_out: str = ""  # FLOORED or BEATEN: why the fits leave it out


def read_points(source: str | Place) -> list[Point]:
    """The points of a file, or the paper's. In CSV, lines above the header that begin with # are comments.

    Raises:
        ConfigError: the file is missing or neither `.jsonl` nor `.csv`, a line is no point, or two are the same.
    """
    path = PAPER_FILE if source == PAPER else place(source)
    readers = {".jsonl": _json_lines, ".csv": _csv_lines}
    require(path.suffix in readers, f"{path}: points are read from .jsonl or .csv")
    require(path.is_file(), f"there is no {path}")
    lines = readers[path.suffix](path.read_text())
    points = [_point(values, f"line {line} of {path}") for line, values in lines]
    require(bool(points), f"{path} holds no point")
    seen: set[tuple] = set()
    for point in points:
        key = (point.family, point.size, point.elements, point.seed)
        require(key not in seen, f"{path} holds {point.label} twice: keep one of them")
        seen.add(key)
    return points


def comparable(points: Sequence[Point]) -> str:
    """The count of FLOPs that compares all of these: the exact one, since 6ND leaves patch coders out.

    The paper counts by 6ND, and so does whoever has nothing else: where no point has exact FLOPs it is that.

    Raises:
        ConfigError: some points have exact FLOPs, and others have not.
    """
    without = [point for point in points if point.flops_exact is None]
    require(
        len(without) in (0, len(points)),
        f"{without[0].label if without else ''} has no flops_exact, but other points have: add it, "
        "or use --flops 6nd, which leaves patch coders out",
    )
    return SIX_ND if without else EXACT


def flops_of(point: Point, kind: str) -> float:
    """A point's FLOPs.

    Raises:
        ConfigError: it has none of this kind.
    """
    value = getattr(point, FLOPS[kind])
    if value is None:
        raise ConfigError(f"{point.label} has no {FLOPS[kind]}: use --flops 6nd")
    return float(value)


def rungs(points: Iterable[Point], metric: Metric, flops: str, fit_on: str) -> list[Rung]:
    """One family's points that have a score, seeds averaged in the logarithm, by rising FLOPs.

    Args:
        points: of one family.
        metric: the score.
        flops: a key of `FLOPS`.
        fit_on: `frontier` marks rungs that another one beats with no more FLOPs as left out, `all` does not.

    Raises:
        ConfigError: a score, or the FLOPs asked for, cannot stand on a logarithmic axis.
    """
    groups: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        if metric.name in point.scores:
            groups.setdefault((point.size, point.elements), []).append(point)
    found = sorted((_rung(group, metric, flops) for group in groups.values()), key=lambda rung: rung.flops)
    return _mark_beaten(found, metric) if fit_on == FRONTIER else found


def in_fit(found: Iterable[Rung]) -> list[Rung]:
    """The rungs that the fits use."""
    return [rung for rung in found if not rung.left_out]


def _rung(group: Sequence[Point], metric: Metric, flops: str) -> Rung:
    first, seeds = group[0], tuple(_score(point, metric) for point in group)
    floored = any(map(metric.at_floor, seeds))  # the mean of those above it alone would be too good
    score = float(np.mean(seeds)) if floored else _geometric_mean(seeds)
    compute = float(np.mean([flops_of(point, flops) for point in group]))
    return Rung(first.family, first.size, first.elements, compute, score, seeds, FLOORED if floored else "")


def _mark_beaten(found: Sequence[Rung], metric: Metric) -> list[Rung]:
    counting = in_fit(found)

    def beaten(rung: Rung) -> bool:
        return any(o.flops <= SAME * rung.flops and metric.beats(o.score, rung.score) for o in counting)

    return [replace(rung, left_out=BEATEN) if rung in counting and beaten(rung) else rung for rung in found]


def _score(point: Point, metric: Metric) -> float:
    score = point.scores[metric.name]
    if math.isfinite(score) and (score > 0 or metric.at_floor(score)):
        return score
    raise ConfigError(
        f"{point.label}: {metric.name} is {score:g}, which has no logarithm: "
        "take that point out of the file, or choose other metrics by --metric"
    )


def _geometric_mean(values: Sequence[float]) -> float:
    if len(values) == 1:
        return values[0]  # to the last digit
    return float(np.exp(np.mean(np.log(values))))


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"line {number} of the points is no JSON: {error}") from error
            require(isinstance(values, dict), f"line {number} of the points is no JSON object")
            yield number, values


def _csv_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = text.splitlines(keepends=True)
    comments = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    rows = csv.DictReader(lines[comments:])
    for row in rows:
        number = comments + rows.line_num
        require(None not in row, f"line {number} of the points has more cells than the header")
        yield number, {name: _read_cell(name, cell) for name, cell in row.items() if cell}


def _read_cell(name: str, cell: str) -> float | str:
    if name in TEXTS:
        return cell
    try:
        return float(cell)
    except ValueError:
        return cell


def _point(values: Mapping[str, Any], where: str) -> Point:
    values = {name: value for name, value in values.items() if value is not None}
    missing = [name for name in ("family", "size", *POSITIVE) if name not in values]
    require(not missing, f"{where}: no {', '.join(missing)}")
    for name in (*POSITIVE, "flops_exact"):
        value = values.get(name, 1)
        fine = _is_number(value) and 0 < value < math.inf
        require(fine, f"{where}: {name} must be a number above 0, not {value!r}")
    seed = values.get("seed", 0)
    require(_is_number(seed) and float(seed).is_integer(), f"{where}: seed must be a whole number, not {seed!r}")
    known = {"family", "size", *POSITIVE, "flops_exact", "seed"}
    rest = {name: value for name, value in values.items() if name not in known}
    scores = {name: float(value) for name, value in rest.items() if _is_number(value) and name not in NUMBERS}
    return Point(
        family=str(values["family"]),
        size=str(values["size"]),
        **{name: float(values[name]) for name in POSITIVE},
        flops_exact=values.get("flops_exact"),
        seed=int(seed),
        scores=scores,
        about={name: value for name, value in rest.items() if name not in scores},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
