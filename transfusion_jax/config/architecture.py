"""The sizes of an image autoencoder: a convolutional encoder and decoder as VQGAN's (arXiv 2012.09841)."""

from __future__ import annotations

from dataclasses import dataclass

from transfusion_jax.errors import not_negative, one_of, positive, require

KINDS = ("kl", "vq")
PAPER = dict(multipliers=(1, 2, 4, 4), encoder_channels=192, latent_channels=8)  # ours for its 86M; see `paper`


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
