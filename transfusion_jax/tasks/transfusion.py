"""The Transfusion task: next-token loss on text plus λ times the diffusion loss on images.

`L = L_text + λ · L_image`. Both are sums over the global batch divided by global counts: tokens for the text;
images, each the mean over its latent elements. Packing, accumulation and sharding never change the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transfusion_jax.config import PATCHES, Config
from transfusion_jax.data.batch import Batch
from transfusion_jax.diffusion import objective
from transfusion_jax.diffusion.schedule import Path, make_schedule
from transfusion_jax.model.layers import find_patches, gather_patches
from transfusion_jax.model.transfusion import Model, Params, TokenLosses
from transfusion_jax.parallel.sharding import AxisNames
from transfusion_jax.tasks.base import Metrics, accumulated_gradients

Parts = dict[str, tuple[jax.Array, jax.Array]]  # by name: losses and their weights, or the sums of both
NOISE_BINS = 4  # the timesteps in equal parts, from the cleanest


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """Counts over the global batch, never below one."""

    tokens: Float[Array, ""]
    images: Float[Array, ""]

    @classmethod
    def of(cls, batch: Batch) -> Totals:
        """What a whole batch is divided by."""
        return cls(jnp.maximum(batch.token_weight.sum(), 1), jnp.maximum(batch.image_weight.sum(), 1))


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
        return float(self.model.flops(c["elements"], c["text_losses"], c["images"], c["span_area"]))

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
            "images": jnp.sum(batch.image_source >= 0),
            "span_area": jnp.sum(jnp.where(used, batch.span_end - batch.span_start, 0).astype(jnp.float32)),
        }
        value = jnp.sum(row_loss)
        return value, Metrics(value, sums, counts, batch.row, row_loss)


class TransfusionTask(TransformerTask):
    """See the module's text."""

    @cached_property
    def schedule(self) -> Path:
        """The noise schedule."""
        return make_schedule(self.config.diffusion)

    def gradients(
        self, params: Params, batch: Batch, key: Key[Array, ""], step: Int[Any, ""] | int
    ) -> tuple[Params, Metrics]:
        """See `Task.gradients`; the losses do not depend on the step."""
        del step
        totals = Totals.of(batch)
        return accumulated_gradients(
            lambda p, part: self.loss(p, part, key, totals), params, batch, self.config.accumulation
        )

    def label(self, path: tuple) -> str:
        """Every parameter is trained, or those of patches alone."""
        names = {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}
        frozen = self.config.optimizer.frozen == "text" and not names & {PATCHES, "patch_coder"}
        return "frozen" if frozen else "adamw"

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], totals: Totals
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of some rows of a batch whose totals are given, and its parts for the log."""
        tokens, image_loss, timesteps = self.element_losses(params, batch, key)
        text = jnp.sum(tokens.loss * tokens.weight, axis=1) / totals.tokens
        image = jnp.sum(image_loss * batch.image_weight, axis=1) / totals.images
        row_loss = text + self.config.image_loss_weight * image
        if self.config.z_loss:
            row_loss = row_loss + self.config.z_loss * jnp.sum(tokens.squares, axis=1) / totals.tokens
        return self.report(batch, tokens, row_loss, self._parts(batch, tokens, image_loss, timesteps))

    def element_losses(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TokenLosses, Float[Array, "B N"], Int[Array, "B N"]]:
        """Each token's losses and weight, each image's squared error and timestep."""
        model, config = self.model.bind(params), self.config.model
        images = batch.latents.shape[1]
        keys = objective.image_keys(key, batch.row, images)
        noised, target, timesteps = objective.corrupt(
            keys, batch.latents, batch.timestep_limit, self.schedule, self.config.diffusion.objective
        )
        x, skips = model.embed(batch.tokens, batch.image_slot, batch.patch_index, noised, timesteps)
        places = find_patches(batch.image_slot, images, config.patches)
        hidden, _ = model.trunk(x, batch.spans, batch.positions, patch_places=places)
        tokens = model.text_losses(hidden, batch.targets, batch.token_weight, self.config.data.text_capacity)
        patches = gather_patches(hidden, batch.image_slot, images, config.patches)
        predicted = model.denoise(patches, timesteps, skips)
        image_loss = jnp.mean(jnp.square(predicted - target), axis=(2, 3, 4))
        return tokens, image_loss, timesteps

    def held_out(self, params: Params, batch: Batch, key: Key[Array, ""]) -> Parts:
        """The losses of `evaluation.suites.loss` with their weights, by name; those of images by noise, too."""
        tokens, image_loss, t = self.element_losses(params, batch, key)
        parts = {"loss_text": (tokens.loss, tokens.weight), "loss_image": (image_loss, batch.image_weight)}
        for name, here in self._noise(t).items():
            parts[f"loss_image/{name}"] = image_loss, batch.image_weight * here
        return parts

    def _noise(self, t: Int[Array, "B N"]) -> dict[str, Bool[Array, "B N"]]:
        """Which images lie in each bin of timesteps; clean ones lie in none."""
        bins = (t - 1) * NOISE_BINS // self.schedule.timesteps
        return {f"noise_{i}": bins == i for i in range(NOISE_BINS)}

    def _parts(
        self, batch: Batch, tokens: TokenLosses, image_loss: Float[Array, "B N"], t: Int[Array, "B N"]
    ) -> Parts:
        """Sums of the losses apart, by source, by direction and by noise."""

        def text(where: Bool[Any, " ..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
            weight = tokens.weight * where
            return jnp.sum(tokens.loss * weight), jnp.sum(weight)

        def image(where: Bool[Any, " ..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
            weight = batch.image_weight * where
            return jnp.sum(image_loss * weight), jnp.sum(weight)

        anywhere = jnp.array(True)
        before, total = images_seen(batch)
        sums = {
            "loss_text": text(anywhere),
            "loss_text/caption_first": text((total > 0) & (before == 0)),
            "loss_text/image_first": text(before > 0),
            "loss_image": image(anywhere),
            "loss_image/caption_first": image(~batch.image_first),
            "loss_image/image_first": image(batch.image_first),
        }
        sums |= {f"loss_image/{name}": image(here) for name, here in self._noise(t).items()}
        for i, name in enumerate(self.config.data.source_names):
            sums[f"loss_text/source_{name}"] = text(batch.source == i)
            sums[f"loss_image/source_{name}"] = image(batch.image_source == i)
        return sums


def images_seen(batch: Batch) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Patches that stand before each element in its document, and patches in its whole document."""
    running = jnp.cumsum(batch.image_slot >= 0, axis=1)
    before_row = jnp.pad(running, ((0, 0), (1, 0)))
    at_start = jnp.take_along_axis(before_row, batch.span_start, 1)
    before = before_row[:, :-1] - at_start

    def per_document(patches: Int[Array, " T"], start: Int[Array, " T"]) -> Int[Array, " T"]:
        return jax.ops.segment_sum(patches, start, num_segments=len(start))[start]

    return before, jax.vmap(per_document)((batch.image_slot >= 0).astype(jnp.int32), batch.span_start)
