"""Transfusion pretraining in JAX: next-token loss on text, diffusion loss on images, one transformer."""

from importlib.metadata import version

__version__ = version("transfusion-jax")
