"""The config of the model, of the noise that its images are trained with, and what both say of a modality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transfusion_jax.config.base import added, execution
from transfusion_jax.config.choices import (
    ATTENTION,
    IMAGES,
    NOISE_SCHEDULES,
    OBJECTIVES,
    PATCH_CODERS,
    REMAT_POLICIES,
    ROPE_SCALINGS,
    TIMESTEPS,
)
from transfusion_jax.errors import from_to, not_negative, one_of, positive, require

VOCABULARY_MULTIPLE = 128
PATCHES = "patches"  # the part of a layer's parameters that patches alone go through, where they are untied
SPECIAL_TOKENS = 5  # BOS, EOS, BOI, EOI, PAD

UNET_CHANNELS = {1: (1280,), 2: (768, 1024), 4: (256, 768, 1024), 8: (256, 512, 512, 1024)}  # by patch_size


@dataclass(frozen=True)
class ModelConfig:
    """The transformer and its patch coder (paper, table 2 and section 3.1)."""

    width: int
    layers: int
    heads: int  # of queries
    mlp_width: int  # hidden size of the SwiGLU
    vocabulary: int  # entries of the tokenizer; the special tokens and the padding come on top
    latent_shape: tuple[int, int, int]  # height, width, channels of an image after the autoencoder
    patch_size: int  # k: a patch is k×k latent pixels
    max_side: int = added(0)  # latent pixels; images then have any shape, and latent_shape's area at most
    shape_marks: bool = added(False)  # BOI is followed by two tokens that say how many patches high and wide it is
    images: str = "latents"  # how they are seen and predicted: an entry of `IMAGES`
    codebook: int = 0  # entries of the vocabulary for codes of images, behind the special tokens
    patch_coder: str = "linear"  # an entry of `PATCH_CODERS`
    unet_channels: tuple[int, ...] = ()  # of the U-Net, level by level from the latents' size; (): the paper's size
    unet_blocks: int = 2  # of the U-Net, in each level of its way down; one more on its way up
    image_attention: str = "bidirectional"  # of an image's patches among themselves, or "causal"
    modality_weights: str = "shared"  # or "untied": a layer's norms, projections and SwiGLU once more for patches
    rope_theta: float = 10_000.0
    rope_sections: tuple[int, ...] = added(())  # pairs of channels for time, height, width; (): one axis
    rope_scaling: str = added("none")  # for contexts beyond the pretrained one: an entry of `ROPE_SCALINGS`
    rope_factor: float = added(1.0)  # of `rope_scaling`: how many times longer contexts become
    rope_frequency_factors: tuple[float, float] = added((1.0, 4.0))  # of llama3: low and high
    rope_original_context: int = added(8192)  # of llama3: elements of the pretrained context
    norm_epsilon: float = 1e-5
    init_std: float = 0.02  # of every matrix; small widths learn faster with about 1/√width
    query_key_norm: bool = False  # a norm on each head's queries and keys (Chameleon, arXiv 2405.09818)
    query_key_norm_kind: str = added("layer")  # a LayerNorm with weights per head, or "rms": one RMSNorm (Qwen3)
    kv_heads: int = added(0)  # of keys and values, each shared by heads / kv_heads queries; 0: as many as heads
    head_dim: int = added(0)  # channels per head; 0: width / heads
    attention_bias: bool = added(False)  # on queries, keys and values (Qwen2)
    tied_embeddings: bool = added(False)  # the text head is the embedding's transpose
    norm: str = "pre"  # norms before attention and MLP, or "post": after each, inside the residual (Swin's order)
    attention: str = execution("auto")  # an entry of `ATTENTION`
    remat: str = execution("none")  # an entry of `REMAT_POLICIES`
    compute_dtype: str = execution("auto")  # "auto": bfloat16 on accelerators, float32 on CPU

    def __post_init__(self) -> None:
        positive(self, "model.", "width", "layers", "heads", "mlp_width", "vocabulary", "patch_size", "init_std")
        positive(self, "model.", "norm_epsilon", "unet_blocks")
        not_negative(self, "model.", "codebook")
        require(1 <= self.rope_theta < math.inf, f"model.rope_theta must be at least 1, not {self.rope_theta}")
        self._check_heads()
        require(min(self.latent_shape) > 0, f"model.latent_shape must be positive, not {list(self.latent_shape)}")
        height, width, _ = self.latent_shape
        require(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            f"model.patch_size {self.patch_size} must divide the latent's {height}×{width}",
        )
        self._check_shapes()
        PATCH_CODERS.check("model.patch_coder", self.patch_coder)
        one_of("model.modality_weights", self.modality_weights, ("shared", "untied"))
        IMAGES.check("model.images", self.images)
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
        ATTENTION.check("model.attention", self.attention)
        REMAT_POLICIES.check("model.remat", self.remat)
        one_of("model.compute_dtype", self.compute_dtype, ("auto", "float32", "bfloat16"))

    def _check_heads(self) -> None:
        not_negative(self, "model.", "kv_heads", "head_dim")
        require(
            self.head_dim > 0 or self.width % self.heads == 0,
            f"model.width {self.width} must be a multiple of heads {self.heads}, or set model.head_dim",
        )
        of = "model.head_dim" if self.head_dim else "model.width / heads"
        require(self.head_channels % 2 == 0, f"{of} is {self.head_channels}: rotary embeddings need it even")
        require(
            self.heads % self.key_value_heads == 0,
            f"model.kv_heads {self.kv_heads} must divide model.heads {self.heads}",
        )
        one_of("model.query_key_norm_kind", self.query_key_norm_kind, ("layer", "rms"))
        require(
            self.query_key_norm or self.query_key_norm_kind == "layer",
            f"model.query_key_norm_kind {self.query_key_norm_kind!r} goes with model.query_key_norm=True",
        )
        self._check_rope_scaling()

    def _check_rope_scaling(self) -> None:
        ROPE_SCALINGS.check("model.rope_scaling", self.rope_scaling)
        positive(self, "model.", "rope_factor", "rope_original_context")
        low, high = self.rope_frequency_factors
        require(
            0 < low < high < math.inf,
            f"model.rope_frequency_factors must be two rising positive numbers, not {[low, high]}",
        )
        without: dict[str, tuple[str, ...]] = {
            "rope_factor": ("none",),
            "rope_frequency_factors": ("none", "linear"),
            "rope_original_context": ("none", "linear"),
        }
        for name, scalings in without.items():
            value = getattr(self, name)
            require(
                self.rope_scaling not in scalings or value == getattr(ModelConfig, name),
                f"model.{name} is {value}; model.rope_scaling {self.rope_scaling} has no use for it: leave it out",
            )

    def _check_shapes(self) -> None:
        height, width, _ = self.latent_shape
        require(
            self.max_side == 0 or (self.max_side >= max(height, width) and self.max_side % self.patch_size == 0),
            f"model.max_side must be 0 (all images have model.latent_shape), or a multiple of model.patch_size "
            f"{self.patch_size} and at least {max(height, width)}, not {self.max_side}",
        )
        require(
            self.max_side == 0 or self.images != "none",
            f"model.max_side is {self.max_side}; a model of model.images 'none' sees no images: leave it out",
        )
        require(
            self.max_side > 0 or not self.shape_marks,
            "model.shape_marks goes with model.max_side: without it all images have model.latent_shape",
        )
        sections = self.rope_sections
        require(
            not sections or (len(sections) == 3 and min(sections) > 0 and sum(sections) == self.head_channels // 2),
            f"model.rope_sections takes three positive numbers (time, height, width) that add up to half of "
            f"a head's channels, {self.head_channels // 2}, not {list(sections)}",
        )

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
        levels = k.bit_length()
        require(
            k in UNET_CHANNELS, f"model.patch_coder unet halves the image: model.patch_size 1, 2, 4 or 8, not {k}"
        )
        require(
            len(channels) in (0, levels) and all(c > 0 for c in channels),
            f"model.unet_channels takes {levels} positive numbers with model.patch_size {k}, not {list(channels)}",
        )

    @property
    def head_channels(self) -> int:
        """`head_dim` with its default resolved: channels per attention head."""
        return self.head_dim or self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """`kv_heads` with its default resolved."""
        return self.kv_heads or self.heads

    @property
    def query_width(self) -> int:
        """Channels of all heads' queries."""
        return self.heads * self.head_channels

    @property
    def key_width(self) -> int:
        """Channels of all heads' keys; values have as many."""
        return self.key_value_heads * self.head_channels

    @property
    def coder_channels(self) -> tuple[int, ...]:
        """Of the U-Net's levels, from the latents' size to the patches'."""
        return self.unet_channels or UNET_CHANNELS[self.patch_size]

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in one image of `latent_shape`."""
        height, width, _ = self.latent_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of one image of `latent_shape`: of every image, or the most that one has."""
        rows, columns = self.patch_grid
        return rows * columns

    @property
    def patch_area(self) -> int:
        """Latent pixels of one patch."""
        return self.patch_size**2

    @property
    def image_marks(self) -> int:
        """Elements of an image beside its patches: BOI, with shape marks its height and its width, and EOI."""
        return 4 if self.shape_marks else 2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The rows and columns of patches that an image of this latent height and width has.

        Raises:
            ConfigError: images of this shape do not go with the model.
        """
        largest, k = self.latent_shape[:2], self.patch_size
        if not self.max_side:
            require(
                (height, width) == largest,
                f"an image's latent is {height}×{width}, and model.latent_shape is {list(self.latent_shape)}: "
                "images of several shapes need model.max_side",
            )
        require(
            height % k == 0 and width % k == 0,
            f"an image's latent is {height}×{width}, which model.patch_size {k} does not divide",
        )
        most = self.max_side or max(largest)
        require(
            height * width <= largest[0] * largest[1] and min(height, width) > 0 and max(height, width) <= most,
            f"an image's latent is {height}×{width}: model.latent_shape allows {largest[0] * largest[1]} places, "
            f"and model.max_side a side of {most}",
        )
        return height // k, width // k

    @property
    def patch_channels(self) -> int:
        """Latent values that one patch carries."""
        return self.patch_size**2 * self.latent_shape[2]

    @property
    def first_code(self) -> int:
        """The entry of code 0; code c of an image is entry `first_code + c`."""
        return self.vocabulary + SPECIAL_TOKENS

    @property
    def first_side(self) -> int:
        """The entry that says a side of one patch; that of n patches is entry `first_side + n − 1`."""
        return self.first_code + self.codebook

    @property
    def sides(self) -> int:
        """Entries for sides of images: as many as the longest has patches, or none without shape marks."""
        return self.max_side // self.patch_size if self.shape_marks else 0

    @property
    def entries(self) -> int:
        """Entries that stand for something: tokenizer, special tokens, codes of images, sides of images."""
        return self.first_side + self.sides

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding table: `entries`, and padding to a multiple of 128."""
        multiple = VOCABULARY_MULTIPLE
        return -(-self.entries // multiple) * multiple


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise (paper, section 2.2): cosine schedule, ε objective."""

    timesteps: int = 1000
    objective: str = "epsilon"  # what is predicted: an entry of `OBJECTIVES`
    schedule: str = "auto"  # an entry of `NOISE_SCHEDULES`; "auto": cosine, and straight of a flow
    image_first_limit: int = 1000  # highest t for an image that precedes its caption; the paper's switch is 500
    timestep_distribution: str = added("uniform")  # of t / limit in training: an entry of `TIMESTEPS`
    timestep_mean: float = added(0.0)  # of logit_normal: its normal's mean; above 0 there is more noise
    timestep_deviation: float = added(1.0)  # of logit_normal: its normal's standard deviation
    timestep_beta: tuple[float, float] = added((1.5, 1.0))  # of beta: a larger first is noisier, second cleaner
    timestep_base: int = added(0)  # elements of an image whose t stays; larger ones' are noisier (`shift`); 0: none

    def __post_init__(self) -> None:
        positive(self, "diffusion.", "timesteps")
        OBJECTIVES.check("diffusion.objective", self.objective)
        NOISE_SCHEDULES.check("diffusion.schedule", self.schedule, "auto")
        require(
            self.objective != "flow" or self.resolved_schedule == "straight",
            f"diffusion.objective flow has a straight line of its own: leave diffusion.schedule at auto, not "
            f"{self.schedule}",
        )
        require(
            self.objective == "flow" or self.resolved_schedule != "straight",
            f"diffusion.schedule straight goes with diffusion.objective flow, not {self.objective}",
        )
        require(
            self.schedule != "linear" or self.timesteps > 20,
            f"diffusion.schedule linear takes more than 20 timesteps, not {self.timesteps}: its noise would be "
            "more than the image holds",
        )
        require(
            1 <= self.image_first_limit <= self.timesteps,
            f"diffusion.image_first_limit must lie between 1 and timesteps ({self.timesteps}), not "
            f"{self.image_first_limit}",
        )
        self._check_timesteps()

    def _check_timesteps(self) -> None:
        chosen = self.timestep_distribution
        TIMESTEPS.check("diffusion.timestep_distribution", chosen)
        of = {"timestep_mean": "logit_normal", "timestep_deviation": "logit_normal", "timestep_beta": "beta"}
        for name, distribution in of.items():
            value = getattr(self, name)
            require(
                chosen == distribution or value == getattr(DiffusionConfig, name),
                f"diffusion.{name} is {value}; it goes with diffusion.timestep_distribution {distribution}, not "
                f"{chosen}: leave it out",
            )
        from_to(self, "diffusion.", -10, 10, "timestep_mean")
        from_to(self, "diffusion.", 0.01, 10, "timestep_deviation")
        require(
            all(0.1 <= value <= 100 for value in self.timestep_beta),
            f"diffusion.timestep_beta must be two numbers from 0.1 to 100, not {list(self.timestep_beta)}",
        )
        not_negative(self, "diffusion.", "timestep_base")

    def shift(self, elements: Any) -> Any:
        """By how much the timesteps of an image are shifted (see `Path.shift`): √(m / n), or 1 without an n.

        m is the number of its elements, n `timestep_base`. The rule is Stable Diffusion 3's (arXiv 2403.03206,
        5.3.2): of m / n alike pixels, each with noise of its own, the mean is √(m / n) times as clean.

        Args:
            elements: m, a number or an array of them.
        """
        return (elements / self.timestep_base) ** 0.5 if self.timestep_base else 1.0

    @property
    def resolved_schedule(self) -> str:
        """`schedule` with its default resolved: an entry of `NOISE_SCHEDULES`."""
        if self.schedule != "auto":
            return self.schedule
        return "straight" if self.objective == "flow" else "cosine"


@dataclass(frozen=True)
class Modality:
    """A kind of continuous data that a model reads and makes: what training knows of its items."""

    singular: str  # one item's name, as in the metric `loss_image`
    values: int  # of one patch; 0 where patches are codes, which are tokens
    coder: str  # an entry of `PATCH_CODERS`
    diffusion: DiffusionConfig  # objective, schedule and timesteps
    loss_weight: float  # beside the text's
    items: int  # that a row has room for
    patches: int  # that a row has room for
    one_size: int  # patches of every item; 0: items differ
