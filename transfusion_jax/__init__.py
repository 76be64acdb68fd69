"""Transfusion pretraining in JAX: next-token loss on text, diffusion loss on images, one transformer."""

import os
from importlib.metadata import version

__version__ = version("transfusion-jax")

# XLA's YNN fusions on CPU (jaxlib 0.10) compute some batched gradients wrongly; see
# docs/decisions.md. The flag is read when a backend first starts, and has no effect on accelerators.
if "xla_cpu_experimental_ynn_fusion_type" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_experimental_ynn_fusion_type="
