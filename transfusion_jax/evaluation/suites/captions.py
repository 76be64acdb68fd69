"""How likely the captions of held-out images are, to the model that sees the image, and without it."""

from __future__ import annotations

import jax
import numpy as np

from transfusion_jax.config import Config, ConfigError
from transfusion_jax.data.datasets import Data
from transfusion_jax.data.documents import Document, Image
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.generation.scoring import score_continuations
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """`caption_loss`, in nats per token of the caption, behind its image, clean; `caption_loss_without_image`.

    Nothing is drawn or random, and EOS does not count, so that families that share documents and a tokenizer can be
    compared. The captions are those of `evaluation.images` held-out images.

    Raises:
        ConfigError: no captioned images are held out, or the model sees none.
    """
    del key
    found = captioned(task.config, data)
    captions = [caption for _, caption in found]
    tokens = sum(map(len, captions))

    def loss(before: list[Document]) -> float:
        return (
            -sum(s.log_likelihood for s in score_continuations(task, params, data.codec, before, captions)) / tokens
        )

    return {
        "caption_loss": loss([Document((image,)) for image, _ in found]),
        "caption_loss_without_image": loss([Document(())] * len(found)),
    }


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where no captioned images are held out, or the model sees none."""
    captioned(config, data)


def captioned(config: Config, data: Data) -> list[tuple[Image, np.ndarray]]:
    """Held-out images and the tokens `[n]` of their captions, `evaluation.images` at most; short captions first.

    Raises:
        ConfigError: there are none.
    """
    if config.model.images == "none":
        raise ConfigError("the suite 'captions' shows images, and this is a model of text alone")
    found = [
        document.pair
        for document in data.held_out.pairs(config.evaluation.images)
        if document.text_length and document.length(config.model) <= config.data.context_length
    ]
    if not found:
        raise ConfigError("the suite 'captions' needs held-out images with captions: prepare some with --held-out")
    pairs = [(image, caption.tokens) for caption, image in found]
    return sorted(pairs, key=lambda pair: len(pair[1]))  # so that rows scored together are about as long


SUITE = Suite(run, "images", check=check)
