"""Whether drawn digits are the ones asked for, and whether captions name the digit that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from transfusion_jax.config import Config, ConfigError, require
from transfusion_jax.data.datasets import Codec, Data
from transfusion_jax.data.documents import Corpus
from transfusion_jax.data.readers import digits
from transfusion_jax.evaluation.pictures import own_grid
from transfusion_jax.evaluation.suite import Suite
from transfusion_jax.generation.single import caption_images, draw_images
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask


def run(task: ModelTask, params: Params, data: Data, key: jax.Array) -> dict[str, float]:
    """Accuracies of the judge, of drawing (with the config's guidance and without), and of captioning.

    The judge is a support vector machine fitted on the real digits that the model was trained on.

    Raises:
        ConfigError: see `check`.
    """
    config = task.config
    require_images(config)
    seen, unseen = (captioned_digits(corpus, data.codec) for corpus in (data.train, data.held_out))
    judge = fit_judge(seen)
    asked = np.arange(config.evaluation.images) % len(digits.NAMES)
    captions = digit_captions(len(asked))
    seed = int(jax.random.bits(key, dtype=np.uint32))
    grids = [own_grid(unseen.images.shape[1:], config, data.codec)] * len(asked)

    def accuracy(guidance: float) -> float:
        sampling = config.sampling_with(guidance=guidance)
        drawn = np.stack(draw_images(task, params, data.codec, captions, seed, sampling, grids))
        return float(np.mean(judge.predict(digit_features(drawn)) == asked))

    written = caption_images(task, params, data.codec, unseen.images)
    return {
        "judge_accuracy": float(judge.score(digit_features(unseen.images), unseen.labels)),
        "generation_accuracy": accuracy(config.sampling.guidance),
        "generation_accuracy_unguided": accuracy(1.0),
        "caption_accuracy": float(
            np.mean([digits.digit_in(c) == d for c, d in zip(written, unseen.labels, strict=True)])
        ),
    }


def check(config: Config, data: Data) -> None:
    """Raises ConfigError where the data hold no captioned digits, the model draws none, or there is no judge."""
    require_images(config)
    for corpus in (data.train, data.held_out):
        captioned_digits(corpus, data.codec)
    new_judge()


def require_images(config: Config) -> None:
    """Raises ConfigError where the model draws none."""
    require(config.model.images != "none", "the suite 'digits' draws, and this is a model of text alone")


def digit_captions(number: int) -> list[str]:
    """So many captions, the digits and the wordings by turns."""
    count = len(digits.NAMES)
    return [digits.captions(i % count)[i // count % len(digits.WORDINGS)] for i in range(number)]


@dataclass(frozen=True)
class Pictures:
    """Images `[n, 8, 8, 1]` in [−1, 1] and the digits that they show, `[n]`."""

    images: np.ndarray
    labels: np.ndarray


def captioned_digits(corpus: Corpus, codec: Codec) -> Pictures:
    """The captioned digits of a corpus, each once.

    Raises:
        ConfigError: there are none, or they differ in shape.
    """
    found: dict[bytes, tuple[np.ndarray, int]] = {}
    for source in corpus.sources:
        for document in source if source.pictured else ():
            if document.is_pair:
                text, image = document.pair
                digit = digits.digit_in(codec.tokenizer.decode(text.tokens))
                if digit is not None:
                    found[image.hash] = (image.latent, digit)
    if not found:
        raise ConfigError("the suite 'digits' needs captioned digits among the data: transfusion prepare digits")
    latents, labels = zip(*found.values(), strict=True)
    require(
        len({latent.shape for latent in latents}) == 1,
        "the suite 'digits' is for runs on `transfusion prepare digits` alone: here images of several shapes have "
        "captions that name a digit",
    )
    return Pictures(codec.images(np.stack(latents)), np.array(labels))


def fit_judge(seen: Pictures) -> Any:
    """A support vector machine that tells digits apart.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    return new_judge().fit(digit_features(seen.images), seen.labels)


def new_judge() -> Any:
    """One that has learnt nothing.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.svm import SVC
    except ModuleNotFoundError as error:
        message = "the suite 'digits' needs scikit-learn: pip install 'transfusion-jax[digits]'"
        raise ConfigError(message) from error
    return SVC(gamma=0.001)


def digit_features(images: np.ndarray) -> np.ndarray:
    """Images `[S, 8, 8, 1]` in [−1, 1] as scikit-learn's pixel values, `[S, 64]` in 0 … 16."""
    return (images.reshape(len(images), -1) + 1) / 2 * digits.LARGEST


SUITE = Suite(
    run, "images", True, lambda config, _: digit_captions(config.evaluation.images), check, native_version=2
)
