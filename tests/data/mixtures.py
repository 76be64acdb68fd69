"""Corpora of given or random sizes, with their weights. An image takes four elements, six with its marks."""

import dataclasses

import numpy as np

from helpers import special, tiny_config
from transfusion_jax.config import DataConfig, SourceConfig
from transfusion_jax.data.document_rows import DocumentRows, make_rows
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.data.packing.packing import Room
from transfusion_jax.data.packing.plan import VERSION

IMAGE = Image(np.zeros((4, 4, 1), np.float32))


def random_mixture(seed, plain=0):
    """Up to three sources with images and from `plain` to three without, and the data config to plan them with."""
    random = np.random.default_rng([seed, 99])
    context = int(random.choice([40, 64, 200]))
    pictured = int(random.integers(0, 4))
    plain_texts = int(random.integers(max(plain, pictured == 0), 4))
    sources: list[tuple[Source, float]] = []
    for kind in ["images"] * pictured + ["texts"] * plain_texts:
        count, weight = random.integers(1, 100), random.uniform(0.3, 3)
        name = f"{kind} {len(sources)}"
        if kind == "images":
            found = [interleaved(random, context // 4) for _ in range(count)]
            sources.append(listed(name, weight, found))
        else:
            longest = int(random.choice([3, context, 3 * context]))
            sources.append(texts(name, weight, random.integers(0, longest, count)))
    max_text = int(random.choice([0, context, context * 3 // 4]))
    random.shuffle(sources)
    return *mixture(sources), DataConfig(context_length=context, max_images=context, max_text=max_text)


def interleaved(random, longest):
    """A document of one image or a few, with texts around them, of `longest` elements at most."""
    segments = [IMAGE]
    room = longest - 7
    while room > 0 and random.random() < 0.7:
        segment, size = (
            (IMAGE, 6) if random.random() < 0.2 and room >= 6 else text(random.integers(0, room, endpoint=True))
        )
        segments.insert(random.integers(0, len(segments), endpoint=True), segment)
        room -= size
    return Document(tuple(segments))


def pairs(name, weight, lengths):
    return listed(name, weight, [Document((text(n)[0], IMAGE)) for n in lengths])


def texts(name, weight, lengths):
    return listed(name, weight, [Document((text(n)[0],)) for n in lengths])


def listed(name, weight, documents):
    return Source(name, DocumentList(documents)), float(weight)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Documents of which only the sizes are known."""

    text_lengths: np.ndarray
    images: np.ndarray


def sized(name, lengths, images):
    return Source(name, Sizes(lengths, np.full(len(lengths), images, np.uint8)))


def room_of(data, patches=4):
    """A row's room, where every image has this many patches."""
    return Room(data.context_length, data.max_images, data.text_capacity, one_size=patches)


def mixture(entries):
    """A corpus and its weights."""
    return Corpus(tuple(source for source, _ in entries)), {source.name: weight for source, weight in entries}


def rows_of(cache, corpus, weights, data, version=VERSION, phases=None, seed=0, run=None) -> DocumentRows:
    """The stream of a mixture, whose rows can be planned but, as images are of another size, not be made."""
    sources = {name: SourceConfig("synthetic:text", weight) for name, weight in weights.items()}
    data = dataclasses.replace(data, sources=sources, phases=phases or {})
    config = dataclasses.replace(tiny_config(data__max_images=12, seed=seed), data=data)
    named = {source.name: source for source in corpus.sources}
    corpus = Corpus(tuple(named[name] for name in data.source_names))
    return make_rows(corpus, config, special(), lambda line: None, cache, version, run)


def text(length):
    return Text(np.zeros(int(length), np.int32)), int(length)
