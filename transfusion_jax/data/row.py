"""From pieces of documents to one row of a `Batch`: elements, targets, spans and images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from transfusion_jax.config import Config, ModelConfig, require
from transfusion_jax.data.batch import TEXT, Batch, latent_shape
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.tokenizer import SpecialTokens

CONTEXT = 1  # tells the draws of clean images from the others of a row


@dataclass(frozen=True)
class Piece:
    """A stretch of elements of one document, placed in a row."""

    document: Document
    start: int
    length: int
    source: int


@dataclass(frozen=True)
class Layout:
    """A document as elements, one entry each; it ends before EOS, which is only a target."""

    tokens: np.ndarray  # [n]; PAD for patches of a latent
    targets: np.ndarray  # [n]
    weight: np.ndarray  # [n] float32
    image: np.ndarray  # [n], which of the document's images, −1 for text
    patch: np.ndarray  # [n]
    span_end: np.ndarray  # [n], counted from the document's first element


def assemble(row: int, pieces: Iterable[Piece], config: Config, special: SpecialTokens) -> Batch:
    """One row: a `Batch` whose arrays lack the leading B.

    Which caption comes first, which is dropped and which image is shown clean is drawn from (seed, row) alone.

    Args:
        row: the row's number in the stream.
        pieces: what stands in it, in order; no longer together than the context.
        config: names the context length, the caps, the order, the dropout and the share of clean images.
        special: the special tokens.
    """
    random = np.random.default_rng([config.seed, row])
    of_context = np.random.default_rng([config.seed, row, CONTEXT])  # so that orders stay what they are without
    result = empty_row(row, config.data.context_length, config.data.max_images, config, special)
    at = slot = 0
    for piece in pieces:
        document, dropped = arrange(piece.document, config, random)
        layout = lay_out(document, config.model, special)
        if dropped:
            in_image = (layout.image != TEXT) | (layout.tokens == special.boi)
            layout = replace(layout, weight=layout.weight * in_image)
        place_piece(result, at, slot, layout, piece, show_clean(document, config, of_context), config)
        at += piece.length
        slot += document.images
    return result


def empty_row(row: int, length: int, images: int, config: Config, special: SpecialTokens) -> Batch:
    """A row of padding, `length` elements with room for `images`: each element attends itself alone."""
    index = np.arange(length, dtype=np.int32)
    zeros = np.zeros(length, np.int32)
    return Batch(
        tokens=np.full(length, special.pad, np.int32),
        targets=np.full(length, special.pad, np.int32),
        token_weight=np.zeros(length, np.float32),
        positions=zeros.copy(),
        span_start=index,
        span_end=index + 1,
        image_slot=np.full(length, TEXT, np.int32),
        patch_index=zeros.copy(),
        source=np.full(length, -1, np.int32),
        latents=np.zeros((images, *latent_shape(config.model)), np.float32),
        image_weight=np.zeros(images, np.float32),
        timestep_limit=np.zeros(images, np.int32),
        image_first=np.zeros(images, np.bool_),
        image_source=np.full(images, -1, np.int32),
        row=np.int32(row),
    )


def arrange(document: Document, config: Config, random: np.random.Generator) -> tuple[Document, bool]:
    """A caption-image pair in the order drawn for it, and whether its caption was dropped.

    Other documents keep their order. Only caption-first pairs lose their caption: what is left, `BOS BOI`, is
    guidance's other branch. Such a pair bears no text loss, for it would teach that images have no captions; codes
    bear theirs.
    """
    if not document.is_pair:
        return document, False
    image_first, dropped = random.random(2) < (config.data.image_first, config.data.caption_dropout)
    text, image = sorted(document.segments, key=lambda s: isinstance(s, Image))
    if image_first:
        return Document((image, text)), False
    return Document((image,) if dropped else (text, image)), bool(dropped)


def show_clean(document: Document, config: Config, random: np.random.Generator) -> Document:
    """The document with some of the images that text follows shown clean (t = 0): those bear no image loss.

    In training the text after an image sees it noised, in use it sees it clean; this closes the gap for the text at
    the cost of some images' losses.
    """
    if not config.data.clean_context or not document.images:
        return document
    segments, drawn = list(document.segments), random.random(len(document.segments))
    last = max((i for i, segment in enumerate(segments) if isinstance(segment, Text)), default=-1)
    for i, segment in enumerate(segments[: last + 1]):
        if isinstance(segment, Image) and drawn[i] < config.data.clean_context:
            segments[i] = replace(segment, loss=False)
    return Document(tuple(segments))


def lay_out(document: Document, model: ModelConfig, special: SpecialTokens) -> Layout:
    """A whole document as elements: `BOS text … BOI patches EOI …`, with EOS as the last target.

    Every text element predicts the element after it, but for BOI, whose successor is a patch (paper, footnote 8),
    and but for what belongs to a segment that bears no loss. EOS belongs to the last segment. Codes of images are
    tokens like others: BOI predicts the first, each the next, and the last one EOI. A patch attends to all of its
    image, or, where images are causal, to itself and what stands before it.
    """
    patches, codes = model.patches, model.images == "codes"
    tokens, image = [np.array([special.bos])], [np.array([TEXT])]
    learnt = []  # of each element after BOS, and of EOS
    seen = 0
    for segment in document.segments:
        if isinstance(segment, Text):
            tokens.append(segment.tokens)
            image.append(np.full(len(segment.tokens), TEXT))
        else:
            values = model.first_code + _codes(segment, model) if codes else special.pad
            tokens.append(_between(special.boi, values, patches, special.eoi))
            image.append(_between(TEXT, seen, patches, TEXT))
            seen += 1
        learnt.append(np.full(len(tokens[-1]), segment.loss))
    learnt.append(np.array([all(segment.loss for segment in document.segments[-1:])]))
    token, which = np.concatenate(tokens), np.concatenate(image)
    index = np.arange(len(token))
    is_patch = which != TEXT
    patch = np.where(is_patch, np.cumsum(is_patch) - 1 - which * patches, 0)
    predicts = np.full(len(token), True) if codes else ~is_patch & (token != special.boi)
    together = is_patch & (model.image_attention == "bidirectional")
    return Layout(
        tokens=token,
        targets=np.append(token[1:], special.eos),
        weight=(predicts & np.concatenate(learnt)).astype(np.float32),
        image=which,
        patch=patch,
        span_end=np.where(together, index + patches - patch, index + 1),
    )


def _codes(image: Image, model: ModelConfig) -> np.ndarray:
    """An image's codes `[h · w]`, left to right and top to bottom."""
    codes = image.latent.ravel()
    largest = int(codes.max())
    require(largest < model.codebook, f"an image has code {largest}, and model.codebook is {model.codebook}")
    return codes


def _between(first: int, value: int | np.ndarray, count: int, last: int) -> np.ndarray:
    result = np.full(count + 2, first)
    result[1:-1], result[-1] = value, last
    return result


def place_piece(
    row: Batch, at: int, slot: int, layout: Layout, piece: Piece, document: Document, config: Config
) -> None:
    """Writes a piece into a row from element `at` and image `slot` on.

    A dropped caption leaves its elements as padding behind the piece: rows are planned with it.
    """
    taken = slice(piece.start, min(piece.start + piece.length, len(layout.tokens)))
    length = taken.stop - taken.start
    here = slice(at, at + length)
    image = layout.image[taken]
    row.tokens[here] = layout.tokens[taken]
    row.targets[here] = layout.targets[taken]
    row.token_weight[here] = layout.weight[taken]
    row.positions[here] = np.arange(length)
    row.span_start[here] = at
    row.span_end[here] = layout.span_end[taken] - piece.start + at
    row.image_slot[here] = np.where(image == TEXT, TEXT, image + slot)
    row.patch_index[here] = layout.patch[taken]
    row.source[here] = piece.source
    kinds = [type(segment) for segment in document.segments]
    images = [(i, s) for i, s in enumerate(document.segments) if isinstance(s, Image)]
    for n, (i, segment) in enumerate(images, slot):
        first = Text not in kinds[:i] and Text in kinds[i:]
        if config.model.images == "latents":
            row.latents[n] = segment.latent
        limit = config.diffusion.image_first_limit if first else config.diffusion.timesteps
        row.image_weight[n] = segment.loss
        row.image_first[n] = first
        row.timestep_limit[n] = limit * segment.loss  # 0: clean
        row.image_source[n] = piece.source
