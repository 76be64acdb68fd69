"""How well an autoencoder gives images back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transfusion_jax.autoencoder.network import Network, Params
from transfusion_jax.data.image_stream import Images
from transfusion_jax.generation.png import grid
from transfusion_jax.parallel.sharding import to_host

PER_ROW = 8  # images in a row of the sheet
TOGETHER = 32  # images at a time, at the most


def spread(images: Images, count: int) -> np.ndarray:
    """So many images from all over, `[n, H, W, C]`; the same ones each time."""
    places = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int))
    return np.stack([images[place] for place in places.tolist()])


def reconstruct(
    network: Network, params: Params, images: np.ndarray, together: int = TOGETHER
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images from the mean of their latents, or from their codes, limited to [−1, 1]; and the codes.

    No more than `together` are computed at a time, as many as in training.
    """
    drawn, codes = [], []
    for begin in range(0, len(images), size := min(together, TOGETHER)):
        part, found = to_host(_reconstruct(network, params, images[begin : begin + size]))
        drawn.append(part)
        codes.append(found)
    return np.concatenate(drawn), None if codes[0] is None else np.concatenate(codes)


def measure_reconstruction(
    network: Network, images: np.ndarray, drawn: np.ndarray, codes: np.ndarray | None
) -> dict[str, float]:
    """`loss` (L1), `psnr` in dB, and of codes the share of entries that occur, and their perplexity."""
    error = drawn - images
    squared = np.maximum(np.mean(np.square(error), axis=(1, 2, 3)), 1e-10)
    metrics = {"loss": float(np.mean(np.abs(error))), "psnr": float(np.mean(10 * np.log10(4 / squared)))}
    if codes is not None:
        share = np.bincount(codes.ravel(), minlength=network.architecture.codebook) / codes.size
        metrics["codes_used"] = float(np.mean(share > 0))
        metrics["perplexity"] = float(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-12)))))
    return metrics


def sheet(images: np.ndarray, drawn: np.ndarray, count: int = 2 * PER_ROW) -> np.ndarray:
    """Rows of images, each above its reconstructions, `[H, W, 3]` uint8."""
    rows = [x[i : i + PER_ROW] for i in range(0, min(count, len(images)), PER_ROW) for x in (images, drawn)]
    return grid(np.concatenate(rows), PER_ROW)


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(network: Network, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    found = network.encode(params, images)
    codes = None if found.codes is None else jnp.asarray(found.codes)
    latents = jnp.asarray(found.mean) if codes is None else network.lookup(params, codes)
    return jnp.clip(network.decode(params, latents), -1, 1), codes
