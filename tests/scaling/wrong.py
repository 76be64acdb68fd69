"""Trains with a deliberate mistake in it: `python wrong.py MISTAKE train …`."""

import sys
from dataclasses import replace

import jax
import numpy as np

from transfusion_jax import cli
from transfusion_jax.config import NOISE_SCHEDULES
from transfusion_jax.config.choices import Entry
from transfusion_jax.data import row
from transfusion_jax.tasks.transfusion import TransfusionTask


def causal_images():
    """Patches see none that come after them."""
    change_layouts(lambda layout: replace(layout, span_end=np.arange(len(layout.tokens)) + 1))


def shifted_targets():
    """A token predicts itself."""
    change_layouts(lambda layout: replace(layout, targets=layout.tokens))


def no_text_loss():
    """Texts are not learnt."""
    change_losses(lambda texts, images: (texts._replace(loss=jax.lax.stop_gradient(texts.loss)), images))


def no_image_loss():
    """Images are not learnt."""
    change_losses(lambda texts, images: (texts, jax.lax.stop_gradient(images)))


def linear_schedule():
    """Noise rises as in another schedule."""
    NOISE_SCHEDULES._added["cosine"] = Entry("", lambda: NOISE_SCHEDULES["linear"])


def change_losses(change):
    right = TransfusionTask.element_losses

    def wrong(self, params, batch, key):
        texts, items = right(self, params, batch, key)
        texts, loss = change(texts, items["images"].loss)
        return texts, {"images": items["images"]._replace(loss=loss)}

    TransfusionTask.element_losses = wrong


def change_layouts(change):
    right = row.lay_out
    row.lay_out = lambda *arguments: change(right(*arguments))


MISTAKES = {f.__name__: f for f in (causal_images, shifted_targets, no_text_loss, no_image_loss, linear_schedule)}

if __name__ == "__main__":
    MISTAKES[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
