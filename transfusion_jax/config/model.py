"""The config of the model and of the noise that its images are trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transfusion_jax.config.base import execution
from transfusion_jax.config.choices import (
    ATTENTION,
    IMAGES,
    NOISE_SCHEDULES,
    OBJECTIVES,
    PATCH_CODERS,
    REMAT_POLICIES,
)
from transfusion_jax.errors import not_negative, one_of, positive, require

VOCABULARY_MULTIPLE = 128
PATCHES = "patches"  # the part of a layer's parameters that patches alone go through, where they are untied
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
    images: str = "latents"  # how they are seen and predicted: an entry of `IMAGES`
    codebook: int = 0  # entries of the vocabulary for codes of images, behind the special tokens
    patch_coder: str = "linear"  # an entry of `PATCH_CODERS`
    unet_channels: tuple[int, ...] = ()  # of the U-Net, level by level from the latents' size; (): the paper's size
    unet_blocks: int = 2  # of the U-Net, in each level of its way down; one more on its way up
    image_attention: str = "bidirectional"  # of an image's patches among themselves, or "causal"
    modality_weights: str = "shared"  # or "untied": a layer's norms, projections and SwiGLU once more for patches
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    init_std: float = 0.02  # of every matrix; small widths learn faster with about 1/√width
    query_key_norm: bool = False  # a LayerNorm on each head's queries and keys (Chameleon, arXiv 2405.09818)
    norm: str = "pre"  # norms before attention and MLP, or "post": after each, inside the residual (Swin's order)
    attention: str = execution("auto")  # an entry of `ATTENTION`
    remat: str = execution("none")  # an entry of `REMAT_POLICIES`
    compute_dtype: str = execution("auto")  # "auto": bfloat16 on accelerators, float32 on CPU

    def __post_init__(self) -> None:
        positive(self, "model.", "width", "layers", "heads", "mlp_width", "vocabulary", "patch_size", "init_std")
        positive(self, "model.", "norm_epsilon", "unet_blocks")
        not_negative(self, "model.", "codebook")
        require(1 <= self.rope_theta < math.inf, f"model.rope_theta must be at least 1, not {self.rope_theta}")
        require(self.width % self.heads == 0, f"model.width {self.width} must be a multiple of heads {self.heads}")
        require(self.head_dim % 2 == 0, f"model.width / heads is {self.head_dim}: rotary embeddings need it even")
        require(min(self.latent_shape) > 0, f"model.latent_shape must be positive, not {list(self.latent_shape)}")
        height, width, _ = self.latent_shape
        require(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            f"model.patch_size {self.patch_size} must divide the latent's {height}×{width}",
        )
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
class DiffusionConfig:
    """The noise (paper, section 2.2): cosine schedule, ε objective."""

    timesteps: int = 1000
    objective: str = "epsilon"  # what is predicted: an entry of `OBJECTIVES`
    schedule: str = "auto"  # an entry of `NOISE_SCHEDULES`; "auto": cosine, and straight of a flow
    image_first_limit: int = 1000  # highest t for an image that precedes its caption; the paper's switch is 500

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

    @property
    def resolved_schedule(self) -> str:
        """`schedule` with its default resolved: an entry of `NOISE_SCHEDULES`."""
        if self.schedule != "auto":
            return self.schedule
        return "straight" if self.objective == "flow" else "cosine"
