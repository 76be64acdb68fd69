"""Images as judges see them, 0 … 255: captioned ones of the data, and those that the model draws for captions."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image as Pillow

from transfusion_jax.config import Config
from transfusion_jax.data.datasets import Codec, Data, plain_statistics
from transfusion_jax.data.documents import Corpus, Document, Documents, Text
from transfusion_jax.data.packing.shuffle import shuffled
from transfusion_jax.data.store.dataset import PreparedDocuments
from transfusion_jax.generation.interleaved import Request, generate, rows_at_a_time
from transfusion_jax.generation.png import to_pixels
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask


@dataclass(frozen=True)
class Picture:
    """A captioned image `[H, W, 3]` uint8, as it was prepared: no autoencoder has seen it."""

    image: np.ndarray
    caption: Text


@dataclass(frozen=True)
class Drawn:
    """Some captions, their own images, and those drawn for them, `[n, H, W, 3]` uint8."""

    captions: list[str]
    real: np.ndarray
    drawn: np.ndarray


def drawn_for_held_out(task: ModelTask, params: Params, data: Data, count: int) -> Iterator[Drawn]:
    """Images for the captions of `count` held-out ones at most, part by part, as the config samples."""
    seed, done = task.config.seed, 0
    shown = itertools.islice(captioned_pictures(data.held_out, task.config, data.codec, seed), count)
    while part := list(itertools.islice(shown, rows_at_a_time(task.config))):
        captions = [picture.caption for picture in part]
        words = [data.codec.tokenizer.decode(caption.tokens) for caption in captions]
        drawn = draw_captions(task, params, data.codec, captions, seed, done)
        yield Drawn(words, np.stack([picture.image for picture in part]), drawn)
        done += len(part)


def captioned_pictures(corpus: Corpus, config: Config, codec: Codec, seed: int) -> Iterator[Picture]:
    """Every captioned image of a corpus once, with one of its captions, in an order drawn from the seed.

    Those that do not fit the context are left out, as in training.
    """
    patches, context = config.model.patches, config.data.context_length
    corpus = Corpus(tuple(source for source in corpus.sources if source.pictured))
    as_pixels = [_as_pixels(source.documents) for source in corpus.sources]
    seen: set[bytes] = set()
    for number in range(len(corpus)):
        source, place = corpus.find(int(shuffled(number, len(corpus), seed)))
        if not as_pixels[source].images[place]:
            continue
        document = as_pixels[source][place]
        if not document.is_pair or document.length(patches) > context:
            continue
        text, image = document.pair
        name = hashlib.sha256(image.latent.tobytes()).digest()
        if name not in seen:
            seen.add(name)
            prepared = isinstance(as_pixels[source], PreparedDocuments)
            pixels = image.latent if prepared else codec.images(image.latent[None])[0]
            yield Picture(to_pixels(pixels[None])[0], text)


def draw_captions(
    task: ModelTask, params: Params, codec: Codec, captions: Sequence[Text], seed: int, first: int = 0
) -> np.ndarray:
    """An image for each caption, `[n, H, W, 3]` uint8, as the config samples; `first` counts those drawn before."""
    requests = [Request(Document((text,)), "image", seed, number) for number, text in enumerate(captions, first)]
    return to_pixels(np.stack([sample.images[0] for sample in generate(task, params, codec, requests)]))


def resized(image: np.ndarray, size: int, how: Pillow.Resampling) -> np.ndarray:
    """An image `[H, W, 3]`, 0 … 255, as `[size, size, 3]` float32, its channels resized by Pillow without rounding.

    With `BICUBIC` and 299 these are the rules of clean-fid (arXiv 2104.11222): antialiased, cut to 0 … 255.
    """
    channels = [Pillow.fromarray(np.ascontiguousarray(c, np.float32)) for c in np.moveaxis(image, -1, 0)]
    parts = [np.asarray(channel.resize((size, size), how)) for channel in channels]
    return np.clip(np.stack(parts, -1), 0, 255)


def _as_pixels(documents: Documents) -> Documents:
    """The same with images as they were prepared, in [−1, 1]; what is not prepared stays as it is."""
    if not isinstance(documents, PreparedDocuments):
        return documents
    channels = documents.prepared.encoding("pixels")["shape"][-1]
    return replace(documents, encoding="pixels", statistics=plain_statistics(channels)).make_ready()
