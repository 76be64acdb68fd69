"""Transfusion pretraining in JAX: next-token loss on text, diffusion loss on images, one transformer."""

import time
from importlib.metadata import version

from transfusion_jax.parallel import flags

STARTED = time.time()  # when the process did, nearly: what a run's account of its time begins with
__version__ = version("transfusion-jax")

flags.apply()  # they are read when a backend first starts
