"""Memory of the training step as batch, length, vocabulary and depth grow, one at a time; it is only compiled.

    python benchmarks/memory.py

"temporary" is what the step holds beside its arguments and results: activations, scores, logits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import harness
from training import compile_step, make_config, of_size, with_remat
from transfusion_jax.config import REMAT_POLICIES, Config

BASE: dict[str, int] = dict(rows=2, context=768, vocabulary=8192, layers=4)
FACTORS = (1, 2, 4)


@dataclass(frozen=True)
class Point:
    """One compiled step."""

    grows: str  # what is not as in `BASE`
    value: int
    state: int  # bytes: parameters, moments, and the batch
    temporary: int  # bytes


def main() -> None:
    """Compiles and prints."""
    parser = harness.parser(__doc__, timed=False, plot=True)
    parser.add_argument("--remat", default="none", choices=REMAT_POLICIES, help="(default: %(default)s)")
    arguments = parser.parse_args()
    points = [measure(n, value * factor, arguments.remat) for n, value in BASE.items() for factor in FACTORS]
    result = {"points": [dataclasses.asdict(p) for p in points]}
    harness.deliver(result, table(points), arguments.json, arguments.plot, [lines(points)])


def measure(grows: str, value: int, remat: str) -> Point:
    """The step with one thing changed."""
    _, compiled = compile_step(with_remat(config(**{**BASE, grows: value}), remat))
    memory: Any = compiled.memory_analysis()
    return Point(grows, value, memory.argument_size_in_bytes, memory.temp_size_in_bytes)


def config(rows: int, context: int, vocabulary: int, layers: int) -> Config:
    """A model of width 512."""
    return make_config(of_size(512, layers, vocabulary), rows, context)


def table(points: list[Point]) -> str:
    """The points for reading; growth is against the smallest of the same kind."""
    lines = [["grows", "to", "state MiB", "temporary MiB", "growth"]]
    for point in points:
        least = next(p.temporary for p in points if p.grows == point.grows)
        sizes = [f"{size / 2**20:,.0f}" for size in (point.state, point.temporary)]
        lines.append([point.grows, f"{point.value:,}", *sizes, f"{point.temporary / least:.2f}x"])
    return "\n".join(harness.align(lines))


def lines(points: list[Point]) -> harness.Lines:
    """The temporary memory for looking at; what grows is in units of `BASE`, so that all lines start alike."""
    base = ", ".join(f"{name} {value:,}" for name, value in BASE.items())
    return harness.Lines(
        "a training step as one thing grows",
        f"times as much as\n{base}",
        "temporary memory, MiB",
        {n: [(p.value / v, p.temporary / 2**20) for p in points if p.grows == n] for n, v in BASE.items()},
    )


if __name__ == "__main__":
    main()
