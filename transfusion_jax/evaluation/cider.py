"""CIDEr of captions that the model writes for images, by pycocoevalcap (the extra `captions`, and Java)."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from transfusion_jax.config import require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Corpus, Document, Image, Text
from transfusion_jax.evaluation.pictures import listed_sizes
from transfusion_jax.generation.single import write_texts
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.model.transfusion import Params
from transfusion_jax.tasks.families import ModelTask

WRITING = Writing(max_tokens=40)


def run_cider(
    task: ModelTask, params: Params, codec: Codec, corpus: Corpus, prompt: str = "", count: int | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """`cider`, as papers print it: pycocoevalcap's times 100; and how the captions were written.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        corpus: captioned images, where those of one image may be any number of documents.
        prompt: text between the image, which is clean (t = 0), and what is written.
        count: images at the most, None for all.

    Raises:
        ConfigError: there are no captioned images, or the model sees none.
    """
    require(task.config.model.images != "none", "this is a model of text alone: it sees no images")
    found = references(corpus, codec)[:count]
    require(bool(found), "CIDEr needs captioned images among the held-out data")
    asked = (Text(codec.tokenizer.encode(prompt)),) if prompt else ()
    documents = [Document((image, *asked)) for image, _ in found]
    candidates = write_texts(task, params, codec, documents, WRITING)
    captions = [captions for _, captions in found]
    channels = task.config.model.latent_shape[2]
    shapes = [codec.autoencoder.image_shape((*image.latent.shape[:2], channels)) for image, _ in found]
    sizes = listed_sizes(Counter(f"{width}x{height}" for height, width, _ in shapes))
    about = {
        "images": len(found),
        "references": sum(map(len, captions)),
        "cider_resizing": f"none: texts are compared, and the model sees images as they were prepared, {sizes}",
        "prompt": prompt,
        "image_timestep": 0,
        "writing": f"greedy, {WRITING.max_tokens} tokens at most",
        "scorer": f"pycocoevalcap {version('pycocoevalcap')}, CIDEr-D, times 100",
        "first_captions": candidates[:5],
    }
    return {"cider": 100 * cider(captions, candidates)}, about


def references(corpus: Corpus, codec: Codec) -> list[tuple[Image, list[str]]]:
    """The images of a corpus, each once and in order, with all their captions."""
    found: dict[bytes, tuple[Image, list[str]]] = {}
    for document in itertools.chain(*(source for source in corpus.sources if source.pictured)):
        if document.is_pair:
            text, image = document.pair
            found.setdefault(image.hash, (image, []))[1].append(codec.tokenizer.decode(text.tokens))
    return list(found.values())


def cider(captions: Sequence[Sequence[str]], candidates: Sequence[str]) -> float:
    """CIDEr-D (arXiv 1411.5726) of a candidate for each image by its captions, as COCO's evaluation has it.

    The words' rarity is that among these captions: a single image, or few, say nothing.

    Raises:
        ConfigError: there is no Java to tokenise with.
    """
    require_java()
    tokenizer = PTBTokenizer()
    wanted = tokenizer.tokenize({image: [_line(text) for text in texts] for image, texts in enumerate(captions)})
    found = tokenizer.tokenize({image: [_line(text)] for image, text in enumerate(candidates)})
    return float(Cider().compute_score(wanted, found)[0])


def require_java() -> None:
    """Raises ConfigError where there is none."""
    require(
        shutil.which("java") is not None,
        "CIDEr's tokenizer is a Java program, and there is no java: install a runtime, such as Debian's "
        "default-jre-headless",
    )


def _line(text: str) -> dict[str, str]:
    """One line, for the tokenizer counts lines; a full stop, which it drops, in place of nothing."""
    return {"caption": " ".join(text.split()) or "."}
