"""Named ways to draw the images that are judged. Numbers of different protocols are never to be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transfusion_jax.config import Config, SamplingConfig


@dataclass(frozen=True)
class Protocol:
    """How a section of the paper (arXiv 2408.11039) draws; all that is not named is as the defaults have it."""

    guidance: float
    images: int
    steps: int = 250

    def applied(self, config: Config) -> Config:
        """A config that draws so."""
        return replace(
            config,
            sampling=SamplingConfig(steps=self.steps, guidance=self.guidance),
            evaluation=replace(config.evaluation, images=self.images),
        )


PROTOCOLS = {
    "section-4.2": Protocol(guidance=5.0, images=30_000),  # the comparison with Chameleon
    "section-4.3": Protocol(guidance=3.0, images=5_000),  # the ablations
}
