"""The config of the data: its sources, their mixture, and how rows are made of documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from transfusion_jax.config.base import added, execution
from transfusion_jax.errors import from_to, not_negative, one_of, positive, require, whole_number


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
    max_patches: int = added(0)  # patches per row, a static shape, where images differ; 0: of max_images large ones
    max_text: int = 0  # text elements with a loss per row, a static shape; 0: context_length
    image_first: float = 0.2  # share of image-caption pairs whose image comes first (paper, section 4.1)
    caption_dropout: float = 0.1  # share of caption-first pairs that lose their caption, for guidance
    clean_context: float = 0.0  # share of images with text after them that are shown clean and bear no loss
    workers: int = execution(0)  # loader processes; 0 reads in threads of this one

    def __post_init__(self) -> None:
        positive(self, "data.", "context_length", "max_images")
        from_to(self, "data.", 0, 1, "image_first", "caption_dropout", "clean_context")
        require(
            0 <= self.max_text <= self.context_length,
            f"data.max_text must lie between 0 and context_length, {self.context_length}, not {self.max_text}",
        )
        not_negative(self, "data.", "workers", "max_patches")
        for start, weights in self.phases.items():
            require(
                bool(number := whole_number(start)) and start == str(number),
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
