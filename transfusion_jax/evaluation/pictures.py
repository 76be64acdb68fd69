"""Images as judges see them, 0 … 255: captioned ones of the data, and those that the model draws for captions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image as Pillow

from transfusion_jax.config import Config
from transfusion_jax.data.datasets import Codec, Data, plain_statistics
from transfusion_jax.data.documents import Corpus, Document, Documents, Text, lengths_of
from transfusion_jax.data.packing.shuffle import shuffled
from transfusion_jax.data.store.dataset import PreparedDocuments
from transfusion_jax.generation.interleaved import Request, generate, rows_at_a_time
from transfusion_jax.generation.png import to_pixels
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask

NAMED = 3  # sizes of images that are named, of many


@dataclass(frozen=True)
class Picture:
    """A captioned image `[H, W, 3]` uint8, as it was prepared: no autoencoder has seen it."""

    image: np.ndarray
    caption: Text


@dataclass(frozen=True)
class Drawn:
    """Some captions, their own images `[H, W, 3]`, and those drawn for them, each in the other's shape, uint8."""

    captions: list[str]
    real: list[np.ndarray]
    drawn: list[np.ndarray]


def drawn_for_held_out(task: ModelTask, params: Params, data: Data, count: int) -> Iterator[Drawn]:
    """Images for the captions of `count` held-out ones at most, part by part, as the config samples."""
    seed, done = task.config.seed, 0
    shown = itertools.islice(captioned_pictures(data.held_out, task.config, data.codec, seed), count)
    while part := list(itertools.islice(shown, rows_at_a_time(task.config))):
        words = [data.codec.tokenizer.decode(picture.caption.tokens) for picture in part]
        drawn = draw_for_pictures(task, params, data.codec, part, seed, done)
        yield Drawn(words, [picture.image for picture in part], drawn)
        done += len(part)


def captioned_pictures(corpus: Corpus, config: Config, codec: Codec, seed: int) -> Iterator[Picture]:
    """Every captioned image of a corpus once, with one of its captions, in an order drawn from the seed.

    Those that do not fit the context are left out, as in training.
    """
    context = config.data.context_length
    corpus = Corpus(tuple(source for source in corpus.sources if source.pictured))
    as_pixels = [_as_pixels(source.documents) for source in corpus.sources]
    seen: set[bytes] = set()
    for number in range(len(corpus)):
        source, place = corpus.find(int(shuffled(number, len(corpus), seed)))
        if not as_pixels[source].images[place]:
            continue
        document = as_pixels[source][place]
        if not document.is_pair or lengths_of(corpus.sources[source].documents, place, config.model)[0] > context:
            continue
        text, image = document.pair
        if (name := image.hash) not in seen:
            seen.add(name)
            prepared = isinstance(as_pixels[source], PreparedDocuments)
            pixels = image.latent if prepared else codec.images(image.latent[None])[0]
            yield Picture(to_pixels(pixels[None])[0], text)


def draw_for_pictures(
    task: ModelTask, params: Params, codec: Codec, pictures: Sequence[Picture], seed: int, first: int = 0
) -> list[np.ndarray]:
    """An image for each picture's caption, in the picture's own shape; see `draw_captions`."""
    captions = [picture.caption for picture in pictures]
    grids = [own_grid(picture.image.shape, task.config, codec) for picture in pictures]
    return draw_captions(task, params, codec, captions, seed, first, grids)


def own_grid(shape: tuple[int, ...], config: Config, codec: Codec) -> tuple[int, int] | None:
    """Rows and columns of patches of an image of this shape in pixels; None where all images have one size.

    Raises:
        ConfigError: the model draws no images of this shape.
    """
    if not config.model.max_side:
        return None
    factor = codec.autoencoder.image_shape(config.model.latent_shape)[0] // config.model.latent_shape[0]
    return config.model.grid(shape[0] // factor, shape[1] // factor)


def draw_captions(
    task: ModelTask,
    params: Params,
    codec: Codec,
    captions: Sequence[Text],
    seed: int,
    first: int = 0,
    grids: Sequence[tuple[int, int] | None] | None = None,
) -> list[np.ndarray]:
    """An image for each caption, `[H, W, 3]` uint8, as the config samples.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        captions: what is to be drawn.
        seed: of the noise.
        first: how many were drawn before, with the same seed.
        grids: rows and columns of patches of each; None: see `Request.grid`.
    """
    asked = zip(captions, grids or [None] * len(captions), strict=True)
    requests = [
        Request(Document((text,)), "image", seed, number, grid) for number, (text, grid) in enumerate(asked, first)
    ]
    return [to_pixels(sample.images[0][None])[0] for sample in generate(task, params, codec, requests)]


def sizes_of(images: Iterable[np.ndarray]) -> Counter[str]:
    """How many images `[H, W, 3]` have which size in pixels, width by height."""
    return Counter(f"{image.shape[1]}x{image.shape[0]}" for image in images)


def listed_sizes(sizes: Counter[str]) -> str:
    """Sizes, the commonest first; of many, three and how many more there are."""
    named = [size for size, _ in sizes.most_common()]
    if len(named) > NAMED + 1:
        named[NAMED:] = [f"{len(named) - NAMED} other sizes"]
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))


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
