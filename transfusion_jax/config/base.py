"""What every run's config holds, whatever is trained: optimizer, guard, mesh and loop.

Every field is *identity* (part of what is being trained: a resume refuses a change) or *execution* (how it is
run: free to change). Identity is the default; execution fields are declared with `execution(default)`. An execution
field of one command, declared with `of_command(default)`, is not kept with the run.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transfusion_jax.config.choices import OPTIMIZERS, RATE_SCHEDULES
from transfusion_jax.errors import MOST, not_negative, one_of, positive, require


def execution(default: Any, **others: Any) -> Any:
    """A field that says how a run is executed, not what is trained; `added=True`: it came later, see `added`."""
    return field(default=default, metadata={"execution": True, **others})


def added(default: Any) -> Any:
    """An identity field that came later: with its default a config is kept, and has the hash, as before."""
    return field(default=default, metadata={"added": True})


def of_command(default: Any) -> Any:
    """An execution field that applies to the command that sets it, not to the next one in the same workdir."""
    return field(default=default, metadata={"execution": True, "of_command": True})


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated: AdamW with linear warm-up and cosine decay (paper, section 4.1) by default."""

    name: str = added("adamw")  # an entry of `OPTIMIZERS`
    learning_rate: float = 3e-4
    final_learning_rate: float = 1.5e-5
    warmup_steps: int = 4000
    schedule: str = added("cosine")  # of the learning rate: an entry of `RATE_SCHEDULES`
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    first_moment: str = "float32"  # or "bfloat16": two bytes less for each parameter
    weight_decay: float = 0.1  # on matrices only
    gradient_clip: float = 1.0  # largest global norm; 0 turns clipping off
    ema_decay: float = 0.0  # 0 keeps no average of the weights
    frozen: str = "none"  # or "text": all weights stay but those of patches alone, which modality_weights unties

    def __post_init__(self) -> None:
        positive(self, "optimizer.", "learning_rate", "epsilon")
        OPTIMIZERS.check("optimizer.name", self.name)
        RATE_SCHEDULES.check("optimizer.schedule", self.schedule)
        one_of("optimizer.frozen", self.frozen, ("none", "text"))
        one_of("optimizer.first_moment", self.first_moment, ("float32", "bfloat16"))
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            f"optimizer.final_learning_rate must lie between 0 and learning_rate, {self.learning_rate}, not "
            f"{self.final_learning_rate}",
        )
        for name in ("beta1", "beta2", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} must lie in [0, 1), not {value}")
        not_negative(self, "optimizer.", "warmup_steps", "weight_decay", "gradient_clip")


@dataclass(frozen=True)
class GuardConfig:
    """Steps that are not taken: where loss or gradients are not finite, or jump."""

    max_in_a_row: int = execution(5)  # so many bad steps in a row stop the run
    spikes: str = "ignore"  # "ignore", "skip" or "stop"
    spike_sigmas: float = 6.0  # a spike is so many standard deviations above the recent mean
    spike_window: int = 128  # accepted steps that mean and deviation are taken over

    def __post_init__(self) -> None:
        positive(self, "guard.", "max_in_a_row", "spike_sigmas")
        one_of("guard.spikes", self.spikes, ("ignore", "skip", "stop"))
        require(self.spike_window >= 2, f"guard.spike_window must be at least 2, not {self.spike_window}")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1, on one axis at most, takes what is left."""

    data: int = execution(-1)
    fsdp: int = execution(1)
    context: int = execution(1)
    tensor: int = execution(1)

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        require(
            all(n == -1 or n > 0 for n in sizes),
            f"mesh axes must be positive, or -1 for what is left, not {list(sizes)}",
        )
        require(sizes.count(-1) <= 1, "only one mesh axis can be -1")


@dataclass(frozen=True)
class LoopConfig:
    """Cadence of the training loop, in steps but where it says otherwise; 0 turns a thing off."""

    log_every: int = execution(10)
    save_every: int = execution(1000)
    keep: int = execution(3)  # newest checkpoints kept, beside the best one
    keep_every: int = execution(0)  # checkpoints at multiples of this step are kept for good
    evaluate_every: int = execution(1000)
    sample_every: int = execution(0)
    stop_at: int = of_command(0)  # step after which it saves and ends; the next command without it goes on
    hang_after: int = execution(1800)  # seconds without a step or an evaluation that end the process

    def __post_init__(self) -> None:
        positive(self, "loop.", "log_every", "save_every", "keep")
        not_negative(self, "loop.", "keep_every", "evaluate_every", "sample_every", "stop_at", "hang_after")
        require(
            self.keep_every % self.save_every == 0,
            f"loop.keep_every {self.keep_every} must be a multiple of save_every {self.save_every}",
        )


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """What the training loop asks of a config, whatever is trained."""

    name: str = field(metadata={"execution": True})
    seed: int = field(metadata={"most": 2**63 - 1})
    steps: int
    batch_rows: int  # rows per step, over all devices
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    accumulation: int = execution(1)  # parts that a batch is computed in, one after the other
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    extensions: Mapping[str, str] = field(
        default_factory=dict, metadata={"execution": True, "added": True}
    )  # see `extend`

    def __post_init__(self) -> None:
        positive(self, "", "steps", "batch_rows", "accumulation")
        not_negative(self, "", "seed")
        rows = self.steps * self.batch_rows
        require(
            rows <= MOST,
            f"steps {self.steps} × batch_rows {self.batch_rows} are {rows:,} rows: at most {MOST:,} have numbers",
        )
        require(
            self.batch_rows % self.accumulation == 0,
            f"accumulation {self.accumulation} must divide batch_rows {self.batch_rows}",
        )

    @property
    def part_rows(self) -> int:
        """Rows that are computed at a time, over all devices: in training, and in evaluation."""
        return self.batch_rows // self.accumulation

    @property
    @abstractmethod
    def workers(self) -> int:
        """Loader processes."""

    @property
    @abstractmethod
    def folders(self) -> tuple[str, ...]:
        """The prepared data that is read."""
