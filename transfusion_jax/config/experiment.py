"""The config of a run of the mixed-modality model: frozen dataclasses that check themselves; see `run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transfusion_jax.config.base import Run, execution
from transfusion_jax.config.choices import SUITES
from transfusion_jax.config.data import DataConfig
from transfusion_jax.config.model import DiffusionConfig, Modality, ModelConfig
from transfusion_jax.errors import from_to, not_negative, one_of, positive, require, whole_range

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
    spacing: str = execution("auto", added=True)  # of timesteps: shifted by diffusion.timestep_base, or "trailing"

    def __post_init__(self) -> None:
        positive(self, "sampling.", "steps")
        one_of("sampling.sampler", self.sampler, ("auto", "ancestral", "ddim", "dpm++", "euler", "heun"))
        one_of("sampling.spacing", self.spacing, ("auto", "trailing"))
        not_negative(self, "sampling.", "guidance", "image_guidance", "temperature")
        from_to(self, "sampling.", 0, 1, "guidance_rescale")
        interval = self.guidance_interval
        require(
            len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
            f"sampling.guidance_interval must be two numbers from 0 to 1, the lower first, not {list(interval)}",
        )


OF_LATENTS = ("steps", "sampler", "spacing", "guidance_interval", "guidance_rescale", "image_guidance")  # not codes
FORMER_STEPS = 250  # the default of earlier versions: it stands in the `config.json` of runs of codes, too


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and on how much."""

    suites: tuple[str, ...] = execution(("loss",))  # of `transfusion evaluate`
    during_training: tuple[str, ...] = execution(("loss",))  # every loop.evaluate_every steps
    rows: int = execution(128)  # held-out rows that losses are measured on, exactly
    images: int = execution(200)  # images drawn by a suite that judges them
    scenes: str = execution("free")  # of the suites `shapes` and `edits`; "corners" or "single", as the data are
    proportions: tuple[str, ...] = execution((), added=True)  # of the pictures of the suite `shapes`, as "2x1"

    def __post_init__(self) -> None:
        positive(self, "evaluation.", "rows", "images")
        for name in ("suites", "during_training"):
            for suite in getattr(self, name):
                SUITES.check(f"evaluation.{name}", suite)
        one_of("evaluation.scenes", self.scenes, ("free", "corners", "single"))
        for proportion in self.proportions:
            require(
                0 not in (whole_range(proportion, "x") or (0, 0)),
                f"evaluation.proportions holds {proportion!r}: a proportion is two whole numbers, across and down, "
                "such as 2x1",
            )
        require(
            len(set(self.proportions)) == len(self.proportions),
            f"evaluation.proportions names one twice: {', '.join(self.proportions)}",
        )


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
        require(
            self.data.max_patches in (0, self.data.max_images * self.model.patches) or self.model.max_side > 0,
            f"data.max_patches is {self.data.max_patches}: without model.max_side all images have one size, and "
            "data.max_images says how many patches a row holds; leave it out",
        )
        require(
            self.data.max_patches == 0 or self.data.max_patches >= self.model.patches,
            f"data.max_patches is {self.data.max_patches}, and one image has up to {self.model.patches}",
        )
        require(
            not self.evaluation.proportions or self.model.max_side > 0,
            "evaluation.proportions goes with model.max_side: without it all images have one size; leave it out",
        )
        smallest = 1 + self.model.patches + self.model.image_marks  # BOS first
        require(
            smallest <= self.data.context_length or self.model.images == "none",
            f"an image takes {smallest} elements with its marks, and data.context_length is "
            f"{self.data.context_length}: raise it, or model.patch_size",
        )

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """What rows hold besides text, by name."""
        model, data = self.model, self.data
        if model.images == "none":
            return {}
        most = data.max_images * model.patches
        images = Modality(
            singular="image",
            values=model.patch_channels if model.images == "latents" else 0,
            coder=model.patch_coder,
            diffusion=self.diffusion,
            loss_weight=self.image_loss_weight,
            items=data.max_images,
            patches=data.max_patches or (min(most, data.context_length) if model.max_side else most),
            one_size=0 if model.max_side else model.patches,
        )
        return {"images": images}

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
