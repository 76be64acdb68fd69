"""The Transfusion task: next-token loss on text plus λ times the diffusion loss on images.

`L = L_text + λ · L_image`. Both are sums over the global batch divided by global counts: tokens for the text;
images, each the mean over its latent elements. Packing, accumulation and sharding never change the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transfusion_jax.config import PATCHES, Config
from transfusion_jax.data.batch import Batch
from transfusion_jax.diffusion import objective
from transfusion_jax.diffusion.schedule import Path, make_schedule
from transfusion_jax.model.media import Media
from transfusion_jax.model.transfusion import Model, Params, TokenLosses
from transfusion_jax.parallel.sharding import AxisNames
from transfusion_jax.tasks.base import Metrics, accumulated_gradients

Parts = dict[str, tuple[jax.Array, jax.Array]]  # by name: losses and their weights, or the sums of both
NOISE_BINS = 4  # the timesteps in equal parts, from the cleanest
SIZES = 3  # buckets of sizes, each with four times the patches of the one before


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """Counts over the global batch, never below one."""

    tokens: Float[Array, ""]
    items: dict[str, Float[Array, ""]]  # by modality

    @classmethod
    def of(cls, batch: Batch) -> Totals:
        """What a whole batch is divided by."""
        items = {name: jnp.maximum(media.weight.sum(), 1) for name, media in batch.media.items()}
        return cls(jnp.maximum(batch.token_weight.sum(), 1), items)


class ItemLosses(NamedTuple):
    """Of each item of one modality."""

    loss: Float[Array, "B N"]  # mean squared error over its values
    timesteps: Int[Array, "B N"]


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a static argument of jit
class TransformerTask:
    """What every task of a `Model` has."""

    config: Config

    @cached_property
    def model(self) -> Model:
        """The network."""
        return Model(self.config.model)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        return self.model.init(key)

    def axes(self) -> AxisNames:
        """See `Task.axes`."""
        return self.model.axes()

    @cached_property
    def parameters(self) -> int:
        """See `Task.parameters`."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.model.abstract_params()))

    def label(self, path: tuple) -> str:
        """Every parameter is trained."""
        del path
        return "adamw"

    def flops(self, counts: dict[str, float]) -> float:
        """Exact operations of the step that reported these counts."""
        c = counts
        sizes = c.get("patches"), c.get("patch_pairs")
        return float(self.model.flops(c["elements"], c["text_losses"], c["images"], c["span_area"], *sizes))

    def size_groups(self, media: Media) -> dict[str, Bool[Array, "B N"]]:
        """Which items lie in each bucket of sizes; no buckets where all images have one size."""
        return size_buckets(media.sizes, self.config.model.patches) if self.config.model.max_side else {}

    def report(
        self, batch: Batch, tokens: TokenLosses, row_loss: Float[Array, " B"], sums: Parts
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss and what is logged of it: the given sums, the z-loss where there is one, and counts."""
        if self.config.z_loss:
            sums = sums | {"loss_z": (jnp.sum(tokens.squares), jnp.sum(tokens.weight))}
        used = batch.source >= 0
        counts = {
            "elements": jnp.sum(used),
            "text_losses": jnp.sum(tokens.weight > 0),
            "images": sum((jnp.sum(media.source >= 0) for media in batch.media.values()), jnp.array(0)),
            "span_area": jnp.sum(jnp.where(used, batch.span_end - batch.span_start, 0).astype(jnp.float32)),
        }
        if self.config.model.max_side:
            sizes = jnp.concatenate([media.sizes for media in batch.media.values()], axis=1)
            counts["patches"] = jnp.sum(sizes)
            counts["patch_pairs"] = jnp.sum(jnp.square(sizes.astype(jnp.float32)))
        value = jnp.sum(row_loss)
        return value, Metrics(value, sums, counts, batch.row, row_loss)


class TransfusionTask(TransformerTask):
    """See the module's text."""

    @cached_property
    def schedule(self) -> Path:
        """The images' noise schedule."""
        return make_schedule(self.config.diffusion)

    def gradients(
        self, params: Params, batch: Batch, key: Key[Array, ""], step: Int[Any, ""] | int
    ) -> tuple[Params, Metrics]:
        """See `Task.gradients`; the losses do not depend on the step."""
        del step
        totals = Totals.of(batch)
        return accumulated_gradients(
            lambda p, part: self.loss(p, part, key, totals), params, batch, self.config.accumulation, self.label
        )

    def label(self, path: tuple) -> str:
        """Every parameter is trained, or those of patches alone."""
        names = {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}
        frozen = self.config.optimizer.frozen == "text" and not names & {PATCHES, "patch_coder"}
        return "frozen" if frozen else "adamw"

    def flops(self, counts: dict[str, float]) -> float:
        """See `TransformerTask.flops`; gradients of frozen weights are not computed."""
        flops = super().flops(counts)
        if self.config.optimizer.frozen == "text":
            patches = counts.get("patches", counts["images"] * self.config.model.patches)
            flops -= self.model.text_weight_flops(counts["elements"] - patches, counts["text_losses"])
        return flops

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], totals: Totals
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of some rows of a batch whose totals are given, and its parts for the log."""
        tokens, items = self.element_losses(params, batch, key)
        row_loss = jnp.sum(tokens.loss * tokens.weight, axis=1) / totals.tokens
        for name, modality in self.config.modalities.items():
            of_items = jnp.sum(items[name].loss * batch.media[name].weight, axis=1) / totals.items[name]
            row_loss = row_loss + modality.loss_weight * of_items
        if self.config.z_loss:
            row_loss = row_loss + self.config.z_loss * jnp.sum(tokens.squares, axis=1) / totals.tokens
        return self.report(batch, tokens, row_loss, self._parts(batch, tokens, items))

    def element_losses(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TokenLosses, dict[str, ItemLosses]]:
        """Each token's losses and weight, and those of each item by modality."""
        model = self.model.bind(params)
        ((name, media),) = batch.media.items()
        diffusion = self.config.modalities[name].diffusion
        keys = objective.image_keys(key, batch.row, media.grid.shape[1])
        noised, target, timesteps = objective.corrupt(keys, media, self.config.model, diffusion, self.schedule)
        x, skips = model.embed(batch.tokens, batch.patch, noised, timesteps)
        hidden, _ = model.trunk(x, batch.spans, batch.positions, patch_places=media.element)
        tokens = model.text_losses(hidden, batch.targets, batch.token_weight, self.config.data.text_capacity)
        predicted = media.unpack(model.denoise(hidden, media, timesteps, skips), self.config.model)
        loss = media.mean(jnp.square(predicted - target))
        return tokens, {name: ItemLosses(loss, timesteps)}

    def held_out(self, params: Params, batch: Batch, key: Key[Array, ""]) -> Parts:
        """The losses of `evaluation.suites.loss` with their weights, by name; of items by noise and size, too."""
        tokens, items = self.element_losses(params, batch, key)
        parts: Parts = {"loss_text": (tokens.loss, tokens.weight)}
        for name, modality in self.config.modalities.items():
            metric, media = f"loss_{modality.singular}", batch.media[name]
            parts[metric] = items[name].loss, media.weight
            for group, here in self._groups(media, items[name].timesteps).items():
                parts[f"{metric}/{group}"] = items[name].loss, media.weight * here
        return parts

    def _groups(self, media: Media, t: Int[Array, "B N"]) -> dict[str, Bool[Array, "B N"]]:
        """Which items lie in each bin of timesteps, where clean ones lie in none, and in each bucket of sizes."""
        bins = (t - 1) * NOISE_BINS // self.schedule.timesteps
        return {f"noise_{i}": bins == i for i in range(NOISE_BINS)} | self.size_groups(media)

    def _parts(self, batch: Batch, tokens: TokenLosses, items: dict[str, ItemLosses]) -> Parts:
        """Sums of the losses apart, by source, by direction, by noise and by size."""
        before, total = patches_seen(batch)
        sources = self.config.data.source_names
        of_tokens = {
            "": jnp.array(True),
            "/caption_first": (total > 0) & (before == 0),
            "/image_first": before > 0,
            **{f"/source_{name}": batch.source == i for i, name in enumerate(sources)},
        }
        sums = {f"loss_text{group}": _sums(tokens.loss, tokens.weight, here) for group, here in of_tokens.items()}
        for name, modality in self.config.modalities.items():
            media, (loss, timesteps) = batch.media[name], items[name]
            of_items = {
                "": jnp.array(True),
                "/caption_first": ~media.comes_first,
                "/image_first": media.comes_first,
                **{f"/{group}": here for group, here in self._groups(media, timesteps).items()},
                **{f"/source_{source}": media.source == i for i, source in enumerate(sources)},
            }
            metric = f"loss_{modality.singular}"
            sums |= {f"{metric}{group}": _sums(loss, media.weight, here) for group, here in of_items.items()}
        return sums


def _sums(
    loss: Float[Array, "*shape"], weight: Float[Any, "*shape"], here: Bool[Any, " ..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Of the losses somewhere, and of their weights."""
    weight = weight * here
    return jnp.sum(loss * weight), jnp.sum(weight)


def size_buckets(elements: Int[Any, "B N"], nominal: int) -> dict[str, Bool[Array, "B N"]]:
    """Which images lie in each bucket of sizes, the smallest first; empty slots lie in none.

    Each bucket has four times the elements of the one before, twice the side: `size_2` has images of more than a
    quarter of the nominal elements, `size_1` of more than a sixteenth, `size_0` the others. So the names do not
    depend on the data, and images of one size are all in the last bucket.

    Args:
        elements: of each image; 0 where there is none.
        nominal: elements of the largest image.
    """
    bucket = sum(elements * 4**quarters > nominal for quarters in range(1, SIZES))
    return {f"size_{i}": (bucket == i) & (elements > 0) for i in range(SIZES)}


def patches_seen(batch: Batch) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Patches that stand before each element in its document, and patches in its whole document."""
    running = jnp.cumsum(batch.patch >= 0, axis=1)
    before_row = jnp.pad(running, ((0, 0), (1, 0)))
    at_start = jnp.take_along_axis(before_row, batch.span_start, 1)
    before = before_row[:, :-1] - at_start

    def per_document(patches: Int[Array, " T"], start: Int[Array, " T"]) -> Int[Array, " T"]:
        return jax.ops.segment_sum(patches, start, num_segments=len(start))[start]

    return before, jax.vmap(per_document)((batch.patch >= 0).astype(jnp.int32), batch.span_start)
