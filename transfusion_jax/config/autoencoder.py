"""The config of an autoencoder's training: images in, the paper's losses (appendix A), the loop's common fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transfusion_jax.config.architecture import Architecture
from transfusion_jax.config.base import Run, execution
from transfusion_jax.errors import not_negative, positive, require

SMALLEST_JUDGED = 24  # pixels of a side that the patch discriminator needs to give one number


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
