"""The config of a run of the mixed-modality model: frozen dataclasses that check themselves; see `run`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transfusion_jax.config.base import Run, execution
from transfusion_jax.config.checks import one_of, positive, require

VOCABULARY_MULTIPLE = 128
SPECIAL_TOKENS = 5  # BOS, EOS, BOI, EOI, PAD


UNET_CHANNELS = {1: (1280,), 2: (768, 1024), 4: (256, 768, 1024), 8: (256, 512, 512, 1024)}  # by patch_size


@dataclass(frozen=True)
class ModelConfig:
    """The transformer and its patch coder (paper, table 2 and section 3.1)."""

    width: int
    layers: int
    heads: int
    mlp_width: int  # hidden size of the SwiGLU
    vocabulary: int  # entries of the tokenizer; the special tokens and the padding come on top
    latent_shape: tuple[int, int, int]  # height, width, channels of an image after the autoencoder
    patch_size: int  # k: a patch is k×k latent pixels
    images: str = "latents"  # denoised (Transfusion); "codes": next tokens too (Chameleon); "none": text alone
    codebook: int = 0  # entries of the vocabulary for codes of images, behind the special tokens
    patch_coder: str = "linear"  # "linear", "none" (the same map of 1×1 patches), or "unet"
    unet_channels: tuple[int, ...] = ()  # of the U-Net, level by level from the latents' size; (): the paper's size
    unet_blocks: int = 2  # of the U-Net, in each level of its way down; one more on its way up
    image_attention: str = "bidirectional"  # of an image's patches among themselves, or "causal"
    modality_weights: str = "shared"  # or "untied": a layer's norms, projections and SwiGLU once more for patches
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    init_std: float = 0.02  # of every matrix; small widths learn faster with about 1/√width
    query_key_norm: bool = False  # a LayerNorm on each head's queries and keys (Chameleon, arXiv 2405.09818)
    norm: str = "pre"  # norms before attention and MLP, or "post": after each, inside the residual (Swin's order)
    attention: str = execution("auto")  # "auto", "tpu", "gpu", "blocked" or "reference"
    remat: str = execution("none")  # what is computed again: "none", "full", or "dots" (all but products)
    compute_dtype: str = execution("auto")  # "auto": bfloat16 on accelerators, float32 on CPU

    def __post_init__(self) -> None:
        positive(self, "model.", "width", "layers", "heads", "mlp_width", "vocabulary", "patch_size", "init_std")
        require(self.width % self.heads == 0, f"model.width {self.width} must be a multiple of heads {self.heads}")
        require(self.head_dim % 2 == 0, f"model.width / heads is {self.head_dim}: rotary embeddings need it even")
        require(min(self.latent_shape) > 0, f"model.latent_shape must be positive, not {list(self.latent_shape)}")
        height, width, _ = self.latent_shape
        require(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            f"model.patch_size {self.patch_size} must divide the latent's {height}×{width}",
        )
        one_of("model.patch_coder", self.patch_coder, ("linear", "none", "unet"))
        one_of("model.modality_weights", self.modality_weights, ("shared", "untied"))
        one_of("model.images", self.images, ("latents", "codes", "none"))
        one_of("model.image_attention", self.image_attention, ("bidirectional", "causal"))
        if self.images == "codes":
            require(self.codebook > 0, "model.images='codes' needs model.codebook, the entries of its autoencoder")
            require(
                self.patch_size == 1, f"model.patch_size is {self.patch_size}: with codes an element is one, so 1"
            )
            require(
                self.image_attention == "causal",
                "model.images='codes' needs model.image_attention='causal': what is seen is not predicted",
            )
        else:
            require(self.codebook == 0, f"model.codebook goes with model.images='codes', not {self.images!r}")
        require(
            self.images == "latents" or self.patch_coder == "linear",
            f"model.patch_coder {self.patch_coder!r} goes with model.images='latents', not {self.images!r}",
        )
        require(
            self.images == "latents" or self.modality_weights == "shared",
            f"model.modality_weights 'untied' goes with model.images='latents', not {self.images!r}",
        )
        one_of("model.norm", self.norm, ("pre", "post"))
        self._check_coder()
        one_of("model.attention", self.attention, ("auto", "tpu", "gpu", "blocked", "reference"))
        one_of("model.remat", self.remat, ("none", "full", "dots"))
        one_of("model.compute_dtype", self.compute_dtype, ("auto", "float32", "bfloat16"))

    def _check_coder(self) -> None:
        k, channels = self.patch_size, self.unet_channels
        require(
            self.patch_coder != "none" or k == 1,
            f"model.patch_coder none takes 1×1 patches: set model.patch_size to 1, not {k}, or take linear",
        )
        if self.patch_coder != "unet":
            require(not channels, "model.unet_channels goes with model.patch_coder unet alone")
            require(self.unet_blocks == 2, "model.unet_blocks goes with model.patch_coder unet alone")
            return
        positive(self, "model.", "unet_blocks")
        levels = k.bit_length()
        require(
            k in UNET_CHANNELS, f"model.patch_coder unet halves the image: model.patch_size 1, 2, 4 or 8, not {k}"
        )
        require(
            len(channels) in (0, levels) and all(c > 0 for c in channels),
            f"model.unet_channels takes {levels} positive numbers with model.patch_size {k}, not {list(channels)}",
        )

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.width // self.heads

    @property
    def coder_channels(self) -> tuple[int, ...]:
        """Of the U-Net's levels, from the latents' size to the patches'."""
        return self.unet_channels or UNET_CHANNELS[self.patch_size]

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in one image."""
        height, width, _ = self.latent_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """Elements that one image takes."""
        rows, columns = self.patch_grid
        return rows * columns

    @property
    def patch_channels(self) -> int:
        """Latent values that one patch carries."""
        return self.patch_size**2 * self.latent_shape[2]

    @property
    def first_code(self) -> int:
        """The entry of code 0; code c of an image is entry `first_code + c`."""
        return self.vocabulary + SPECIAL_TOKENS

    @property
    def entries(self) -> int:
        """Entries that stand for something: tokenizer, special tokens, codes of images."""
        return self.first_code + self.codebook

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding table: `entries`, and padding to a multiple of 128."""
        multiple = VOCABULARY_MULTIPLE
        return -(-self.entries // multiple) * multiple


@dataclass(frozen=True)
class SourceConfig:
    """One source of documents, and its share of the training elements."""

    path: str = execution("")  # a folder that `transfusion prepare` wrote, "synthetic:pairs" or "synthetic:text"
    weight: float = 1.0  # in the phase that begins with row 0; 0: not read there
    held_out: str = execution("")  # a prepared folder that is held out whole, in place of this one's own part

    def __post_init__(self) -> None:
        require(bool(self.path), "data.sources.*.path is missing: name a folder that `transfusion prepare` wrote")
        require(
            not (self.held_out and self.path.startswith("synthetic:")),
            "data.sources.*.held_out goes with prepared data, not with synthetic",
        )
        require(0 <= self.weight < math.inf, f"data.sources.*.weight must not be negative, not {self.weight}")


SYNTHETIC = {"pairs": {"path": "synthetic:pairs"}, "text": {"path": "synthetic:text"}}  # the paper's mixture
SYNTHETIC_TEXT = {"text": SYNTHETIC["text"]}  # of models of text alone


@dataclass(frozen=True)
class Phase:
    """A stretch of the stream with one mixture."""

    start: int  # its first row
    weights: Mapping[str, float]  # shares of the elements, relative to each other, by source


@dataclass(frozen=True)
class DataConfig:
    """Which documents are read and how rows are made of them."""

    sources: Mapping[str, SourceConfig] = field(default_factory=dict)
    phases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # from a row on: other weights
    encoding: str = "pixels"  # which encoding of the prepared images
    context_length: int = 4096
    max_images: int = 8  # images per row, a static shape
    max_text: int = 0  # text elements with a loss per row, a static shape; 0: context_length
    image_first: float = 0.2  # share of image-caption pairs whose image comes first (paper, section 4.1)
    caption_dropout: float = 0.1  # share of caption-first pairs that lose their caption, for guidance
    clean_context: float = 0.0  # share of images with text after them that are shown clean and bear no loss
    workers: int = execution(0)  # loader processes; 0 reads in threads of this one

    def __post_init__(self) -> None:
        positive(self, "data.", "context_length", "max_images")
        for name in ("image_first", "caption_dropout", "clean_context"):
            require(0 <= getattr(self, name) <= 1, f"data.{name} must be between 0 and 1")
        require(0 <= self.max_text <= self.context_length, "data.max_text must lie between 0 and context_length")
        require(self.workers >= 0, "data.workers must not be negative")
        for start, weights in self.phases.items():
            require(
                start.isdigit() and int(start) > 0 and start == str(int(start)),
                f"data.phases.{start}: a phase is named by its first row, such as 200000; the weights from row 0 "
                "on are those of data.sources",
            )
            for name, weight in weights.items():
                one_of(f"a source of data.phases.{start}", name, self.sources)
                require(0 <= weight < math.inf, f"data.phases.{start}.{name} must not be negative, not {weight}")
        for phase in self.mixtures if self.sources else ():
            require(bool(phase.weights), f"no source has a weight above 0 from row {phase.start} on")

    @property
    def mixtures(self) -> tuple[Phase, ...]:
        """The phases in order; sources without weight are left out."""
        tables = {0: {name: source.weight for name, source in self.sources.items()}}
        tables |= {int(start): dict(weights) for start, weights in self.phases.items()}
        return tuple(
            Phase(start, {name: weight for name, weight in sorted(tables[start].items()) if weight > 0})
            for start in sorted(tables)
        )

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources in the order in which phases first read them, so that a new phase adds at the end."""
        read = [name for phase in self.mixtures for name in phase.weights]
        return tuple(dict.fromkeys([*read, *sorted(self.sources)]))

    @property
    def text_capacity(self) -> int:
        """`max_text` with its default resolved."""
        return self.max_text or self.context_length


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise (paper, section 2.2): cosine schedule, ε objective."""

    timesteps: int = 1000
    objective: str = "epsilon"  # what is predicted: "epsilon", "v", "x" (the clean image), or "flow" (ε − x₀)
    schedule: str = "auto"  # "cosine", "linear" or "auto": cosine, and the straight line of rectified flow
    image_first_limit: int = 1000  # highest t for an image that precedes its caption; the paper's switch is 500

    def __post_init__(self) -> None:
        positive(self, "diffusion.", "timesteps")
        one_of("diffusion.objective", self.objective, ("epsilon", "v", "x", "flow"))
        one_of("diffusion.schedule", self.schedule, ("auto", "cosine", "linear"))
        require(
            self.objective != "flow" or self.schedule == "auto",
            f"diffusion.objective flow has a straight line of its own: leave diffusion.schedule at auto, not "
            f"{self.schedule}",
        )
        require(
            self.schedule != "linear" or self.timesteps > 20,
            f"diffusion.schedule linear takes more than 20 timesteps, not {self.timesteps}: its noise would be "
            "more than the image holds",
        )
        require(
            1 <= self.image_first_limit <= self.timesteps,
            f"diffusion.image_first_limit must lie between 1 and timesteps ({self.timesteps})",
        )

    @property
    def resolved_schedule(self) -> str:
        """`schedule` with its default resolved: an entry of `diffusion.schedule.SCHEDULES`."""
        if self.schedule != "auto":
            return self.schedule
        return "straight" if self.objective == "flow" else "cosine"


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
        for name in ("guidance", "image_guidance", "temperature"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"sampling.{name} must not be negative, not {value}")
        rescale, interval = self.guidance_rescale, self.guidance_interval
        require(0 <= rescale <= 1, f"sampling.guidance_rescale must lie between 0 and 1, not {rescale}")
        require(
            len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
            f"sampling.guidance_interval must be two numbers from 0 to 1, the lower first, not {list(interval)}",
        )


OF_LATENTS = ("steps", "sampler", "guidance_interval", "guidance_rescale", "image_guidance")  # not of codes
FORMER_STEPS = 250  # the default of earlier versions: it stands in the `config.json` of runs of codes, too


SUITES = ("loss", "text", "images", "captions", "digits", "edits", "shapes", "frechet")  # see `evaluation.suite`


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
                one_of(f"evaluation.{name}", suite, SUITES)
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
        require(self.image_loss_weight >= 0, "image_loss_weight must not be negative")
        require(0 <= self.z_loss < math.inf, f"z_loss must not be negative, not {self.z_loss}")
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
