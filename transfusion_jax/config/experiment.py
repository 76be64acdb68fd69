"""The config of a run of the mixed-modality model: frozen dataclasses that check themselves; see `run`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from transfusion_jax.config.base import Run, execution
from transfusion_jax.config.choices import SUITES
from transfusion_jax.config.data import DataConfig
from transfusion_jax.config.model import DiffusionConfig, ModelConfig
from transfusion_jax.errors import from_to, not_negative, one_of, positive, require

FOLLOWS = ("any", "text", "image")  # what a sample goes on with: texts and images, text alone, or one image


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn; commands can override it."""

    steps: int = execution(50)  # of denoising
    sampler: str = execution("auto")  # "ancestral" (auto), "ddim" or "dpm++"; of a flow "euler" (auto) or "heun"
    guidance: float = execution(3.0)  # scale of classifier-free guidance; 1 is none
    guidance_interval: tuple[float, ...] = execution((0.0, 1.0))  # of t / T: where guidance acts
    guidance_rescale: float = execution(0.0)  # how far guidance is kept from widening a prediction, up to 1
    image_guidance: float = execution(0.0)  # of the images before, apart from the texts; 0: as guidance
    temperature: float = execution(1.0)  # of codes, which are drawn one by one; 0 takes the likeliest

    def __post_init__(self) -> None:
        positive(self, "sampling.", "steps")
        one_of("sampling.sampler", self.sampler, ("auto", "ancestral", "ddim", "dpm++", "euler", "heun"))
        not_negative(self, "sampling.", "guidance", "image_guidance", "temperature")
        from_to(self, "sampling.", 0, 1, "guidance_rescale")
        interval = self.guidance_interval
        require(
            len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
            f"sampling.guidance_interval must be two numbers from 0 to 1, the lower first, not {list(interval)}",
        )


OF_LATENTS = ("steps", "sampler", "guidance_interval", "guidance_rescale", "image_guidance")  # not of codes
FORMER_STEPS = 250  # the default of earlier versions: it stands in the `config.json` of runs of codes, too


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and on how much."""

    suites: tuple[str, ...] = execution(("loss",))  # of `transfusion evaluate`
    during_training: tuple[str, ...] = execution(("loss",))  # every loop.evaluate_every steps
    rows: int = execution(128)  # held-out rows that losses are measured on, exactly
    images: int = execution(200)  # images drawn by a suite that judges them
    scenes: str = execution("free")  # of the suites `shapes` and `edits`; or "corners", as the data are

    def __post_init__(self) -> None:
        positive(self, "evaluation.", "rows", "images")
        for name in ("suites", "during_training"):
            for suite in getattr(self, name):
                SUITES.check(f"evaluation.{name}", suite)
        one_of("evaluation.scenes", self.scenes, ("free", "corners"))


@dataclass(frozen=True, kw_only=True)
class Config(Run):
    """Everything that a run of the mixed-modality model is made of."""

    model: ModelConfig
    data: DataConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    image_loss_weight: float = 5.0  # λ
    z_loss: float = 0.0  # weight of log² of the softmax's denominator; Chameleon's is 1e-5
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "", "image_loss_weight", "z_loss")
        require(
            self.sampling.steps <= self.diffusion.timesteps,
            f"sampling.steps {self.sampling.steps} must not exceed diffusion.timesteps {self.diffusion.timesteps}",
        )
        of_flows, flow = self.sampling.sampler in ("euler", "heun"), self.diffusion.objective == "flow"
        require(
            self.sampling.sampler == "auto" or of_flows == flow,
            f"sampling.sampler {self.sampling.sampler!r} does not go with diffusion.objective "
            f"{self.diffusion.objective!r}: {'euler and heun' if flow else 'ancestral, ddim and dpm++'} do",
        )
        require(
            self.optimizer.frozen == "none" or self.model.modality_weights == "untied",
            "optimizer.frozen='text' needs model.modality_weights='untied': patches have no weights of their own",
        )
        self._check_family()
        smallest = self.model.patches + 3  # BOS BOI … EOI
        require(
            smallest <= self.data.context_length or self.model.images == "none",
            f"an image takes {smallest} elements with its marks, and data.context_length is "
            f"{self.data.context_length}: raise it, or model.patch_size",
        )

    def sampling_with(self, **changes: Any) -> SamplingConfig:
        """How images are drawn with some fields changed; those that are None stay.

        Raises:
            ConfigError: a value is out of range, or does not go with the model.
        """
        changed = replace(self.sampling, **{name: value for name, value in changes.items() if value is not None})
        return replace(self, sampling=changed).sampling

    def _check_family(self) -> None:
        """Requires that only fields of the model's own family are set."""
        family = self.model.images
        if family == "latents":
            require(
                self.sampling.temperature == 1,
                "sampling.temperature goes with model.images='codes': latents are denoised",
            )
            return
        elsewhere: dict[str, tuple] = {
            "image_loss_weight": (self.image_loss_weight, 5.0),
            "diffusion": (self.diffusion, DiffusionConfig()),
            "data.clean_context": (self.data.clean_context, 0.0),
            **{
                f"sampling.{name}": (getattr(self.sampling, name), getattr(SamplingConfig(), name))
                for name in OF_LATENTS
            },
            "sampling.steps": (self.sampling.steps, SamplingConfig.steps, FORMER_STEPS),
            "data.max_text": (self.data.max_text, 0),  # every element bears a loss
        }
        for name, (value, *defaults) in elsewhere.items():
            require(value in defaults, f"{name} goes with model.images='latents', not {family!r}: leave it out")
        require(
            family == "codes" or not self.loop.sample_every,
            "loop.sample_every must be 0 with model.images='none': a model of text alone draws no images",
        )

    @property
    def elements_per_step(self) -> int:
        """Sequence positions in one optimizer step."""
        return self.batch_rows * self.data.context_length

    @property
    def workers(self) -> int:
        """Loader processes."""
        return self.data.workers

    @property
    def folders(self) -> tuple[str, ...]:
        """The prepared data that is read."""
        names = [name for source in self.data.sources.values() for name in (source.path, source.held_out)]
        return tuple(name for name in names if name and not name.startswith("synthetic:"))
