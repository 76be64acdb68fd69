"""A step by formulas: its work, its exchanges and its memory on one chip, without a compiler.

It follows what XLA makes of the step on TPU, as the plans that benchmarks/plans.py compiles show it: weights are
gathered in bfloat16 beside products, gradients are reduced in bfloat16, and what is saved for the backward pass
depends on the policy of rematerialisation. How far it is off is written there, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transfusion_jax.config import Config, ModelConfig
from transfusion_jax.data.batch import abstract_batch, bytes_of_batch
from transfusion_jax.flops import count_parameters
from transfusion_jax.kernels.cross_entropy import CHUNK
from transfusion_jax.model.coders import unet
from transfusion_jax.model.transfusion import Model
from transfusion_jax.parallel.sharding import head_split
from transfusion_jax.planning.roofline import COLLECTIVES, Collective, Work

KERNEL_PRODUCTS = {  # of an attention kernel, in products of queries, keys and channels
    "span_attention_forward": 2,
    "span_attention_backward": 5,  # TPU: one kernel, which computes the scores again
    "span_attention_d_query": 3,  # GPU: two kernels, and both do
    "span_attention_d_key": 4,
}
BACKWARD = {True: ("span_attention_backward",), False: ("span_attention_d_query", "span_attention_d_key")}  # TPU?


@dataclass(frozen=True)
class Contents:
    """Means of one row."""

    elements: float  # padding left out
    text_losses: float
    images: float
    span_area: float  # keys, summed over the elements that may attend to them
    visited_area: float  # the same in whole blocks of an attention kernel
    patches: float | None = None  # of the images; None: each has those of `latent_shape`
    pairs: float | None = None  # Σ over the images of the square of their patches; None: as before

    def counts(self, rows: int) -> dict[str, float]:
        """Of so many rows, as `Task.flops` takes them."""
        found = {
            "elements": self.elements,
            "text_losses": self.text_losses,
            "images": self.images,
            "span_area": self.span_area,
            "patches": self.patches,
            "patch_pairs": self.pairs,
        }
        return {name: rows * value for name, value in found.items() if value is not None}


BESIDE = 12  # times that the residual stream goes through HBM in a pass over a layer, beside its products
TILE = 16  # rows of bfloat16 in a TPU's tile: of fewer, XLA makes a gather by a sum
PROGRAM = 64 * 2**20  # bytes of code, whatever the size
GATHERS = {"none": 2.0, "dots": 2.0, "full": 2.35}  # of all weights in a step: forward and backward, some twice


@dataclass(frozen=True)
class Estimate:
    """A step on one chip."""

    work: list[Work]
    collectives: list[Collective]
    temporary: float  # bytes beside state and batch
    evaluation: float  # the same of an evaluation, which computes as many rows at a time; 0 where the run has none


@dataclass(frozen=True)
class _Share:
    """What one chip has of one part of a batch."""

    elements: float  # of its rows and its part of each row
    layer: float  # parameters of one layer, after the split over `tensor`
    width: float  # of the residual stream
    heads: float  # channels of queries here, all heads together
    keys: float  # channels of keys here, and of values
    mlp: float
    held: float  # parameters that it keeps
    trained: float  # those of them that are not frozen
    own: float  # patches that go through untied weights besides, the empty places with them
    images: float  # that a U-Net works on here, the empty slots with them; 0 with another patch coder
    patches: float  # of those images, and room for more where they are of any shape
    pairs: float  # of patches that attend to one another in a U-Net
    coder: float  # parameters of the U-Net
    item: int  # bytes of an activation


def estimate(config: Config, contents: Contents, mesh: dict[str, int], tpu: bool, item: int = 2) -> Estimate:
    """A step of a config on a mesh.

    Args:
        config: the run; its own mesh is not looked at.
        contents: what its rows hold.
        mesh: axes and sizes.
        tpu: whether the chips are TPUs.
        item: bytes of an activation: 2 for bfloat16.
    """
    model, tensor = config.model, mesh["tensor"]
    ways = mesh["data"] * mesh["fsdp"] * mesh["context"]
    split = mesh["fsdp"] * mesh["context"] * tensor
    elements = config.batch_rows * config.data.context_length / config.accumulation / ways
    room = sum(modality.patches for modality in config.modalities.values())
    matrices = model.width * (2 * model.query_width + 2 * model.key_width + 3 * model.mlp_width)
    has_unet = any(modality.coder == "unet" for modality in config.modalities.values())
    rows = config.batch_rows / config.accumulation / (mesh["data"] * mesh["fsdp"])
    counted = count_parameters(model)
    coder = counted.patch_coder if has_unet else 0
    trained = counted.total
    if config.optimizer.frozen == "text":
        trained = counted.patch_trunk + counted.patch_coder
    images, patches, pairs = (rows * n * has_unet for n in unet_room(config, contents))
    by_head = head_split(model.heads, model.key_value_heads, tensor)
    slots = mesh["context"] * tensor  # images of one size are split over these, too
    split_slots = slots if not model.max_side and config.data.max_images % slots == 0 else 1
    share = _Share(
        elements=elements,
        layer=matrices / tensor,
        width=model.width,
        heads=model.query_width / tensor * attending(model, tensor),
        keys=model.key_width / (tensor if by_head.keys else 1),
        mlp=model.mlp_width / tensor,
        held=(counted.total - coder) / split + coder * tensor / split,
        trained=(trained - coder) / split + coder * tensor / split,
        own=elements * room / config.data.context_length if counted.patch_trunk else 0.0,
        item=item,
        images=images / split_slots,
        patches=patches / split_slots,
        pairs=pairs / split_slots,
        coder=coder,
    )
    return Estimate(
        work=[*_trunk(config, share), *_attention(config, contents, share, mesh, BACKWARD[tpu])]
        + [*_head(config, share, mesh), *_coder(config, share), _update(config, share)],
        collectives=_collectives(config, share, mesh, tpu),
        temporary=_temporary(config, share, mesh),
        evaluation=_evaluation(config, share, mesh) if config.loop.evaluate_every else 0.0,
    )


def attending(model: ModelConfig, tensor: int) -> int:
    """How many devices of the mesh axis `tensor` compute attention of the same heads."""
    return 1 if head_split(model.heads, model.key_value_heads, tensor).queries else tensor


def _trunk(config: Config, s: _Share) -> list[Work]:
    """Products of the layers: each reads its weights, its input and writes its output. All else only moves."""
    times = config.model.layers * config.accumulation
    along = 4 * s.width + 2 * (s.heads + s.keys) + 2 * (s.width + s.mlp) + s.mlp + s.width  # inputs and outputs
    elements, sets = s.elements + s.own, 2 if s.own else 1
    learning = s.own if config.optimizer.frozen == "text" else elements  # whose weights have gradients
    forward = Work(2 * s.layer * elements, s.item * (sets * s.layer + along * elements), times)
    again = config.model.remat == "full"
    last = s.width * s.mlp
    return [
        forward,
        Work(2 * s.layer * (elements + learning), 2 * forward.bytes, times),
        *([Work(2 * (s.layer - last) * elements, forward.bytes, times)] if again else []),
        Work(0.0, BESIDE * s.item * s.width * s.elements, times * (3 if again else 2)),
    ]


def _attention(
    config: Config, contents: Contents, s: _Share, mesh: dict[str, int], backward: tuple[str, ...]
) -> list[Work]:
    chips = math.prod(mesh.values())
    rows = config.batch_rows / config.accumulation
    one = 2 * s.heads * contents.visited_area * rows * mesh["tensor"] / chips  # a product
    times = config.model.layers * config.accumulation
    traffic = 2 * s.item * s.elements * (s.heads + s.keys)
    forwards = times * (2 if config.model.remat == "full" else 1)
    products = sum(KERNEL_PRODUCTS[name] for name in backward)
    return [Work(2 * one, traffic, forwards), Work(products * one, 2 * traffic, times)]


def _head(config: Config, s: _Share, mesh: dict[str, int]) -> list[Work]:
    """The text head in chunks: each reads the head, and in the backward pass adds to its gradient in float32."""
    model, tensor = config.model, mesh["tensor"]
    entries = model.width * model.padded_vocabulary
    share = config.data.text_capacity / config.data.context_length / tensor
    chunks = max(1, math.ceil(config.data.text_capacity / mesh["context"] / tensor / CHUNK))
    flops = 2.0 * entries * s.elements * share / chunks
    times = chunks * config.accumulation
    if config.optimizer.frozen == "text":  # it has no gradient
        return [Work(flops, s.item * entries, times), Work(2 * flops, 2 * s.item * entries, times)]
    return [Work(flops, s.item * entries, times), Work(3 * flops, (2 * s.item + 8) * entries, times)]


def _coder(config: Config, s: _Share) -> list[Work]:
    """A U-Net's passes: each stage reads its weights and moves its input and output as a layer does its own."""
    if not s.images:
        return []
    flops = Model(config.model).coder_flops(s.images, s.patches, s.pairs)
    moved = s.item * (s.coder + BESIDE * _unet_values(config) * s.patches)
    forward = Work(flops, moved, config.accumulation * (2 if unet_runs_again(config) else 1))
    return [forward, Work(2 * flops, 2 * moved, config.accumulation)]


def _unet_values(config: Config) -> float:
    """Inputs of a U-Net's stages for one patch, all together."""
    area = config.model.patch_area
    return sum(stage.inputs * area / 4**stage.level for side in unet.stages(config.model) for stage in side)


def unet_room(config: Config, contents: Contents) -> tuple[float, float, float]:
    """Images, patches and pairs of patches that a U-Net computes in one row: all that there is room for.

    Where images are of any shape, their attention visits what they hold.
    """
    images, model = config.data.max_images, config.model
    patches = sum(modality.patches for modality in config.modalities.values())
    held = contents.pairs if model.max_side and contents.pairs is not None else images * model.patches**2
    return images, patches, held


def unet_runs_again(config: Config) -> bool:
    """Whether the backward pass computes a U-Net's convolutions again: "dots" keeps those that are products."""
    return config.model.remat == "full" or (config.model.remat == "dots" and not config.model.max_side)


def _update(config: Config, s: _Share) -> Work:
    """Parameters and two moments read and written, gradients read, and added to in each part."""
    arrays = (
        7 + (2 if config.optimizer.ema_decay else 0) + (3 * config.accumulation if config.accumulation > 1 else 0)
    )
    return Work(0.0, 4.0 * arrays * s.trained, 1)


def _collectives(config: Config, s: _Share, mesh: dict[str, int], tpu: bool) -> list[Collective]:
    """Weights gathered, gradients added up, and what `tensor` and `context` exchange in each pass over a layer."""
    model, parts = config.model, config.accumulation
    tables = model.width * (1 if model.tied_embeddings else 2)  # embedding and text head
    layers = model.layers * s.layer * (2 if s.own else 1)
    whole = s.item * (layers + tables * model.padded_vocabulary / mesh["tensor"] + s.coder)
    gradients = whole * s.trained / s.held
    activations = s.item * s.elements * s.width
    passes = (3 if model.remat == "full" else 2) * model.layers * parts
    sharded = ("fsdp", "context")
    split, tensor = math.prod(mesh[axis] for axis in sharded), mesh["tensor"]
    by_head = head_split(model.heads, model.key_value_heads, tensor)
    unsplit = [2 * model.key_width] * (not by_head.keys) + [model.query_width] * (not by_head.queries)
    narrow = tpu and s.width / split < TILE
    weights = ("all-reduce", whole) if narrow else ("all-gather", whole / split)
    exchanges = [  # kind and bytes of the operand, axes, whether it overlaps, times
        (*weights, sharded, not narrow, parts * GATHERS[model.remat]),
        ("all-reduce", gradients, sharded, False, parts),
        ("all-reduce", gradients / split, ("data",), False, parts),
        ("all-reduce", activations, ("tensor",), False, 2 * passes),
        ("all-gather", 2 * s.item * s.elements * s.keys, ("context",), False, passes),
        *(("all-gather", s.item * s.elements * n / tensor, ("tensor",), False, passes) for n in unsplit),
    ]
    found = []
    for kind, size, along, overlaps, times in exchanges:
        axes = tuple(axis for axis in along if mesh[axis] > 1)
        members = math.prod(mesh[axis] for axis in axes)
        if members > 1:
            sent = times * size * COLLECTIVES[kind](members)
            found.append(Collective(kind, axes, members, "bf16", overlaps, round(times), sent))
    return found


def _temporary(config: Config, s: _Share, mesh: dict[str, int]) -> float:
    """Activations kept for the backward pass, the layer that is at work, the text head, and gradients."""
    model = config.model
    kept = {"full": s.width, "dots": 3 * s.width + 2 * (s.heads + s.keys) + 2 * s.mlp}
    kept["none"] = kept["dots"] + 2 * s.width + 2 * (s.heads + s.keys) + 3 * s.mlp
    saved = model.layers * (s.elements + s.own) * kept[model.remat] * s.item
    at_work = s.item * (s.elements * (5 * s.mlp + 6 * s.width + 2 * (s.heads + s.keys)) + 3 * s.layer)
    entries = model.width * model.padded_vocabulary
    head = (4 + 2 * s.item) * entries + 3 * _logits(config, s, mesh)
    gradients = s.trained * (2 * s.item + 4 + (4 if config.accumulation > 1 else 0))
    images = 0.0
    if s.images:  # a block keeps its input, or what its products and norms take besides
        kept_of_unet = {"none": 6, "dots": 3 if model.max_side else 1, "full": 1}[model.remat]
        images = s.item * s.patches * _unet_values(config) * kept_of_unet
    return saved + at_work + head + gradients + images + PROGRAM


def _evaluation(config: Config, s: _Share, mesh: dict[str, int]) -> float:
    """A batch and the memory of a forward pass: the current layer, the text head and a U-Net's skips."""
    model, rows = config.model, min(config.evaluation.rows, config.batch_rows)
    at_work = s.item * (s.elements * (2 * s.mlp + 4 * s.width + 2 * (s.heads + s.keys)) + 2 * s.layer)
    head = s.item * model.width * model.padded_vocabulary + 2 * _logits(config, s, mesh)
    images = s.item * s.patches * _unet_values(config) if s.images else 0.0
    return bytes_of_batch(abstract_batch(config, rows)) + at_work + head + images + PROGRAM


def _logits(config: Config, s: _Share, mesh: dict[str, int]) -> float:
    """Bytes of the logits of a chunk of every row."""
    rows = s.elements * mesh["context"] / config.data.context_length
    return 4 * rows * CHUNK * config.model.padded_vocabulary
