"""Operations of a step by formula: those of the model, those computed twice, and those on padding."""

from __future__ import annotations

from dataclasses import dataclass

from transfusion_jax.config import Config
from transfusion_jax.model.transfusion import Model
from transfusion_jax.planning.estimate import BACKWARD, KERNEL_PRODUCTS, Contents


@dataclass(frozen=True)
class Operations:
    """Of one step over all chips."""

    model: float  # forward and backward on what rows are expected to hold: what MFU counts
    padding: float  # on elements, text losses and images that a row has room for and does not hold
    recomputed: float  # in the backward pass: by the policy of rematerialisation, text head, attention, U-Net

    @property
    def total(self) -> float:
        """What the chips compute."""
        return self.model + self.padding + self.recomputed


def by_formula(config: Config, contents: Contents, tpu: bool) -> Operations:
    """Counted as `Model.flops` does; shapes are static, so that what a row has room for is computed."""
    model, data, rows = config.model, config.data, config.batch_rows
    length = data.context_length
    held = (contents.elements, contents.text_losses, contents.images, contents.span_area)
    room = (length, data.text_capacity, data.max_images, contents.span_area)
    if model.modality_weights == "untied":  # text's weights run on every element, those of patches on all images
        room = (length + data.max_images * model.patches, *room[1:])
    in_model = float(Model(model).flops(*(rows * n for n in held)))
    in_room = float(Model(model).flops(*(rows * n for n in room)))
    head = 2.0 * model.width * model.padded_vocabulary * data.text_capacity * rows
    again = sum(KERNEL_PRODUCTS[name] for name in BACKWARD[tpu]) - 4  # four products would do
    attention = 2.0 * model.layers * model.width * contents.span_area * rows
    recomputed = head + again * attention
    if model.remat == "full":  # all of a layer but its last product, which no gradient needs
        matrices = 4 * model.width**2 + 2 * model.width * model.mlp_width
        recomputed += 2.0 * model.layers * matrices * length * rows + 2 * attention
    if model.remat != "none" and model.patch_coder == "unet":  # its convolutions are no "dots"
        recomputed += Model(model).coder_flops * data.max_images * rows
    return Operations(in_model, in_room - in_model, recomputed)


def kernel_flops(name: str, config: Config, contents: Contents, chips: int) -> float:
    """Of one execution of an attention kernel on one chip, in whole blocks; 0 for other kernels."""
    rows = config.batch_rows / config.accumulation
    products = KERNEL_PRODUCTS.get(name, 0)
    return 2.0 * products * config.model.width * contents.visited_area * rows / chips
