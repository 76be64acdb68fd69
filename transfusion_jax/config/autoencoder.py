"""The config of an autoencoder's training: sizes, images, the losses of the paper (appendix A), common fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transfusion_jax.config.base import Run, execution
from transfusion_jax.errors import not_negative, one_of, positive, require

KINDS = ("kl", "vq")
PAPER = dict(multipliers=(1, 2, 4, 4), encoder_channels=192, latent_channels=8)  # ours for its 86M; see `paper`
SMALLEST_JUDGED = 24  # pixels of a side that the patch discriminator needs to give one number


@dataclass(frozen=True)
class Architecture:
    """Everything that gives an autoencoder its shape; by default the widths of Stable Diffusion's."""

    kind: str  # "kl": a Gaussian over latents; "vq": the nearest entry of a codebook
    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # of `channels`, by resolution; each but the last halves the image
    blocks: int = 2  # residual blocks of a resolution; the decoder has one more
    latent_channels: int = 8  # of a latent; of a codebook's entry
    codebook: int = 0  # entries; 0 for kl
    encoder_channels: int = 0  # what the encoder gives, before its projection; 0: as latent_channels
    groups: int = 32  # of every norm
    attention: tuple[int, ...] = ()  # resolutions, from 0, whose blocks attend, beside the middle
    middle_attention: bool = True
    projections: bool = True  # a 1×1 convolution behind the encoder, and one before the decoder

    def __post_init__(self) -> None:
        one_of("architecture.kind", self.kind, KINDS)
        positive(self, "architecture.", "image_channels", "channels", "blocks", "latent_channels", "groups")
        not_negative(self, "architecture.", "codebook", "encoder_channels")
        require(bool(self.multipliers), "architecture.multipliers must name at least one resolution")
        for multiplier in self.multipliers:
            require(
                multiplier > 0 and self.channels * multiplier % self.groups == 0,
                f"architecture.groups {self.groups} must divide channels × multipliers, "
                f"{self.channels} × {multiplier}",
            )
        require(
            set(self.attention) <= set(range(len(self.multipliers))),
            f"architecture.attention names resolutions 0 to {len(self.multipliers) - 1}, not {self.attention}",
        )
        require(
            (self.codebook > 1) == (self.kind == "vq"),
            f"architecture.codebook is {self.codebook}: a vq has entries, a kl has 0",
        )
        require(
            self.projections or self.encoder_channels in (0, self.latent_channels),
            "architecture.encoder_channels differs from latent_channels: that takes projections",
        )

    @property
    def factor(self) -> int:
        """How many pixels a latent spans, each way."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, from the image's."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def encoded_channels(self) -> int:
        """`encoder_channels` with its default resolved."""
        return self.encoder_channels or self.latent_channels

    @property
    def moments(self) -> int:
        """How many numbers the encoder gives for each channel: mean and log-variance, or one."""
        return 2 if self.kind == "kl" else 1


def paper(kind: str) -> Architecture:
    """The paper's (appendix A): 86M parameters, 256×256 pixels to 32×32 latents of 8 channels, or 16,384 entries.

    It gives no widths. With those of Stable Diffusion's, and the projection to 8 that it speaks of made from 192
    channels, both kinds have 86M.
    """
    return Architecture(kind, codebook=16_384 if kind == "vq" else 0, **PAPER)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ImagesConfig:
    """Which images are read: the pixels of prepared folders, each image as often as any other."""

    sources: Mapping[str, str] = execution(None)  # names and prepared folders
    flip: bool = False  # every other image is turned left to right, by (seed, row)
    workers: int = execution(0)  # loader processes; 0 reads in threads of this one

    def __post_init__(self) -> None:
        require(bool(self.sources), "data.sources is missing: name a folder that `transfusion prepare` wrote")
        not_negative(self, "data.", "workers")


@dataclass(frozen=True)
class Losses:
    """Weights of the loss's terms; 0 leaves a term out, with all that it needs."""

    l1: float = 1.0  # mean over pixels
    l2: float = 0.0  # squared error, mean over pixels: it learns small things on plain grounds sooner
    lpips: float = 1.0  # perceptual distance by VGG16's features (arXiv 1801.03924)
    gan: float = 0.5  # of a patch discriminator, hinge loss
    gan_from: int = 50_000  # the step from which on it weighs
    identity: float = 0.2  # distance of MoCo-v2's features (arXiv 2003.04297)
    kl: float = 1e-6  # to the standard normal, mean over latent elements; of kl alone
    codebook: float = 1.0  # squared distance of entries to vectors; of vq alone
    commitment: float = 0.25  # β: of vectors to entries, in the codebook's term
    coverage: float = 0.0  # squared distance of each entry to the vector of the batch that is nearest to it
    lpips_weights: tuple[str, ...] = execution(())  # files with VGG16's weights and LPIPS's linear ones
    identity_weights: tuple[str, ...] = execution(())  # a file with ResNet-50's weights

    def __post_init__(self) -> None:
        weights = ("l1", "l2", "lpips", "gan", "identity", "kl", "codebook", "commitment", "coverage")
        not_negative(self, "losses.", *weights, "gan_from")
        for term in ("lpips", "identity"):
            require(
                not getattr(self, term) or bool(getattr(self, f"{term}_weights")),
                f"losses.{term} needs a network's weights: name their files in losses.{term}_weights, or set "
                f"losses.{term} to 0",
            )


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun(Run):
    """Everything that an autoencoder's training is made of."""

    architecture: Architecture
    image_size: int  # pixels of a side
    data: ImagesConfig
    losses: Losses = field(default_factory=Losses)
    held_out_images: int = execution(64)  # that are looked at in every evaluation

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "image_size", "held_out_images")
        require(
            not self.losses.coverage or self.accumulation == 1,
            "losses.coverage looks at all images of a batch together: accumulation must be 1 with it",
        )
        factor = self.architecture.factor
        require(
            self.image_size % factor == 0,
            f"image_size {self.image_size} must be a multiple of {factor}, which the architecture divides it by",
        )
        require(
            not self.losses.gan or self.image_size >= SMALLEST_JUDGED,
            f"losses.gan needs images of {SMALLEST_JUDGED} pixels or more, and image_size is {self.image_size}: "
            "set losses.gan to 0",
        )

    @property
    def workers(self) -> int:
        """Loader processes."""
        return self.data.workers

    @property
    def folders(self) -> tuple[str, ...]:
        """The prepared data that is read."""
        return tuple(self.data.sources.values())
