"""Operations of a step by formula: those of the model, those computed twice, and those on padding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transfusion_jax.config import Config
from transfusion_jax.model.transfusion import Model
from transfusion_jax.planning.estimate import (
    BACKWARD,
    KERNEL_PRODUCTS,
    Contents,
    attending,
    unet_room,
    unet_runs_again,
)
from transfusion_jax.tasks.base import make_task


@dataclass(frozen=True)
class Operations:
    """Of one step over all chips."""

    model: float  # forward and backward on what rows are expected to hold: what MFU counts
    padding: float  # on elements, text losses and images that a row has room for and does not hold
    recomputed: float  # by the policy of rematerialisation, text head, attention, U-Net, heads that are not split

    @property
    def total(self) -> float:
        """What the chips compute."""
        return self.model + self.padding + self.recomputed


def by_formula(config: Config, contents: Contents, tpu: bool) -> Operations:
    """Counted as the task does; shapes are static, so that what a row has room for is computed."""
    model, data, rows = config.model, config.data, config.batch_rows
    length = data.context_length
    images, patches = data.max_images, sum(modality.patches for modality in config.modalities.values())
    if model.modality_weights == "untied":  # text's weights run on every element, those of patches on all images
        length += patches
    of_images = unet_room(config, contents)
    _, in_patches, in_pairs = of_images
    room = replace(
        contents,
        elements=length,
        text_losses=data.text_capacity,
        images=images,
        patches=in_patches,
        pairs=in_pairs,
    )
    in_model, in_room = (make_task(config).flops(each.counts(rows)) for each in (contents, room))
    head = 2.0 * model.width * model.padded_vocabulary * data.text_capacity * rows
    again = sum(KERNEL_PRODUCTS[name] for name in BACKWARD[tpu]) - 4  # four products would do
    attention = 2.0 * model.layers * model.query_width * contents.span_area * rows
    recomputed, passes = head + again * attention, 6 + again  # in products: two forward, the rest backward
    if model.remat == "full":  # all of a layer but its last product, which no gradient needs
        matrices = 2 * model.width * (model.query_width + model.key_width + model.mlp_width)
        recomputed += 2.0 * model.layers * matrices * data.context_length * rows + 2 * attention
        passes += 2
    recomputed += (attending(model, config.mesh.tensor) - 1) * passes * attention
    if any(m.coder == "unet" for m in config.modalities.values()) and unet_runs_again(config):
        recomputed += Model(model).coder_flops(*(rows * n for n in of_images))
    return Operations(in_model, in_room - in_model, recomputed)


def kernel_flops(name: str, config: Config, contents: Contents, chips: int) -> float:
    """Of one execution of an attention kernel on one chip, in whole blocks; 0 for other kernels."""
    rows = config.batch_rows / config.accumulation
    products = KERNEL_PRODUCTS.get(name, 0) * attending(config.model, config.mesh.tensor)
    return 2.0 * products * config.model.query_width * contents.visited_area * rows / chips
