"""CLIP score (arXiv 2104.08718): how near drawn images are to their captions (the extra `clip`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from transformers import AutoTokenizer, CLIPModel

from transfusion_jax.config import require
from transfusion_jax.evaluation.pictures import Drawn, listed_sizes, sizes_of
from transfusion_jax.storage.paths import sha256

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images
WEIGHTS = "model.safetensors"


@dataclass
class ClipScore:
    """Gathers 100 · cos of drawn images and their captions, by a CLIP that transformers saved in a folder."""

    folder: Path
    _scores: list[np.ndarray] = field(default_factory=list)
    _sizes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        require((self.folder / WEIGHTS).is_file(), f"{self.folder} holds no {WEIGHTS}: name a CLIP's folder")
        self._model: Any = CLIPModel.from_pretrained(self.folder, local_files_only=True).eval()
        self._texts: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def see(self, part: Drawn) -> None:
        """More images."""
        self._sizes += sizes_of(part.drawn)
        self._scores.append(self.scores(part.captions, part.drawn))

    def scores(self, captions: Sequence[str], images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """100 · cos of captions, cut to what CLIP reads, and images `[H, W, 3]` uint8, of any shapes, `[n]`."""
        longest = self._model.config.text_config.max_position_embeddings
        texts = self._texts(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        pixels = np.stack([middle_square(image, self._size) for image in images])
        scaled = ((pixels / 255 - MEAN) / STD).astype(np.float32)
        with torch.no_grad():
            found = self._model(**texts, pixel_values=torch.from_numpy(np.moveaxis(scaled, -1, 1).copy()))
        cosines: np.ndarray = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).numpy()
        return 100 * cosines

    def metrics(self) -> dict[str, float]:
        """`clip_score`: the mean, not below 0."""
        return {"clip_score": max(float(np.mean(np.concatenate(self._scores))), 0.0)}

    def about(self) -> dict[str, str]:
        """Which CLIP it is, and what became of the images."""
        weights, size = self.folder / WEIGHTS, self._size
        return {
            "clip": f"{self.folder.name}, {WEIGHTS} sha256 {sha256(weights)}",
            "clip_resizing": f"from {listed_sizes(self._sizes)}, as the captions' own images: the shorter side to "
            f"{size} by Pillow's bicubic, then the middle {size}x{size} (transformers' processor)",
        }

    @property
    def _size(self) -> int:
        """Pixels of a side of what CLIP sees."""
        return int(self._model.config.vision_config.image_size)


def middle_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle `[size, size, 3]` of an image `[H, W, 3]` uint8 whose shorter side is resized to that.

    The processor of CLIP in transformers makes the same of it, to the pixel.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    high, wide = int(size * height / short), int(size * width / short)
    larger = np.asarray(Pillow.fromarray(image).resize((wide, high), Pillow.Resampling.BICUBIC))
    top, left = (high - size) // 2, (wide - size) // 2
    return larger[top : top + size, left : left + size]
