"""Reference curves: is a run's loss right?

A reference holds the losses of runs that are known to be right: several seeds, and the first seed again in ways
that must not matter (another dtype, a batch in parts). A run of the same recipe is held to two bands: that of the
seeds, which any seed must keep within, and, where its own seed is among them, a far narrower one around that seed's
curve, since rows and noise are the same: as wide as the other ways make it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from transfusion_jax import config as configs
from transfusion_jax.config import Config, ConfigError, require
from transfusion_jax.config.parsing import parse_as
from transfusion_jax.data.packing.plan import REPLAYED
from transfusion_jax.storage.atomic import read_json, write_whole
from transfusion_jax.storage.jsonl import check_lines, read_lines
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.facts import row_plan_of
from transfusion_jax.training.run_dir import Workdir

PACKAGED = Path(__file__).parent / "references"
LOSSES = ("loss_text", "loss_image", "held_out/loss_text", "held_out/loss_image")
WINDOWS = 8  # that the steps are cut into; a curve is the mean of each
FALSE_ALARMS = 0.001  # share of right runs that leave a band, over all windows and losses
SLACK = 4.0  # times the largest deviation seen among ways that must not matter
FLOOR = 1e-3  # of the loss: no band is narrower
SEEDS, OWN = "seeds", "own seed"
BANDS = {SEEDS: "that of the seeds", OWN: "that of its own seed"}


@dataclass(frozen=True)
class LossCurve:
    """One run's means: by loss, one for each window; losses that some window has no record of are left out."""

    seed: int
    way: str  # what was changed of its execution; "": nothing
    data: str  # hash of the documents that it was trained on
    losses: Mapping[str, tuple[float, ...]]
    row_plan: int = REPLAYED  # version of the plans that its rows stood in


@dataclass(frozen=True)
class Reference:
    """Right runs of one recipe."""

    name: str
    command: str  # what trains such a run
    recipe: str  # hash of the config's identity, but for the seed
    windows: tuple[int, ...]  # last step of each
    curves: tuple[LossCurve, ...]

    def by_way(self, way: str) -> list[LossCurve]:
        """The curves that were trained in one way."""
        return [curve for curve in self.curves if curve.way == way]


@dataclass(frozen=True)
class Departure:
    """The first window in which a loss is outside a band."""

    loss: str
    band: str  # of `BANDS`
    step: int  # the window's last
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What comparing a run came to."""

    reference: str
    seed: int
    step: int  # up to which it was compared
    losses: tuple[str, ...]  # that it has
    held_to: tuple[str, ...]  # the bands
    other_data: bool  # the reference has its seed, but on other documents: no curve of its own
    other_rows: bool  # the same, but on other rows of these documents, planned by another version
    departures: tuple[Departure, ...]  # the first of each loss and band, the earliest first

    @property
    def passes(self) -> bool:
        """Whether it stays within every band."""
        return not self.departures


def load_reference(name: str) -> Reference:
    """A packaged reference, or one of a file.

    Raises:
        ConfigError: there is none of that name.
    """
    path = Path(name) if name.endswith(".json") else PACKAGED / f"{name}.json"
    if not path.is_file():
        raise ConfigError(
            f"no reference {name}: one of {packaged_references()}, or a file that `scale reference` wrote"
        )
    remedy = "write it again with scale reference"
    try:
        return parse_as(Reference, read_json(path, remedy))
    except ConfigError as error:
        raise ConfigError(f"{path} is no reference ({error}): {remedy}") from error


def packaged_references() -> str:
    """The names of those that are packaged."""
    return ", ".join(sorted(file.stem for file in PACKAGED.glob("*.json")))


def store_reference(reference: Reference, path: Path) -> None:
    """Writes it as `load_reference` reads it."""
    write_whole(path, json.dumps(asdict(reference), indent=1) + "\n")


def recipe_of(config: Config) -> str:
    """A hash of what is trained, whatever the seed."""
    return configs.identity_hash(configs.override(config, ["seed=0"]))


def windows_of(steps: int) -> tuple[int, ...]:
    """The last steps of the windows, all of one length."""
    return tuple(steps * (i + 1) // WINDOWS for i in range(WINDOWS))


def curve(workdir: Place, windows: Sequence[int], way: str = "") -> LossCurve:
    """A run's means, over the windows that it has trained through.

    Raises:
        ConfigError: there is none yet.
    """
    run = Workdir(workdir)
    check_lines(run.metrics)  # without one of them the means would be others
    records = read_lines(run.metrics)
    last = records[-1]["step"] if records else 0
    done = [end for end in windows if end <= last]
    require(bool(done), f"{workdir} is at step {last}: its losses can be compared from step {windows[0]} on")
    losses = {}
    for loss in LOSSES:
        means = [
            [r[loss] for r in records if begin < r["step"] <= end and loss in r]
            for begin, end in zip((0, *done), done, strict=False)
        ]
        if all(means):
            losses[loss] = tuple(float(np.mean(values)) for values in means)
    require(
        bool(losses),
        f"{workdir} has no loss for each {done[0]:,} steps: train with a loop.log_every of that or less",
    )
    return LossCurve(run.config().seed, way, str(run.manifest()["data_hash"]), losses, row_plan_of(run.manifest()))


def hold_to_bands(workdir: Place, reference: Reference) -> Verdict:
    """Holds a run to the bands.

    Raises:
        ConfigError: it is of another recipe, or has only begun.
    """
    config = Workdir(workdir).config()
    require(
        recipe_of(config) == reference.recipe,
        f"{workdir} was trained by another recipe than {reference.name}, which is: {reference.command}",
    )
    mine = curve(workdir, reference.windows)
    held_to, found = [SEEDS], _departures(mine, reference, SEEDS, *seeds_band(reference))
    of_seed = [c for c in reference.by_way("") if c.seed == mine.seed]
    own = [c for c in of_seed if (c.data, c.row_plan) == (mine.data, mine.row_plan)]
    if own and (band := _way_band(reference, own[0])):
        held_to.append(OWN)
        found += _departures(mine, reference, OWN, *band)
    step = reference.windows[len(next(iter(mine.losses.values()))) - 1]
    departures = tuple(sorted(found, key=lambda d: d.step))
    other_rows = not own and any(c.data == mine.data for c in of_seed)
    other_data = bool(of_seed) and not own and not other_rows
    losses = tuple(mine.losses)
    return Verdict(reference.name, mine.seed, step, losses, tuple(held_to), other_data, other_rows, departures)


Band = dict[str, np.ndarray]  # by loss, one number for each window


def seeds_band(reference: Reference) -> tuple[Band, Band]:
    """Where one more seed falls: Student's prediction interval, at a level for all windows and losses together."""
    curves = reference.by_way("")
    checks = len(reference.windows) * len(curves[0].losses)
    reach = stats.t.ppf(1 - FALSE_ALARMS / checks / 2, len(curves) - 1) * math.sqrt(1 + 1 / len(curves))
    low, high = {}, {}
    for loss in curves[0].losses:
        values = np.array([c.losses[loss] for c in curves])
        mean = values.mean(0)
        half = np.maximum(reach * values.std(0, ddof=1), FLOOR * np.abs(mean))
        low[loss], high[loss] = mean - half, mean + half
    return low, high


def _way_band(reference: Reference, own: LossCurve) -> tuple[Band, Band] | None:
    """Around a seed's own curve, as wide as ways that must not matter were seen to make it; None without any."""
    others = [c for c in reference.curves if c.way]
    if not others:
        return None
    plain = {c.seed: c for c in reference.by_way("")}
    low, high = {}, {}
    for loss, values in own.losses.items():
        seen = [np.abs(np.array(c.losses[loss]) / np.array(plain[c.seed].losses[loss]) - 1) for c in others]
        share = np.maximum(SLACK * np.maximum.accumulate(np.max(seen, axis=0)), FLOOR)
        low[loss], high[loss] = np.array(values) * (1 - share), np.array(values) * (1 + share)
    return low, high


def _departures(mine: LossCurve, reference: Reference, band: str, low: Band, high: Band) -> list[Departure]:
    found = []
    for loss in low:
        if loss not in mine.losses:
            continue
        values = np.array(mine.losses[loss])
        count = len(values)
        outside = ~((low[loss][:count] <= values) & (values <= high[loss][:count]))
        if outside.any():
            i = int(np.argmax(outside))
            step, value = reference.windows[i], float(values[i])
            found.append(Departure(loss, band, step, value, float(low[loss][i]), float(high[loss][i])))
    return found
