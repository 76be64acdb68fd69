"""The metrics that are fitted: which way is better, from where on a score counts, who shares the unit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from transfusion_jax.config import ConfigError, nearest, require

LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Metric:
    """How a score is read. Scores and floors have the unit that the label says."""

    name: str  # in the table also a pattern
    label: str
    better: str
    floor: float | None = None  # a worse score says nothing about compute yet: its point is left out
    shared: bool = True  # False: the unit is each family's own, so that families do not compare

    def beats(self, score: float, other: float) -> bool:
        """Whether a score is better than another."""
        return score < other if self.better == LOWER else score > other

    def at_floor(self, score: float) -> bool:
        """Whether the score is worse than the floor."""
        return self.floor is not None and self.beats(self.floor, score)

    @property
    def arrow(self) -> str:
        """The way to better scores, as tables show it."""
        return "↓" if self.better == LOWER else "↑"


# Floors of FID, CLIP and CIDEr are the paper's (footnote 16). That of digits is twice what guessing gives; those of
# shapes are about what colours and backgrounds alone give. An image loss is a squared error with latents, and nats
# with codes.
METRICS = (
    Metric("c4_perplexity", "C4 perplexity", LOWER),
    Metric("wikipedia_perplexity", "Wikipedia perplexity", LOWER),
    Metric("*perplexity", "{}", LOWER),
    Metric("llama_accuracy", "Llama 2 suite accuracy, %", HIGHER),
    Metric("cider", "CIDEr × 100", HIGHER, 4.0),
    Metric("fid", "FID", LOWER, 100.0),
    Metric("clip", "CLIP score × 100", HIGHER, 17.0),
    Metric("geneval", "GenEval", HIGHER),
    Metric("*loss_text", "{}, nats per token", LOWER),
    Metric("*text_loss", "{}, nats per token", LOWER),
    Metric("*loss_image", "{}", LOWER, shared=False),
    Metric("*image_loss", "{}", LOWER, shared=False),
    Metric("*bits_per_byte", "{}", LOWER),
    Metric("captions/caption_loss", "Caption loss given the image, nats per token", LOWER),
    Metric("shapes/generation_accuracy", "Shapes drawn right", HIGHER, 0.17),
    Metric("shapes/caption_accuracy", "Shapes captioned right", HIGHER, 0.02),
    Metric("frechet/frechet_pixels", "Fréchet distance of pixels", LOWER),
    Metric("digits/generation_accuracy", "generation_accuracy", HIGHER, 0.2),
    Metric("digits/caption_accuracy", "caption_accuracy", HIGHER, 0.2),
)


def known_metrics(names: Iterable[str]) -> list[Metric]:
    """Those of the names that are in the table, in its order."""
    found: dict[str, Metric] = {}
    for row in METRICS:
        for name in sorted(names):
            if name not in found and fnmatch(name, row.name):
                found[name] = replace(row, name=name, label=row.label.format(name))
    return list(found.values())


def parse_metric(spec: str, present: Iterable[str]) -> Metric:
    """A metric as `--metric` names it: NAME, NAME:lower, or NAME:higher:FLOOR.

    Raises:
        ConfigError: no point has it; it is not in the table and has no direction; the direction is not the table's.
    """
    name, *rest = spec.split(":")
    present = sorted(present)
    require(name in present, f"--metric {name}: no point has it; {nearest(name, present)}")
    require(len(rest) <= 2, f"--metric {spec} must be NAME, NAME:lower or NAME:higher, and :FLOOR after it")
    if not rest:
        require(
            bool(known_metrics([name])), f"--metric {name}: say which way is better: {name}:lower or {name}:higher"
        )
        return known_metrics([name])[0]
    require(rest[0] in (LOWER, HIGHER), f"--metric {spec}: after the name stands lower or higher, not {rest[0]!r}")
    [metric] = known_metrics([name]) or [Metric(name, name, rest[0])]
    require(metric.better == rest[0], f"--metric {spec}: {metric.better} is better in {name}")
    return replace(metric, floor=_floor(spec, rest[1])) if len(rest) == 2 else metric


def _floor(spec: str, text: str) -> float:
    try:
        floor = float(text)
    except ValueError:
        floor = math.nan
    if not math.isfinite(floor):
        raise ConfigError(f"--metric {spec}: the floor {text!r} is no number")
    return floor
