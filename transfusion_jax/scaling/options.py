"""What `scale` can be asked for; its options are declared from here, so nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "paper"  # stands for the paper's own table
IN_WORKDIR = "points.jsonl"
SIX_ND, EXACT = "6nd", "exact"
FLOPS = {SIX_ND: "flops_6nd", EXACT: "flops_exact"}
FRONTIER, ALL = "frontier", "all"
BASELINE = "chameleon"  # the reference where none is named


@dataclass(frozen=True)
class Options:
    """What is fitted, and how. The defaults are those of the command."""

    metrics: tuple[str, ...] = ()  # as --metric names them; none: all of the table that the points have
    reference: str | None = None
    flops: str | None = None  # a key of `FLOPS`; none: what compares all points
    fit_on: str = FRONTIER
    bootstrap: int = 2000
    seed: int = 0
