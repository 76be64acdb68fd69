"""No patches: the linear map of each latent pixel to a vector, and back."""

from __future__ import annotations

from transfusion_jax.model.coders import linear

PatchCoder = linear.PatchCoder
