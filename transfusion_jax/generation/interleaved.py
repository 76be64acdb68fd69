"""Interleaved decoding: the model writes, draws where it begins an image, and goes on writing (paper, section 2.3).

All requests advance together, phase by phase: first every one writes until it ends or begins an image, then all
that began one draw it. What one gets does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from transfusion_jax.config import FOLLOWS, Config, ModelConfig, SamplingConfig, one_of, require
from transfusion_jax.data.datasets import Codec, by_shape
from transfusion_jax.data.documents import Document, Image
from transfusion_jax.generation import phases
from transfusion_jax.generation.drawing import (
    ROWS,
    Drawer,
    Preview,
    Values,
    add_drawn,
    batch_room,
    cache_room,
    prefill_documents,
)
from transfusion_jax.generation.guidance import branches_of
from transfusion_jax.generation.phases import NOTHING, DecodingState, Limits
from transfusion_jax.generation.prompt import before_image, images_of
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.kernels.platform import compute_dtype
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.tasks.families import ModelTask

CACHE = 2**33  # bytes of keys and values, at the most
CHUNK = 16  # tokens between two looks at what was written
UNFINISHED = "\ufffd"  # what half a character is decoded to


@dataclass(frozen=True)
class Request:
    """What a sample begins with, and what is to follow."""

    document: Document
    follow: str = "any"  # one of `config.FOLLOWS`
    seed: int = 0
    number: int = 0  # its draws depend on (seed, number), its document, its grid and nothing else
    grid: tuple[int, int] | None = None  # rows and columns of patches of images that it draws; None: see `grid_of`


@dataclass(frozen=True)
class Wrote:
    """A piece of text."""

    sample: int
    text: str


@dataclass(frozen=True)
class Draws:
    """An image under way: what it points to after some of the evaluations."""

    sample: int
    image: Float[np.ndarray, "H W C"]  # [H, W, channels] in [−1, 1]
    done: int
    total: int


@dataclass(frozen=True)
class Drew:
    """An image."""

    sample: int
    image: Float[np.ndarray, "H W C"]  # [H, W, channels] in [−1, 1]


@dataclass(frozen=True)
class Ended:
    """A sample's end: by EOS ("end"), a stop string ("stop"), no room ("length"), or enough images ("images")."""

    sample: int
    reason: str


Event = Wrote | Draws | Drew | Ended


@dataclass(frozen=True)
class Sample:
    """What was made: texts, and images `[H, W, channels]` in [−1, 1]."""

    segments: tuple[str | np.ndarray, ...]
    reason: str

    @property
    def text(self) -> str:
        """All its text."""
        return "".join(s for s in self.segments if isinstance(s, str))

    @property
    def images(self) -> list[np.ndarray]:
        """All its images."""
        return [s for s in self.segments if not isinstance(s, str)]


def generate(
    task: ModelTask,
    params: Params,
    codec: Codec,
    requests: Sequence[Request],
    sampling: SamplingConfig | None = None,
    writing: Writing | None = None,
    max_images: int = 8,
    watch: Callable[[Event], None] | None = None,
) -> list[Sample]:
    """What follows each request, which `watch` is told of as it comes; see `stream`."""
    found: list[Sample] = []
    params = task.model.by_layer(params)
    for begin in range(0, len(requests), size := rows_at_a_time(task.config)):
        part = requests[begin : begin + size]
        segments: list[list[str | np.ndarray]] = [[] for _ in part]
        reasons = [""] * len(part)
        for event in stream(task, params, codec, part, sampling, writing, max_images):
            if watch is not None:
                watch(event)
            match event:
                case Wrote(sample, text):
                    if segments[sample] and isinstance(last := segments[sample][-1], str):
                        segments[sample][-1] = last + text
                    else:
                        segments[sample].append(text)
                case Drew(sample, image):
                    segments[sample].append(image)
                case Ended(sample, reason):
                    reasons[sample] = reason
        found += [Sample(tuple(made), reason) for made, reason in zip(segments, reasons, strict=True)]
    return found


def rows_at_a_time(config: Config) -> int:
    """Samples whose caches, two with guidance, are held at a time."""
    model = config.model
    element = 2 * model.layers * model.key_width * compute_dtype(model).itemsize
    return max(1, min(ROWS, CACHE // (2 * element * config.data.context_length)))


def stream(
    task: ModelTask,
    params: Params,
    codec: Codec,
    requests: Sequence[Request],
    sampling: SamplingConfig | None = None,
    writing: Writing | None = None,
    max_images: int = 8,
    previews: int = 0,
    chunk: int = CHUNK,
) -> Generator[Event, None, None]:
    """Makes what follows the requests, all at once, and tells of it as it comes.

    Args:
        task: the trained model's task.
        params: its weights.
        codec: how it codes texts and images.
        requests: at the most `rows_at_a_time`.
        sampling: how images are drawn; by default the config's.
        writing: how texts are written; by default greedily.
        max_images: that one sample draws, after which it ends.
        previews: how often an image is shown while it is denoised.
        chunk: tokens between two looks at what was written.

    Raises:
        ConfigError: a request does not fit the context, or the model does nothing of the kind.
    """
    sampling, writing = sampling or task.config.sampling, writing or Writing()
    check_requests(task.config, requests, sampling)
    params = task.model.by_layer(params)
    rows = [_Row(number, request, codec, writing) for number, request in enumerate(requests)]
    others = batch_room(len(rows)) - len(rows)
    rows += [_Row(len(rows) + n, requests[0], codec, writing, reason="none asked") for n in range(others)]
    size = _size(task.config, rows, writing, max_images)
    state = prefill_documents(task, params, codec, [row.begins_with for row in rows], size)
    drawer = Drawer(task, params, codec, sampling, previews, _other_branches(sampling, requests, rows))
    texts = _keys(rows, 0)
    while not all(row.reason for row in rows):
        while any(row.writes for row in rows):
            active = jnp.array([row.writes for row in rows])
            limits = _limits(task.config, rows, writing, max_images)
            how = chunk, writing.filters, params, state, active, limits, texts, writing.chances()
            state, tokens = phases.write_tokens(task, codec.special, *how, ends=codec.ends)
            for row, found in zip(rows, to_host(tokens), strict=True):
                yield from row.take(found)
        if drawing := [row for row in rows if row.draws]:
            drawn, keys = np.array([row.draws for row in rows]), _keys(rows, 1)
            state, grids = _shapes(task, params, state, rows, drawn, keys)
            values = yield from _told(drawer.draw(state, np.flatnonzero(drawn), grids, keys), codec)
            for row, image in zip(drawing, by_shape(codec.images, values), strict=True):
                yield Drew(row.number, image)
            for row in drawing:
                yield from row.after_image(max_images)
            if any(row.writes for row in drawing):
                state = add_drawn(task, params, codec, state, values, grids, drawn)


def _other_branches(
    sampling: SamplingConfig, requests: Sequence[Request], rows: list[_Row]
) -> list[list[Document]]:
    """What stands before an image in guidance's other branches: each row's images alone, and nothing."""
    branches = branches_of(sampling, edit_images(requests))
    images = [images_of(row.request.document) for row in rows]
    return [images, [Document(())]][3 - branches :]


def _shapes(
    task: ModelTask,
    params: Params,
    state: DecodingState,
    rows: list[_Row],
    drawn: Bool[np.ndarray, " B"],
    keys: Key[Array, " B"],
) -> tuple[DecodingState, Int[np.ndarray, "B 2"]]:
    """Rows and columns of patches of each row's image, and the rows with their marks, where the model has these."""
    model = task.config.model
    asked = np.array([grid_of(row.request, model) or (0, 0) for row in rows], np.int32)
    if not model.shape_marks:
        return state, asked
    state, grids = phases.write_shapes(task, params, state, jnp.asarray(drawn), jnp.asarray(asked), keys)
    return state, to_host(grids)


def _told(drawing: Generator[Preview, None, Values], codec: Codec) -> Generator[Event, None, Values]:
    """The same, with events for the previews."""
    while True:
        try:
            row, values, done, total = next(drawing)
        except StopIteration as end:
            return end.value
        yield Draws(row, codec.images(values[None])[0], done, total)


def grid_of(request: Request, model: ModelConfig) -> tuple[int, int] | None:
    """Rows and columns of patches of the images that a request draws; None where the model chooses.

    Those asked for; or those of the last image before, where an image follows images; or else what the model writes
    in shape marks. Without shape marks: the last image's wherever there is one, or those of `model.latent_shape`.
    """
    images = [segment for segment in request.document.segments if isinstance(segment, Image)]
    if request.grid is not None:
        return request.grid
    if images and (request.follow == "image" or not model.shape_marks):
        height, width = images[-1].latent.shape[:2]
        return model.grid(height, width)
    return None if model.shape_marks else model.patch_grid


def edit_images(requests: Sequence[Request]) -> bool:
    """Whether every request is one image after others: then images and texts can guide apart."""
    return all(request.follow == "image" and request.document.images for request in requests)


def check_requests(config: Config, requests: Sequence[Request], sampling: SamplingConfig) -> None:
    """Raises ConfigError where the model cannot do what is asked."""
    model, images, context = config.model, config.model.images, config.data.context_length
    for request in requests:
        document, follow = request.document, request.follow
        one_of("follow", follow, FOLLOWS)
        require(images != "none" or follow != "image", "this is a model of text alone: it draws no images")
        require(images != "none" or not document.images, "this is a model of text alone: it sees no images")
        image = 1 if follow == "text" or images == "none" else image_room(request, model)
        length = document.length(model) + (image if follow == "image" else 1)
        require(
            length <= context,
            f"the prompt and what is to be made take {length} elements, and the model's context is {context}: "
            "shorten the prompt",
        )
    require(
        sampling.image_guidance in (0, sampling.guidance) or edit_images(requests),
        "image guidance is apart from that of the texts where one image follows others: this is no such prompt",
    )


def image_room(request: Request, model: ModelConfig) -> int:
    """Elements that one image of a request takes at the most, with its marks.

    Raises:
        ConfigError: the model draws none of this shape.
    """
    rows, columns = grid_of(request, model) or model.patch_grid
    k = model.patch_size
    model.grid(rows * k, columns * k)
    return rows * columns + model.image_marks


@dataclass
class _Row:
    """A request under way."""

    number: int
    request: Request
    codec: Codec
    writing: Writing
    reason: str = ""  # why it has ended
    images: int = 0  # drawn
    tokens: list[int] = field(default_factory=list)  # of the text under way
    told: int = 0  # characters of it

    def __post_init__(self) -> None:
        self.draws = self.request.follow == "image" and not self.reason  # begins an image

    @property
    def writes(self) -> bool:
        """Whether it goes on with text."""
        return not self.draws and not self.reason

    @property
    def begins_with(self) -> Document:
        """What stands before anything that is made."""
        document, drawn = self.request.document, self.request.follow == "image"
        return before_image(document, self.codec) if drawn else document

    def take(self, found: Int[np.ndarray, " _"]) -> Iterator[Event]:
        """Goes on with the tokens that a text phase gave it."""
        if not self.writes:
            return
        special = self.codec.special
        ends = np.flatnonzero(np.isin(found, (NOTHING, *self.codec.ends, special.boi)))
        self.tokens += found[: ends[0] if len(ends) else None].tolist()
        if len(ends):
            self.draws = bool(found[ends[0]] == special.boi)
            reasons = {NOTHING: "length"} | dict.fromkeys(self.codec.ends, "end")
            self.reason = reasons.get(int(found[ends[0]]), "")
        text = self.codec.tokenizer.decode(np.array(self.tokens, np.int32))
        if stops := [at for stop in self.writing.stop if (at := text.find(stop)) >= 0]:
            self.draws, self.reason, text = False, "stop", text[: min(stops)]
        kept = text if self.draws or self.reason else self._settled(text)
        if len(kept) > self.told:
            yield Wrote(self.number, kept[self.told :])
            self.told = len(kept)
        if self.reason:
            yield Ended(self.number, self.reason)

    def _settled(self, text: str) -> str:
        """What no later token can change, and no stop string can begin in."""
        settled = text.rstrip(UNFINISHED)
        return settled[: len(settled) - max((len(stop) - 1 for stop in self.writing.stop), default=0)]

    def after_image(self, max_images: int) -> Iterator[Event]:
        """Goes on with text, or ends."""
        self.draws, self.tokens, self.told = False, [], 0
        self.images += 1
        if self.request.follow == "image" or self.images >= max_images:
            self.reason = "images"
            yield Ended(self.number, self.reason)


def _size(config: Config, rows: list[_Row], writing: Writing, max_images: int) -> int:
    """Elements that the rows need room for, and one that none of them keeps."""
    model = config.model

    def needed(row: _Row) -> int:
        image = image_room(row.request, model) if row.request.follow != "text" and model.images != "none" else 0
        marks = model.image_marks - 2  # BOI stands already, and what comes behind the marks is not kept
        more = {"image": marks, "text": writing.max_tokens, "any": writing.max_tokens + max_images * image}
        return row.begins_with.length(model) + more[row.request.follow]

    return cache_room(min(max(map(needed, rows)), config.data.context_length) + 1)


def _limits(config: Config, rows: list[_Row], writing: Writing, max_images: int) -> Limits:
    model = config.model
    draws = [row.request.follow == "any" and model.images != "none" for row in rows]
    return Limits(
        tokens=jnp.full(len(rows), writing.max_tokens),
        elements=jnp.full(len(rows), config.data.context_length),
        images=jnp.array([max_images - row.images if d else 0 for row, d in zip(rows, draws, strict=True)]),
        image=jnp.array([image_room(row.request, model) if d else 0 for row, d in zip(rows, draws, strict=True)]),
    )


def _keys(rows: list[_Row], first: int) -> Key[Array, " S"]:
    """A key of each row: 0 for its texts, 1 for its first image, 2 for its second."""
    numbers = [(r.request.seed, r.request.number, first and first + r.images) for r in rows]
    return _folded(*(jnp.array(column, jnp.uint32) for column in zip(*numbers, strict=True)))


@jax.jit
@jax.vmap
def _folded(seed: Shaped[Array, ""], number: Shaped[Array, ""], which: Shaped[Array, ""]) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), which)
