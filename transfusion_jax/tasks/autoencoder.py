"""The task of training an image autoencoder, with the paper's losses (appendix A).

`L = L1 + LPIPS + 0.5 · GAN + 0.2 · identity + 1e-6 · KL`, or with a codebook its own term in place of KL. Each is
a mean over an image, then over the global batch. A patch discriminator learns beside it, from the same backward
pass: what each of the two must not learn from is cut off by `stop_gradient`.

Parameters: `network`, `discriminator` where the GAN weighs, and `perceptual`, which stays as its files have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transfusion_jax.autoencoder import discriminator, perceptual
from transfusion_jax.autoencoder.network import Network, nearest_entries
from transfusion_jax.config import AutoencoderRun
from transfusion_jax.data.image_stream import ImageBatch
from transfusion_jax.diffusion.objective import image_keys
from transfusion_jax.model.transfusion import FORWARD_AND_BACKWARD
from transfusion_jax.parallel.sharding import AxisNames
from transfusion_jax.tasks.base import Metrics, Params, accumulated_gradients

LABELS = {"network": "adamw", "discriminator": "discriminator", "perceptual": "frozen"}
PEAK_TO_PEAK = 2.0  # of pixels in [−1, 1]


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a static argument of jit
class AutoencoderTask:
    """See the module's text; a `Task`."""

    config: AutoencoderRun

    @cached_property
    def network(self) -> Network:
        """The autoencoder."""
        return Network(self.config.architecture)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, and the perceptual networks'.

        Raises:
            ConfigError: their files are not there, or hold something else.
        """
        losses = self.config.losses
        params: Params = {"network": self.network.init(key)}
        if losses.gan:
            channels = self.config.architecture.image_channels
            params["discriminator"] = discriminator.init(channels, jax.random.fold_in(key, 1))
        if self.perceptual:
            params["perceptual"] = self.perceptual
        return params

    def axes(self) -> AxisNames:
        """See `Task.axes`; the perceptual networks are split nowhere."""
        parts = {"network": self.network.axes()}
        if self.config.losses.gan:
            parts["discriminator"] = discriminator.axes(self.config.architecture.image_channels)
        for name, arrays in self.perceptual.items():
            parts[f"perceptual/{name}"] = {leaf: ("norm",) * array.ndim for leaf, array in arrays.items()}
        return {f"{part}/{name}": names for part, axes in parts.items() for name, names in axes.items()}

    def gradients(
        self, params: Params, batch: ImageBatch, key: Key[Array, ""], step: Int[Any, ""] | int
    ) -> tuple[Params, Metrics]:
        """See `Task.gradients`."""
        images = len(batch.row)
        return accumulated_gradients(
            lambda p, part: self.loss(p, part, key, step, images),
            params,
            batch,
            self.config.accumulation,
            self.label,
        )

    @property
    def parameters(self) -> int:
        """See `Task.parameters`: those of encoder and decoder."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.network.abstract_params()))

    def label(self, path: tuple) -> str:
        """By the part of the parameters."""
        return LABELS[path[0].key]

    def loss(
        self, params: Params, batch: ImageBatch, key: Key[Array, ""], step: Int[Any, ""] | int, images: int
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of some images of a batch of so many, the discriminator's included, and its parts."""
        weights, image = self.config.losses, batch.image
        drawn, terms = self.reconstruct(params["network"], batch, key)
        error = drawn - image
        squared = jnp.mean(jnp.square(error), axis=(1, 2, 3))
        terms |= {"l1": jnp.mean(jnp.abs(error), axis=(1, 2, 3)), "l2": squared}
        for name, distance in (("lpips", perceptual.lpips), ("identity", perceptual.identity_distance)):
            if getattr(weights, name):
                terms[name] = distance(jax.lax.stop_gradient(params["perceptual"][name]), drawn, image)
        row_loss = sum(getattr(weights, name) * term for name, term in terms.items())
        if weights.gan:
            terms |= self._adversary(params["discriminator"], image, drawn)
            on = step >= weights.gan_from
            row_loss = row_loss + jnp.where(on, weights.gan * terms["gan"] + terms["discriminator"], 0)
        psnr = -10 * jnp.log10(jnp.maximum(squared, 1e-10) / PEAK_TO_PEAK**2)
        count = jnp.float32(len(image))
        sums = {f"loss_{name}": (jnp.sum(term), count) for name, term in terms.items()}
        sums |= {"psnr": (jnp.sum(psnr), count)}
        counts = {"images": count, "elements": count * self._elements}
        row_loss = row_loss / images
        value = jnp.sum(row_loss)
        return value, Metrics(value, sums, counts, batch.row, row_loss)

    def reconstruct(
        self, params: Params, batch: ImageBatch, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B H W C"], dict[str, Float[Array, " B"]]]:
        """Images through the bottleneck, and the bottleneck's terms."""
        weights = self.config.losses
        found = self.network.encode(params, batch.image)
        if self.config.architecture.kind == "kl":
            mean, log_variance = jnp.asarray(found.mean), jnp.asarray(found.log_variance)
            noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(image_keys(key, batch.row, 1)[:, 0])
            latents = mean + jnp.exp(0.5 * log_variance) * noise
            kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
            return self.network.decode(params, latents), {"kl": jnp.mean(kl, axis=(1, 2, 3))}
        vectors, entries = jnp.asarray(found.mean), self.network.lookup(params, jnp.asarray(found.codes))
        still = jax.lax.stop_gradient
        to_vectors = jnp.mean(jnp.square(entries - still(vectors)), axis=(1, 2, 3))
        to_entries = jnp.mean(jnp.square(vectors - still(entries)), axis=(1, 2, 3))
        terms = {"codebook": to_vectors + weights.commitment * to_entries}
        if weights.coverage:
            terms["coverage"] = coverage(still(vectors), params["quantize"]["entries"])
        passed_on = vectors + still(entries - vectors)  # straight through: the vectors get the entries' gradient
        return self.network.decode(params, passed_on), terms

    def flops(self, counts: dict[str, float]) -> float:
        """Operations of the step that reported these counts: the network's alone, as XLA counts one image's."""
        return FORWARD_AND_BACKWARD * self._flops_per_image * counts["images"]

    def _adversary(
        self, params: Params, image: Float[Any, "B H W C"], drawn: Float[Array, "B H W C"]
    ) -> dict[str, Float[Array, " B"]]:
        """What the discriminator says to the autoencoder, and what it learns itself."""
        still = jax.lax.stop_gradient
        says = discriminator.judge_patches(still(params), drawn)
        learns = discriminator.hinge(
            discriminator.judge_patches(params, image), discriminator.judge_patches(params, still(drawn))
        )
        return {"gan": -jnp.mean(says, axis=(1, 2)), "discriminator": learns}

    @cached_property
    def perceptual(self) -> dict[str, perceptual.Arrays]:
        """The networks that the losses need, as their files have them.

        Raises:
            ConfigError: a file is not there, or holds something else.
        """
        losses = self.config.losses
        found = {}
        if losses.lpips:
            found["lpips"] = perceptual.load_lpips(losses.lpips_weights)
        if losses.identity:
            found["identity"] = perceptual.load_identity(losses.identity_weights)
        return found

    @property
    def _elements(self) -> int:
        side = self.config.image_size // self.config.architecture.factor
        return side * side

    @cached_property
    def _flops_per_image(self) -> float:
        a, size = self.config.architecture, self.config.image_size
        image = jax.ShapeDtypeStruct((1, size, size, a.image_channels), jnp.float32)

        def both(params: Params, image: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
            return self.network.decode(params, jnp.asarray(self.network.encode(params, image).mean))

        counted: Any = jax.jit(both).lower(self.network.abstract_params(), image).cost_analysis()
        return float(counted["flops"])


def coverage(vectors: Float[Array, "B h w c"], entries: Float[Array, "n c"]) -> Float[Array, " B"]:
    """Mean squared distance of each entry to the nearest vector of the batch, the same for each image.

    Entries that no vector is near to get no gradient from the codebook's term; this one brings them back. It is the
    one term that depends on which images are computed together: the config allows it no accumulation.
    """
    flat = vectors.reshape(-1, vectors.shape[-1])
    distance = jnp.mean(jnp.square(entries - flat[nearest_entries(jax.lax.stop_gradient(entries), flat)]))
    return jnp.broadcast_to(distance, len(vectors))
