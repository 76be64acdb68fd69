"""From the config to documents: tokenised texts, normalised latents, held-out documents kept apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.autoencoder import Autoencoder
from transfusion_jax.config import Config, require
from transfusion_jax.data import digits, prose, tokenizer
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.data.statistics import LatentStatistics
from transfusion_jax.data.tokenizer import SpecialTokens, Tokenizer


@dataclass(frozen=True)
class Codec:
    """What turns texts and images into what the model sees, and back; a workdir keeps all of it."""

    tokenizer: Tokenizer
    special: SpecialTokens
    autoencoder: Autoencoder
    statistics: LatentStatistics

    def images(self, latents: np.ndarray) -> np.ndarray:
        """Images `[B, H, W, channels]` in [−1, 1] of normalised latents."""
        return np.asarray(self.autoencoder.decode(self.statistics.restore(latents)))

    def latents(self, images: np.ndarray) -> np.ndarray:
        """Normalised latents of images `[B, H, W, channels]` in [−1, 1]."""
        mean = self.autoencoder.encode(images).mean
        return self.statistics.normalise(np.asarray(mean))

    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The range of normalised latents, where the autoencoder limits it."""
        if self.autoencoder.bounds is None:
            return None
        low, high = (
            self.statistics.normalise(np.full_like(self.statistics.mean, b)) for b in self.autoencoder.bounds
        )
        return low, high


@dataclass(frozen=True)
class Data:
    """Documents to train on, documents kept out, and how they were coded."""

    train: Corpus
    held_out: Corpus
    codec: Codec


def load(config: Config) -> Data:
    """Reads every source that the config names.

    Raises:
        ConfigError: no source, or one that does not fit the model.
    """
    require(
        bool(config.data.sources),
        f"config {config.name!r} names no data: set --config.data.sources to what to train on, "
        "or start from configs/digits.py, which brings its own",
    )
    tokens = tokenizer.load(config.data.tokenizer)
    require(
        tokens.size == config.model.vocabulary,
        f"tokenizer {tokens.name!r} has {tokens.size} entries, and model.vocabulary is {config.model.vocabulary}",
    )
    coder = autoencoders.load(config.data.autoencoder)
    pairs = {
        name: digits.load(config.data.held_out, config.seed)
        for name, source in config.data.sources.items()
        if source.kind == "digits"
    }
    statistics = _statistics([train.images for train, _ in pairs.values()], coder, config)
    codec = Codec(tokens, SpecialTokens.of(tokens), coder, statistics)
    kinds = {source.kind for source in config.data.sources.values()}
    texts = prose.load(config.data.held_out) if "prose" in kinds else ([], [])
    splits = []
    for part in (0, 1):  # training, held out
        sources = []
        for name in config.data.source_names:
            documents = _captioned(pairs[name][part], codec) if name in pairs else _prose(texts[part], codec)
            sources.append(Source(name, DocumentList(documents)))
        splits.append(Corpus(tuple(sources)))
    train, held_out = splits
    return Data(train, held_out, codec)


def _statistics(images: list[np.ndarray], coder: Autoencoder, config: Config) -> LatentStatistics:
    channels = config.model.latent_shape[2]
    if not images:
        return LatentStatistics(np.zeros(channels), np.ones(channels))
    latents = np.asarray(coder.encode(np.concatenate(images)).mean, np.float64)
    require(
        latents.shape[1:] == config.model.latent_shape,
        f"the images' latents are {latents.shape[1:]}, and model.latent_shape is {config.model.latent_shape}",
    )
    statistics = LatentStatistics(latents.mean((0, 1, 2)), latents.std((0, 1, 2)))
    require(
        bool(np.all(statistics.std > 0)), "a channel of the images' latents is constant: nothing to normalise by"
    )
    return statistics


def _captioned(pictures: digits.Digits, codec: Codec) -> list[Document]:
    latents = codec.latents(pictures.images)
    return [
        Document((Text(codec.tokenizer.encode(caption)), Image(latent)))
        for latent, label in zip(latents, pictures.labels, strict=True)
        for caption in digits.captions(int(label))
    ]


def _prose(texts: list[str], codec: Codec) -> list[Document]:
    return [Document((Text(codec.tokenizer.encode(text)),)) for text in texts]
