"""Interleaved decoding: the model writes, draws where it begins an image, and goes on writing (paper, section 2.3).

All requests advance together, phase by phase: first every one writes until it ends or begins an image, then all
that began one draw it. What one gets does not depend on the others.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from transfusion_jax.config import FOLLOWS, Config, SamplingConfig, one_of, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document
from transfusion_jax.diffusion.sampler import make_steps, on_device
from transfusion_jax.generation import phases
from transfusion_jax.generation.guidance import branch_weights, branches_of
from transfusion_jax.generation.phases import NOTHING, DecodingState, Limits
from transfusion_jax.generation.prompt import before_image, images_of, rows_of
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.kernels.platform import compute_dtype
from transfusion_jax.model.kv_cache import Cache
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

ROWS = 100  # decoded at a time, at the most
CACHE = 2**33  # bytes of keys and values, at the most
CHUNK = 16  # tokens between two looks at what was written
SMALLEST = 64  # elements of a cache
UNFINISHED = "\ufffd"  # what half a character is decoded to


@dataclass(frozen=True)
class Request:
    """What a sample begins with, and what is to follow."""

    document: Document
    follow: str = "any"  # one of `config.FOLLOWS`
    seed: int = 0
    number: int = 0  # its draws depend on (seed, number), its document and nothing else


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
    element = 2 * model.layers * model.width * compute_dtype(model).itemsize
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
    others = _fill(len(rows)) - len(rows)
    rows += [_Row(len(rows) + n, requests[0], codec, writing, reason="none asked") for n in range(others)]
    state = _prefill(
        task, params, codec, [row.begins_with for row in rows], _size(task.config, rows, writing, max_images)
    )
    drawer = _Drawer(task, params, codec, sampling, previews, rows)
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
            images = yield from drawer.draw(state, drawing)
            for row in drawing:
                yield from row.after_image(max_images)
            if any(row.writes for row in drawing):
                drawn = np.isin(np.arange(len(rows)), [row.number for row in drawing])
                placed = np.zeros((len(rows), *images.shape[1:]), images.dtype)
                placed[drawn] = images
                state = phases.add_images(task, codec.special, params, state, placed, jnp.asarray(drawn))


def edit_images(requests: Sequence[Request]) -> bool:
    """Whether every request is one image after others: then images and texts can guide apart."""
    return all(request.follow == "image" and request.document.images for request in requests)


def check_requests(config: Config, requests: Sequence[Request], sampling: SamplingConfig) -> None:
    """Raises ConfigError where the model cannot do what is asked."""
    images, patches, context = config.model.images, config.model.patches, config.data.context_length
    for request in requests:
        document, follow = request.document, request.follow
        one_of("follow", follow, FOLLOWS)
        require(images != "none" or follow != "image", "this is a model of text alone: it draws no images")
        require(images != "none" or not document.images, "this is a model of text alone: it sees no images")
        length = document.length(patches) + (patches + 2 if follow == "image" else 1)
        require(
            length <= context,
            f"the prompt and what is to be made take {length} elements, and the model's context is {context}: "
            "shorten the prompt",
        )
    require(
        sampling.image_guidance in (0, sampling.guidance) or edit_images(requests),
        "image guidance is apart from that of the texts where one image follows others: this is no such prompt",
    )


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


class _Drawer:
    """Draws one image for each of some rows, with the branches that guidance asks for."""

    def __init__(
        self,
        task: ModelTask,
        params: Params,
        codec: Codec,
        sampling: SamplingConfig,
        previews: int,
        rows: list[_Row],
    ):
        self.task, self.params, self.codec = task, params, codec
        self.sampling, self.previews, self.rows = sampling, previews, rows
        self.branches = branches_of(sampling, edit_images([row.request for row in rows]))

    @functools.cached_property
    def others(self) -> tuple[DecodingState, ...]:
        """The rows of the other branches: one each, or one for all."""
        documents: list[list[Document]] = [[Document(())]] if self.branches > 1 else []
        if self.branches == 3:
            documents.insert(0, [images_of(row.request.document) for row in self.rows])
        return tuple(
            _prefill(self.task, self.params, self.codec, [before_image(d, self.codec) for d in part], 0)
            for part in documents
        )

    def draw(self, state: DecodingState, rows: list[_Row]) -> Generator[Event, None, np.ndarray]:
        """Latents `[n, h, w, c]` or codes `[n, P]`, and an event for each image."""
        index = np.array([row.number for row in rows])
        index = np.pad(index, (0, _fill(len(rows)) - len(rows)), mode="edge")  # few shapes are compiled
        keys = _keys([self.rows[i] for i in index], 1)
        of_each = [index if len(other.hidden) == len(self.rows) else 0 * index for other in self.others]
        longest = int(to_host(state.cache.length)[index].max())
        ahead = self.task.config.model.patches if isinstance(self.task, TokenTask) else 0
        before = phases.gather_rows(_room(longest + ahead), (state, *self.others), (index, *of_each))
        if isinstance(self.task, TokenTask):
            made = self._codes(self.task, before, keys)
        else:
            made = yield from self._latents(self.task, before.cache, keys, rows)
        made = made[: len(rows)]
        images = self.codec.images(
            made.reshape(len(made), *self.task.config.model.latent_shape[:2], *made.shape[3:])
        )
        for row, image in zip(rows, images, strict=True):
            yield Drew(row.number, image)
        return made

    def _codes(self, task: TokenTask, before: DecodingState, keys: Key[Array, " S"]) -> Int[np.ndarray, "S P"]:
        weights = branch_weights(self.sampling, self.branches, np.zeros(1))[0]
        return to_host(phases.draw_codes(task, self.params, before, keys, weights, self.sampling.temperature))

    def _latents(
        self, task: TransfusionTask, before: Cache, keys: Key[Array, " S"], rows: list[_Row]
    ) -> Generator[Event, None, np.ndarray]:
        sampling, schedule = self.sampling, task.schedule
        steps = make_steps(schedule, sampling.steps, task.config.diffusion.objective, sampling.sampler)
        weights = branch_weights(sampling, self.branches, steps.timesteps / schedule.timesteps)
        canvas = phases.blank(task.config.model.latent_shape, keys)
        total = len(steps.timesteps)
        steps, weights = jax.tree.map(_padded, (steps, weights))
        how = on_device(steps), jnp.asarray(weights), sampling.guidance_rescale, self.codec.bounds()
        stops = np.unique(np.linspace(0, total, self.previews + 2).astype(int)).tolist()
        for begin, end in itertools.pairwise(stops):
            canvas = phases.denoise(task, self.params, before, canvas, keys, *how, begin, end)
            if end < total:
                shown = self.codec.images(to_host(canvas.clean)[: len(rows)])
                yield from (Draws(r.number, image, end, total) for r, image in zip(rows, shown, strict=True))
        return to_host(canvas.x)


def _prefill(task: ModelTask, params: Params, codec: Codec, documents: list[Document], size: int) -> DecodingState:
    rows, lengths = rows_of(documents, task.config, codec)
    return phases.prefill(task, size, params, rows, jnp.asarray(lengths, jnp.int32))


def _size(config: Config, rows: list[_Row], writing: Writing, max_images: int) -> int:
    """Elements that the rows need room for, and one that none of them keeps."""
    patches = config.model.patches
    more = {"image": 0, "text": writing.max_tokens, "any": writing.max_tokens + max_images * (patches + 2)}
    longest = max(row.begins_with.length(patches) + more[row.request.follow] for row in rows)
    return _room(min(longest, config.data.context_length) + 1)


def _limits(config: Config, rows: list[_Row], writing: Writing, max_images: int) -> Limits:
    draws = [row.request.follow == "any" and config.model.images != "none" for row in rows]
    return Limits(
        tokens=jnp.full(len(rows), writing.max_tokens),
        elements=jnp.full(len(rows), config.data.context_length),
        images=jnp.array([max_images - row.images if d else 0 for row, d in zip(rows, draws, strict=True)]),
    )


def _keys(rows: list[_Row], first: int) -> Key[Array, " S"]:
    """A key of each row: 0 for its texts, 1 for its first image, 2 for its second."""
    numbers = [(r.request.seed, r.request.number, first and first + r.images) for r in rows]
    return _folded(*(jnp.array(column, jnp.uint32) for column in zip(*numbers, strict=True)))


@jax.jit
@jax.vmap
def _folded(seed: Shaped[Array, ""], number: Shaped[Array, ""], which: Shaped[Array, ""]) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), which)


def _fill(count: int) -> int:
    """The next power of two, or as many as there may be: few shapes are compiled."""
    return min(1 << (count - 1).bit_length(), max(count, ROWS))


def _padded(x: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "_ ..."]:
    """With zeros up to `_room`, so that not every number of steps is compiled."""
    return np.pad(x, [(0, _room(len(x)) - len(x)), *[(0, 0)] * (x.ndim - 1)])


def _room(elements: int) -> int:
    """The next power of two, or three quarters of it."""
    power = max(SMALLEST, 1 << (elements - 1).bit_length())
    return max(SMALLEST, 3 * power // 4 if elements <= 3 * power // 4 else power)
