"""Ladders: models of several sizes and families, trained for several budgets, each a run of its own.

A ladder file such as `configs/ladders/cpu.py` defines `get_ladder()`, which returns an `ml_collections.ConfigDict`
of the fields below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfusion_jax import config as configs
from transfusion_jax.config import Config, ConfigError, positive, require
from transfusion_jax.config.parsing import parse_as, read_file
from transfusion_jax.errors import not_negative
from transfusion_jax.flops import count_parameters, six_nd
from transfusion_jax.scaling.running import Training
from transfusion_jax.storage.paths import Place
from transfusion_jax.training.monitoring.metrics import record_of
from transfusion_jax.training.run_dir import Workdir

LOSS_ALONE = {"evaluation.during_training": ("loss",), "loop.sample_every": 0}  # all that a sweep asks for
OWN = "scales, warmup, final_rate and a family's learning_rate"  # what the fields of each run follow from
HELD_OUT = "held_out/"  # before the names of what is measured during training
ALIKE = 1.01  # times the sweep's lowest loss is as good: larger and longer runs want lower rates, if any others


@dataclass(frozen=True)
class Family:
    """Models that differ in size alone."""

    config: str  # FILE:arg, where {size} stands for a size's name
    learning_rate: float = 0.0  # of all sizes; 0: the sweep's best, or the config's own where nothing is swept
    share: float = 1.0  # of a budget's elements: the half that is text, for models of text alone
    changes: tuple[str, ...] = ()  # of its runs' config beside the ladder's, as FIELD=VALUE

    def __post_init__(self) -> None:
        require("{size}" in self.config, f"families.*.config {self.config!r} must hold {{size}}, a size's name")
        not_negative(self, "families.*.", "learning_rate")
        require(0 < self.share <= 1, f"families.*.share must lie above 0 and not above 1, not {self.share}")


@dataclass(frozen=True)
class Scale:
    """A size and a budget, which every family is trained at."""

    size: str
    elements: float  # to train on
    seeds: int = 1  # runs, from seed 0 on

    def __post_init__(self) -> None:
        positive(self, "scales.*.", "elements", "seeds")


@dataclass(frozen=True)
class Sweep:
    """Learning rates that every family without one is tried with at a small scale; the best is for all sizes."""

    rates: tuple[float, ...]
    size: str
    elements: float
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.rates) and min(self.rates) > 0,
            f"sweep.rates must be positive numbers, not {list(self.rates)}",
        )
        positive(self, "sweep.", "elements")
        not_negative(self, "sweep.", "seed")


@dataclass(frozen=True)
class Ladder:
    """Families × scales."""

    name: str
    families: Mapping[str, Family]
    scales: tuple[Scale, ...]
    warmup: float = 0.04  # share of a run's steps
    final_rate: float = 0.05  # of the learning rate, at a run's end
    changes: tuple[str, ...] = ()  # of every run's config, as FIELD=VALUE
    sweep: Sweep | None = None
    topology: str = ""  # the machine that --dry-run counts chip-hours of

    def __post_init__(self) -> None:
        positive(self, "", "warmup")
        require(0 <= self.final_rate <= 1, f"final_rate must lie between 0 and 1, not {self.final_rate}")
        require(bool(self.families) and bool(self.scales), "a ladder needs families and scales")

    @property
    def swept(self) -> list[str]:
        """Families whose rate is found by the sweep."""
        return [name for name, family in self.families.items() if self.sweep and not family.learning_rate]


@dataclass(frozen=True)
class LadderRun:
    """One run."""

    family: str
    size: str
    seed: int
    elements: float  # that were asked for
    name: str  # of its workdir
    spec: str  # FILE:arg
    config: Config
    changes: tuple[str, ...]  # what makes the file's config that

    @property
    def flops_6nd(self) -> float:
        """6ND, the patch coder left out; `costs.exact_flops` counts it."""
        return six_nd(self.config.model, self.config.steps * self.config.elements_per_step)

    def training(self, root: Place, logs: Path) -> Training:
        """What trains it, or goes on, in a workdir of its name."""
        return training(self.name, root, logs, self.spec, self.changes)

    def measured(self, root: Place) -> dict[str, float]:
        """The last step's record with the run's scores, or nothing where it is not done.

        A record without scores is that of a run that has not come to the end of its last evaluation.

        Raises:
            ConfigError: it was trained, but by another recipe.
        """
        workdir = Workdir(root / self.name)
        found = record_of(workdir.metrics, self.config.steps)
        if any(name.startswith(HELD_OUT) for name in found):
            changes = configs.identity_changes(workdir.config(), self.config)
            lines = "".join(f"\n  {name}: {change}" for name, change in changes.items())
            require(
                not changes,
                f"{workdir.path} was trained otherwise than the ladder now says:{lines}\n"
                "change the ladder back, move that folder away to train it anew, or choose another --workdir",
            )
            return found
        return {}


def training(name: str, root: Place, logs: Path, spec: str, changes: Iterable[str]) -> Training:
    """Of a config with some fields changed."""
    overrides = [f"--config.{change}" for change in changes]
    words = ["train", "--config", spec, "--workdir", str(root / name), *overrides]
    return Training(name, words, logs / f"{name}.log")


def load_ladder(path: Path) -> Ladder:
    """The ladder of a file.

    Raises:
        ConfigError: there is none, or a field is not valid.
    """
    require(path.is_file(), f"no ladder {path}: pass one such as configs/ladders/cpu.py")
    return parse_as(Ladder, read_file(path, "get_ladder"))


def sweep_runs(ladder: Ladder) -> list[LadderRun]:
    """The sweep's runs; none where nothing is swept."""
    sweep = ladder.sweep
    if sweep is None:
        return []
    return [
        _run(ladder, name, sweep.size, sweep.seed, sweep.elements, rate, sweep=True)
        for name in ladder.swept
        for rate in sweep.rates
    ]


def runs(ladder: Ladder, rates: Mapping[str, float]) -> list[LadderRun]:
    """The ladder's runs, family by family.

    Args:
        ladder: what to train.
        rates: learning rates of families that the sweep found.
    """
    found = []
    for name, family in ladder.families.items():
        rate = family.learning_rate or rates.get(name, 0.0)
        found += [
            _run(ladder, name, scale.size, seed, scale.elements, rate)
            for scale in ladder.scales
            for seed in range(scale.seeds)
        ]
    return found


def best_rates(ladder: Ladder, root: Place) -> dict[str, float]:
    """By family, the sweep's lowest rate whose held-out loss is the lowest or all but that: see `ALIKE`.

    The loss is what the family is trained on.

    Raises:
        ConfigError: a run of the sweep is not done, or measured no such loss.
    """
    losses: dict[str, dict[float, float]] = {}
    for run in sweep_runs(ladder):
        loss = run.measured(root).get(f"{HELD_OUT}loss")
        if loss is None:
            raise ConfigError(f"{root / run.name} of the sweep has no held-out loss at its end")
        losses.setdefault(run.family, {})[run.config.optimizer.learning_rate] = loss
    return {
        family: min(rate for rate, loss in found.items() if loss <= ALIKE * min(found.values()))
        for family, found in losses.items()
    }


def record_of_run(run: LadderRun, root: Place) -> dict[str, float | str | int]:
    """What a run that is done says of itself, as `scale fit` reads it."""
    last, model = run.measured(root), run.config.model
    parameters = count_parameters(model)
    metrics = {name.removeprefix(HELD_OUT): value for name, value in last.items() if name.startswith(HELD_OUT)}
    return {
        "name": run.name,
        "family": run.family,
        "size": run.size,
        "seed": run.seed,
        "parameters": parameters.paper,
        "parameters_total": parameters.total,
        "elements": run.config.steps * run.config.elements_per_step,
        "steps": run.config.steps,
        "learning_rate": run.config.optimizer.learning_rate,
        "flops_6nd": run.flops_6nd,
        **_totals(last),
        **metrics,
    }


def _totals(last: Mapping[str, float]) -> dict[str, float | int]:
    """FLOPs of all steps; None where an old checkpoint did not record those before it."""
    if "total_flops" not in last:
        return {}
    return {"images": int(last["total_images"]), "flops_exact": last["total_flops"]}


def _run(
    ladder: Ladder,
    family: str,
    size: str,
    seed: int,
    elements: float,
    rate: float,
    sweep: bool = False,
) -> LadderRun:
    spec = ladder.families[family].config.replace("{size}", size)
    given = (*ladder.changes, *ladder.families[family].changes)
    base = configs.load(spec, given)
    rate = rate or base.optimizer.learning_rate
    steps = round(elements * ladder.families[family].share / base.elements_per_step)
    require(steps > 0, f"{elements:g} elements are less than a step of {spec}, {base.elements_per_step:,}")
    fields: dict[str, object] = {
        "seed": seed,
        "steps": steps,
        "optimizer.learning_rate": rate,
        "optimizer.final_learning_rate": rate * ladder.final_rate,
        "optimizer.warmup_steps": max(round(steps * ladder.warmup), 1),
        "loop.evaluate_every": steps,
        "loop.sample_every": steps if base.model.images != "none" else 0,
    }
    for name in (change.partition("=")[0] for change in given):
        require(name not in fields, f"changes: {name} is the ladder's own to set, by {OWN}")
    if sweep:
        fields |= LOSS_ALONE
    changes = (*given, *_assignments(fields))
    before, after = f"sweep-{rate:g}-" if sweep else "", f"-seed{seed}" if seed else ""
    name = f"{before}{family}-{size}-{elements:g}{after}"
    config = configs.load(spec, changes)
    require(
        bool(config.evaluation.during_training),
        f"{spec}: evaluation.during_training names no suite, but measures a ladder's runs: name loss",
    )
    return LadderRun(family, size, seed, elements, name.replace("+", ""), spec, config, changes)


def _assignments(fields: Mapping[str, object]) -> Sequence[str]:
    return [f"{name}={value!r}" for name, value in fields.items()]
