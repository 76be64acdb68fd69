"""An image phase of decoding: one image for each of some rows, those of about one size together."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from transfusion_jax.config import ModelConfig, SamplingConfig
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document
from transfusion_jax.diffusion.sampler import Bounds, SamplerSteps, on_device, sampler_steps
from transfusion_jax.generation import phases
from transfusion_jax.generation.guidance import branch_weights
from transfusion_jax.generation.phases import DecodingState
from transfusion_jax.generation.prompt import before_image, rows_of
from transfusion_jax.model.kv_cache import Cache
from transfusion_jax.model.media import patchify, unpatchify
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.sharding import to_host
from transfusion_jax.tasks.families import ModelTask
from transfusion_jax.tasks.next_token import TokenTask
from transfusion_jax.tasks.transfusion import TransfusionTask

ROWS = 100  # decoded at a time, at the most
SMALLEST = 64  # elements of a cache
FEWEST = 4  # patches by which the room for images grows

Values = list[Shaped[np.ndarray, "h w ..."]]  # latents `[h, w, c]` or codes `[h, w]`


class Preview(NamedTuple):
    """An image under way."""

    row: int
    values: Shaped[np.ndarray, "h w ..."]  # what it points to
    done: int  # evaluations of the model
    total: int


class Drawer:
    """Draws one image for each of some rows, with the branches that guidance asks for."""

    def __init__(
        self,
        task: ModelTask,
        params: Params,
        codec: Codec,
        sampling: SamplingConfig,
        previews: int,
        others: Sequence[Sequence[Document]],
    ):
        """Prepares the other branches.

        Args:
            task: the model's.
            params: weights.
            codec: how texts and images are coded.
            sampling: how images are drawn.
            previews: how often an image is shown while it is denoised.
            others: what stands before the image in each of guidance's other branches, for each row or for all.
        """
        self.task, self.params, self.codec = task, params, codec
        self.sampling, self.previews, self.branches = sampling, previews, 1 + len(others)
        self.documents = others

    @functools.cached_property
    def others(self) -> tuple[DecodingState, ...]:
        """The rows of the other branches: one for all, or one each."""
        return tuple(
            prefill_documents(
                self.task, self.params, self.codec, [before_image(d, self.codec) for d in documents], 0
            )
            for documents in self.documents
        )

    def draw(
        self,
        state: DecodingState,
        rows: Int[np.ndarray, " n"],
        grids: Int[np.ndarray, "B 2"],
        keys: Key[Array, " B"],
    ) -> Generator[Preview, None, Values]:
        """What the images of these rows become, with a look at them on the way.

        Args:
            state: all rows; those that draw end where the patches begin.
            rows: which draw.
            grids: rows and columns of patches of each row's image.
            keys: one of each row's image.
        """
        rooms = [patch_room(size, self.task.config.model) for size in grids[rows].prod(axis=1).tolist()]
        found: dict[int, np.ndarray] = {}
        for places, room in batches_of(rooms):
            part = rows[places]
            index = np.pad(part, (0, batch_room(len(part)) - len(part)), mode="edge")  # few shapes are compiled
            before = self._before((state, *self.others), index, grids[index], room)
            if isinstance(self.task, TokenTask):
                made = self._codes(self.task, room, before, grids[index], keys[index])
            else:
                made = yield from self._latents(self.task, room, before.cache, part, grids[index], keys[index])
            found |= zip(part.tolist(), values_of(made, grids[part], self.task.config.model), strict=False)
        return [found[row] for row in rows.tolist()]

    def _before(
        self,
        states: Sequence[DecodingState],
        index: Int[np.ndarray, " S"],
        grids: Int[np.ndarray, "S 2"],
        room: int,
    ) -> DecodingState:
        """What stands before the patches of some rows, those of the first branch first: of each branch's state."""
        state, *others = states
        ahead = room if isinstance(self.task, TokenTask) else 0
        size = cache_room(int(to_host(state.cache.length)[index].max()) + ahead)
        each = [index if len(other.hidden) == len(state.hidden) else 0 * index for other in others]
        if not self.task.config.model.shape_marks or not each:
            return phases.gather_rows(size, states, (index, *each))
        beside = phases.gather_rows(size, others, tuple(each))
        asked = jnp.tile(jnp.asarray(grids), (len(each), 1))
        everywhere, unused = jnp.arange(len(asked)), jax.random.split(jax.random.key(0), len(asked))
        beside, _ = phases.write_shapes(self.task, self.params, beside, everywhere >= 0, asked, unused)
        return phases.gather_rows(size, (state, beside), (index, everywhere))

    def _codes(
        self,
        task: TokenTask,
        room: int,
        before: DecodingState,
        grids: Int[np.ndarray, "S 2"],
        keys: Key[Array, " S"],
    ) -> Int[np.ndarray, "S P"]:
        weights = branch_weights(self.sampling, self.branches, np.zeros(1))[0]
        how = keys, weights, self.sampling.temperature
        return to_host(phases.draw_codes(task, room, self.params, before, jnp.asarray(grids), *how))

    def _latents(
        self,
        task: TransfusionTask,
        room: int,
        before: Cache,
        rows: Int[np.ndarray, " n"],
        grids: Int[np.ndarray, "S 2"],
        keys: Key[Array, " S"],
    ) -> Generator[Preview, None, Float[np.ndarray, "S ..."]]:
        sampling, model, grid = self.sampling, task.config.model, jnp.asarray(grids)
        steps = _steps_of(task, sampling, grids.prod(axis=1))
        weights = branch_weights(sampling, self.branches, steps.timesteps / task.schedule.timesteps)
        canvas = phases.blank(task, room, grid, keys)
        total = len(steps.timesteps)
        steps, weights = jax.tree.map(_padded, (steps, weights))
        how = on_device(steps), jnp.asarray(weights), sampling.guidance_rescale, _bounds(self.codec, model)
        stops = np.unique(np.linspace(0, total, self.previews + 2).astype(int)).tolist()
        for begin, end in itertools.pairwise(stops):
            canvas = phases.denoise(task, room, self.params, before, canvas, grid, keys, *how, begin, end)
            if end < total:
                shown = values_of(to_host(canvas.clean), grids[: len(rows)], model)
                yield from (Preview(r, v, end, total) for r, v in zip(rows.tolist(), shown, strict=True))
        return to_host(canvas.x)


def add_drawn(
    task: ModelTask,
    params: Params,
    codec: Codec,
    state: DecodingState,
    values: Values,
    grids: Int[np.ndarray, "B 2"],
    drawn: Bool[np.ndarray, " B"],
) -> DecodingState:
    """Rows with what was drawn, clean, and EOI behind it.

    Args:
        task: the model's.
        params: weights.
        codec: how texts and images are coded.
        state: all rows.
        values: the images of those that drew.
        grids: rows and columns of patches of each row's image.
        drawn: which rows drew.
    """
    model = task.config.model
    patches = [patchify(v, model.patch_size) if model.images == "latents" else v.reshape(-1) for v in values]
    room = patch_room(max(map(len, patches)), model)
    placed = np.zeros((len(drawn), room, *patches[0].shape[1:]), patches[0].dtype)
    for row, of_row in zip(np.flatnonzero(drawn), patches, strict=True):
        placed[row, : len(of_row)] = of_row
    return phases.add_images(task, codec.special, params, state, placed, jnp.asarray(grids), jnp.asarray(drawn))


def values_of(made: Shaped[np.ndarray, "S ..."], grids: Int[np.ndarray, "n 2"], model: ModelConfig) -> Values:
    """The first images of a phase as latents or codes, each of its own shape."""
    if model.images == "codes":
        return [m[: h * w].reshape(h, w) for m, (h, w) in zip(made, grids.tolist(), strict=False)]
    if not model.max_side:
        return [image for (image,) in made[: len(grids)]]
    each = zip(made, grids.tolist(), strict=False)
    return [unpatchify(patches[: h * w], model.patch_size, (h, w)) for patches, (h, w) in each]


def prefill_documents(
    task: ModelTask, params: Params, codec: Codec, documents: list[Document], size: int
) -> DecodingState:
    """Rows that hold these documents, with room for so many elements."""
    rows, lengths = rows_of(documents, task.config, codec)
    return phases.prefill(task, size, params, rows, jnp.asarray(lengths, jnp.int32))


def batch_room(count: int) -> int:
    """The next power of two, or as many as there may be: few shapes are compiled."""
    return min(1 << (count - 1).bit_length(), max(count, ROWS))


def cache_room(elements: int) -> int:
    """The next power of two, or three quarters of it."""
    power = max(SMALLEST, 1 << (elements - 1).bit_length())
    return max(SMALLEST, 3 * power // 4 if elements <= 3 * power // 4 else power)


def patch_room(patches: int, model: ModelConfig) -> int:
    """Room for an image: patches in steps of an eighth of the next power of two, and at most what one may have.

    So images are computed with a quarter more than they have at the most, and four rooms are compiled for each
    doubling of their size.
    """
    step = max(FEWEST, (1 << (patches - 1).bit_length()) // 8)
    return min(-(-patches // step) * step, model.patches)


def batches_of(rooms: Sequence[int]) -> list[tuple[Int[np.ndarray, " _"], int]]:
    """Which images are drawn together, and the room that each of them has then: the fewest patches are computed.

    Those that need the same room stay together; an image is drawn with larger ones where a batch of its own would
    cost more.
    """
    order = np.argsort(rooms, kind="stable")
    sorted_rooms = np.array(rooms)[order]
    ends = [*(np.flatnonzero(np.diff(sorted_rooms)) + 1).tolist(), len(order)]
    cheapest: dict[int, tuple[int, int]] = {0: (0, 0)}  # by the end of a batch: patches up to it, and its begin
    for end in ends:
        room = int(sorted_rooms[end - 1])
        cheapest[end] = min((cost + batch_room(end - begin) * room, begin) for begin, (cost, _) in cheapest.items())
    found, end = [], len(order)
    while end:
        begin = cheapest[end][1]
        found.append((order[begin:end], int(sorted_rooms[end - 1])))
        end = begin
    return found[::-1]


def _steps_of(task: TransfusionTask, sampling: SamplingConfig, sizes: Int[np.ndarray, " S"]) -> SamplerSteps:
    """The sampler's steps: one set for all images, or one per image where they depend on its size."""
    config = task.config
    found = {size: sampler_steps(task.schedule, config.diffusion, sampling, size) for size in set(sizes.tolist())}
    if len(found) == 1 or not config.diffusion.timestep_base:
        return next(iter(found.values()))
    return jax.tree.map(lambda *each: np.stack(each, axis=1), *(found[size] for size in sizes.tolist()))


def _bounds(codec: Codec, model: ModelConfig) -> Bounds | None:
    """The range of the values of an image, or of its patches, where the autoencoder limits it."""
    bounds = codec.bounds()
    if bounds is None or not model.max_side:
        return bounds
    low, high = (np.tile(bound, model.patch_area) for bound in bounds)
    return low, high


def _padded(x: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "_ ..."]:
    """With zeros up to `cache_room`, so that not every number of steps is compiled."""
    return np.pad(x, [(0, cache_room(len(x)) - len(x)), *[(0, 0)] * (x.ndim - 1)])
