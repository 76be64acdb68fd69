"""From pieces of documents to one row of a `Batch`: elements, targets, spans and images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from transfusion_jax.config import Config, Modality, ModelConfig, require
from transfusion_jax.data.batch import TEXT, Batch, media_shapes, positions_shape
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.model.media import Media, grid_coords, patchify, text_positions

CONTEXT = 1  # tells the draws of clean images from the others of a row
Places = list[tuple[int, tuple[int, int]]]  # of images: the element of the first patch; rows and columns of patches


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
    positions: np.ndarray  # [n, 3], or [n] where they have one axis
    span_end: np.ndarray  # [n], counted from the document's first element
    images: Places


@dataclass(frozen=True)
class Cursor:
    """Where a row goes on."""

    element: int = 0
    item: int = 0
    patch: int = 0


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
    result = empty_row(row, config.data.context_length, config, special)
    at = Cursor()
    for piece in pieces:
        document, dropped = arrange(piece.document, config, random)
        layout = lay_out(document, config.model, special)
        if dropped:
            layout = replace(layout, weight=layout.weight * _in_images(layout, config.model))
        at = place_piece(result, at, layout, piece, show_clean(document, config, of_context), config)
    return result


def empty_row(
    row: int,
    length: int,
    config: Config,
    special: SpecialTokens,
    modalities: Mapping[str, Modality] | None = None,
) -> Batch:
    """A row of padding: each element attends itself alone.

    Args:
        row: its number.
        length: in elements.
        config: the run's.
        special: the special tokens.
        modalities: what there is to be room for; by default the config's.
    """
    index = np.arange(length, dtype=np.int32)
    return Batch(
        tokens=np.full(length, special.pad, np.int32),
        targets=np.full(length, special.pad, np.int32),
        token_weight=np.zeros(length, np.float32),
        positions=np.zeros(positions_shape(config, length), np.int32),
        span_start=index,
        span_end=index + 1,
        patch=np.full(length, TEXT, np.int32),
        source=np.full(length, -1, np.int32),
        media={
            name: _empty_media(modality, length)
            for name, modality in (config.modalities if modalities is None else modalities).items()
        },
        row=np.int32(row),
    )


def _empty_media(modality: Modality, length: int) -> Media:
    empty = {"item": -1, "source": -1, "element": length}
    arrays = {
        name: np.full(shape, empty.get(name, 0), dtype) for name, (shape, dtype) in media_shapes(modality).items()
    }
    return Media(**arrays, one_size=modality.one_size)


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

    With shape marks two tokens behind BOI say how many rows and columns of patches follow.

    Every text element predicts the element after it, but for that whose successor is a patch (paper, footnote 8),
    and but for what belongs to a segment that bears no loss. EOS belongs to the last segment. Codes of images are
    tokens like others: BOI predicts the first, each the next, and the last one EOI. A patch attends to all of its
    image, or, where images are causal, to itself and what stands before it.

    Raises:
        ConfigError: an image's shape does not go with the model.
    """
    parts, images, at = [np.array([special.bos])], Places(), 1
    silent = list[slice]()  # elements that predict a segment that bears no loss
    for segment in document.segments:
        begin = at
        if isinstance(segment, Text):
            parts.append(segment.tokens)
            at += len(segment.tokens)
        else:
            grid = model.grid(*segment.latent.shape[:2])
            size, before = math.prod(grid), image_begins(grid, model, special)
            images.append((at + len(before), grid))
            codes = model.images == "codes"
            values = model.first_code + _codes(segment, model) if codes else np.full(size, special.pad)
            parts += [before, values, np.array([special.eoi])]
            at += len(before) + size + 1
        if not segment.loss:
            silent.append(slice(begin - 1, at - 1))
    tokens = np.concatenate([*parts, [special.eos]])
    weight = np.ones(at, np.float32)
    span_end = np.arange(1, at + 1)
    positions = text_positions(at, bool(model.rope_sections))
    for begin, grid in images:
        size = math.prod(grid)
        here = slice(begin, begin + size)
        if model.images != "codes":
            weight[begin - 1 : here.stop] = 0
        if model.image_attention == "bidirectional":
            span_end[here] = here.stop
        if model.rope_sections:
            positions[here.stop :] -= size - max(grid)
            positions[here] = positions[begin - 1] + 1 + grid_coords(1, *grid)
    for here in silent:
        weight[here] = 0
    weight[-1] *= all(segment.loss for segment in document.segments[-1:])  # it predicts EOS
    return Layout(tokens[:-1], tokens[1:], weight, positions, span_end, images)


def _codes(image: Image, model: ModelConfig) -> np.ndarray:
    """An image's codes `[h · w]`, left to right and top to bottom."""
    codes = image.latent.ravel()
    largest = int(codes.max())
    require(largest < model.codebook, f"an image has code {largest}, and model.codebook is {model.codebook}")
    return codes


def image_begins(grid: tuple[int, int], model: ModelConfig, special: SpecialTokens) -> np.ndarray:
    """The tokens before an image's patches: BOI and, with shape marks, the numbers of rows and columns."""
    sides = [model.first_side + side - 1 for side in grid] if model.shape_marks else []
    return np.array([special.boi, *sides])


def _in_images(layout: Layout, model: ModelConfig) -> np.ndarray:
    """Which elements are of images: patches, and the marks before them."""
    inside = np.zeros(len(layout.tokens), bool)
    for begin, grid in layout.images:
        inside[begin - (model.image_marks - 1) : begin + math.prod(grid)] = True
    return inside


def place_piece(row: Batch, at: Cursor, layout: Layout, piece: Piece, document: Document, config: Config) -> Cursor:
    """Writes a piece into a row, and returns where the row goes on.

    A dropped caption leaves its elements as padding behind the piece: rows are planned with it.
    """
    taken = slice(piece.start, min(piece.start + piece.length, len(layout.tokens)))
    here = slice(at.element, at.element + taken.stop - taken.start)
    moved = at.element - piece.start
    row.tokens[here] = layout.tokens[taken]
    row.targets[here] = layout.targets[taken]
    row.token_weight[here] = layout.weight[taken]
    row.positions[here] = layout.positions[taken] - layout.positions[taken][:1]
    row.span_start[here] = at.element
    row.span_end[here] = layout.span_end[taken] + moved
    row.source[here] = piece.source
    places = [(begin + moved, grid) for begin, grid in layout.images]
    patch = _place_images(row, at, places, document, piece.source, config)
    return Cursor(at.element + piece.length, at.item + len(places), patch)


def _place_images(row: Batch, at: Cursor, places: Places, document: Document, source: int, config: Config) -> int:
    """Writes a document's images at these places of a row, and returns which patch of the row comes next."""
    kinds = [type(segment) for segment in document.segments]
    images = [(i, s) for i, s in enumerate(document.segments) if isinstance(s, Image)]
    patch = at.patch
    for number, ((i, segment), (begin, grid)) in enumerate(zip(images, places, strict=True), at.item):
        into, size = row.media["images"], grid[0] * grid[1]
        here, elements = slice(patch, patch + size), slice(begin, begin + size)
        row.patch[elements] = np.arange(patch, patch + size)
        if config.model.images == "latents":
            into.patches[here] = patchify(segment.latent, config.model.patch_size)
        into.item[here] = number
        into.coords[here] = grid_coords(1, *grid)
        into.element[here] = np.arange(begin, begin + size)
        first = Text not in kinds[:i] and Text in kinds[i:]
        limit = config.diffusion.image_first_limit if first else config.diffusion.timesteps
        into.grid[number] = (1, *grid)
        into.weight[number] = segment.loss
        into.comes_first[number] = first
        into.timestep_limit[number] = limit * segment.loss  # 0: clean
        into.source[number] = source
        patch += size
    return patch
