"""CLIP score (arXiv 2104.08718): how near drawn images are to their captions (the extra `clip`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from transformers import AutoTokenizer, CLIPModel

from transfusion_jax.config import require
from transfusion_jax.evaluation.pictures import Drawn
from transfusion_jax.storage.paths import sha256

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images
WEIGHTS = "model.safetensors"


@dataclass
class ClipScore:
    """Gathers 100 · cos of drawn images and their captions, by a CLIP that transformers saved in a folder."""

    folder: Path
    _scores: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        require((self.folder / WEIGHTS).is_file(), f"{self.folder} holds no {WEIGHTS}: name a CLIP's folder")
        self._model: Any = CLIPModel.from_pretrained(self.folder, local_files_only=True).eval()
        self._texts: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def see(self, part: Drawn) -> None:
        """More images."""
        self._scores.append(self.scores(part.captions, part.drawn))

    def scores(self, captions: Sequence[str], images: np.ndarray) -> np.ndarray:
        """100 · cos of captions, cut to what CLIP reads, and images `[n, H, H, 3]` uint8, `[n]`."""
        longest = self._model.config.text_config.max_position_embeddings
        texts = self._texts(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        size = self._model.config.vision_config.image_size
        pixels = [
            np.asarray(Pillow.fromarray(image).resize((size, size), Pillow.Resampling.BICUBIC)) for image in images
        ]
        scaled = ((np.stack(pixels) / 255 - MEAN) / STD).astype(np.float32)
        with torch.no_grad():
            found = self._model(**texts, pixel_values=torch.from_numpy(np.moveaxis(scaled, -1, 1).copy()))
        cosines: np.ndarray = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).numpy()
        return 100 * cosines

    def metrics(self) -> dict[str, float]:
        """`clip_score`: the mean, not below 0."""
        return {"clip_score": max(float(np.mean(np.concatenate(self._scores))), 0.0)}

    def about(self) -> dict[str, str]:
        """Which CLIP it is."""
        weights = self.folder / WEIGHTS
        return {"clip": f"{self.folder.name}, {WEIGHTS} sha256 {sha256(weights)}"}
