"""The training step on this machine's CPU: `transfusion_jax` beside plain PyTorch and transfusion-pytorch.

    python benchmarks/step.py

A step is a forward and a backward pass, clipping and an AdamW update, in float32, on one batch whose rows
hold captioned images and then a text. Plain PyTorch (`pytorch_step.py`) computes the same losses and update.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import torch
import transfusion_pytorch

import pytorch_step
from harness import compare, matmul_peak, parser, publish
from transfusion_jax.config import Config, DataConfig, ModelConfig
from transfusion_jax.data.assemble import Piece, assemble
from transfusion_jax.data.batch import Batch, stack
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.training.state import create_state
from transfusion_jax.training.step import make_step
from transfusion_jax.training.transfusion import TransfusionTask

MODEL = ModelConfig(
    width=512,
    layers=8,
    heads=8,
    mlp_width=1408,
    vocabulary=8192 - 5,  # 8,192 with the special tokens
    latent_shape=(32, 32, 8),
    patch_size=2,
    compute_dtype="float32",
)
ELEMENTS_PER_IMAGE = 384  # one image of 256 patches for so many elements of a row
CAPTION = 30
LIBRARY_NOTES = [
    "transfusion-pytorch: equal width, depth, heads, hidden size, vocabulary and elements. No option of it works",
    "without time-conditioned norms and gates, attention over earlier layers, U-Net skips, soft-capped scores and",
    "a text head on every element; its image loss is flow matching. So no FLOP/s are given for it.",
]


def main() -> None:
    """Measures and prints."""
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, default=2, help="rows per batch (default: %(default)s)")
    flags.add_argument("--context", type=int, default=768, help="elements per row (default: %(default)s)")
    args = flags.parse_args()
    config = make_config(MODEL, args.rows, args.context)
    batch = make_batch(config)
    ours, work = our_step(config, batch)
    report = compare(
        f"train step, {args.rows} rows of {args.context} elements",
        {
            "transfusion_jax": ours,
            "plain PyTorch": pytorch_step.make_step(config, pytorch_step.TorchBatch.of(batch)),
            "transfusion-pytorch": library_step(config),
        },
        reference="plain PyTorch",
        rounds=args.rounds,
        work={"transfusion_jax": work, "plain PyTorch": work},
        peak=matmul_peak({"PyTorch": pytorch_step.matmul_flops}),
        notes=LIBRARY_NOTES,
    )
    publish(report, args.json)


def make_config(model: ModelConfig, rows: int, context: int) -> Config:
    """A run of this model; as many images per row as make two thirds of it patches."""
    images = context // ELEMENTS_PER_IMAGE
    data = DataConfig(
        context_length=context,
        max_images=images,
        max_text=context - images * model.patches,
        image_first=0.0,
        caption_dropout=0.0,
    )
    return Config(name="step", seed=0, steps=10_000, batch_rows=rows, model=model, data=data)


def make_batch(config: Config) -> Batch:
    """Rows of captioned images and a text that fills what is left, all of random content."""
    random = np.random.default_rng(0)
    special = SpecialTokens.after(config.model.vocabulary)

    def text(length: int) -> Text:
        return Text(random.integers(0, config.model.vocabulary, length, dtype=np.int32))

    def row(number: int) -> Batch:
        latents = random.normal(size=(config.data.max_images, *config.model.latent_shape)).astype(np.float32)
        documents = [Document((text(CAPTION), Image(latent))) for latent in latents]
        left = config.data.context_length - sum(d.length(config.model.patches) for d in documents)
        documents.append(Document((text(left - 1),)))  # BOS takes one
        pieces = [Piece(document, 0, document.length(config.model.patches), source=0) for document in documents]
        return assemble(number, pieces, config, special)

    return stack([row(number) for number in range(config.batch_rows)])


def our_step(config: Config, batch: Batch) -> tuple[Callable[[], None], float]:
    """The project's training step on one batch again and again, and its model operations."""
    task, mesh = TransfusionTask(config), make_mesh(config.mesh)
    step = make_step(task, config, mesh)
    on_device = jax.device_put(batch, batch_sharding(mesh))
    state, report = step(create_state(task, config, mesh), on_device)

    def run() -> None:
        nonlocal state
        state, report = step(state, on_device)
        jax.block_until_ready((state, report))

    return run, task.flops({name: float(value) for name, value in report.values.items()})


def library_step(config: Config) -> Callable[[], None]:
    """The same with transfusion-pytorch, as near to plain as its options go."""
    shape, data = config.model, config.data
    added = 3 + 2 + 129  # ids that it adds to the tokenizer's: sentence, modality and shape marks
    model = transfusion_pytorch.Transfusion(
        num_text_tokens=shape.padded_vocabulary - added,
        dim_latent=shape.patch_channels,
        modality_default_shape=(shape.patches,),
        prob_uncond=0.0,
        transformer={
            "dim": shape.width,
            "depth": shape.layers,
            "heads": shape.heads,
            "dim_head": shape.head_dim,
            "ff_expansion_factor": 1.5 * (shape.mlp_width + 0.5) / shape.width,  # it takes 2/3 and rounds down
            "qk_rmsnorm": False,
            "attn_kwargs": {"gate_values": False},
        },
    )
    optimizer = pytorch_step.make_optimizer(model, config.optimizer)
    marks = 3 + len(str(shape.patches))  # the image's shape is spelled out in front of it
    text = data.context_length - 1 - data.max_images * (shape.patches + marks)
    lengths = [len(part) for part in np.array_split(range(text), data.max_images + 1)]

    def row() -> list[torch.Tensor]:
        segments = []
        for length in lengths:
            segments += [
                torch.randint(shape.vocabulary - added, (length,)),
                torch.randn(shape.patches, shape.patch_channels),
            ]
        return segments[:-1]  # text stands at both ends

    rows = [row() for _ in range(config.batch_rows)]

    def run() -> None:
        pytorch_step.update(model, optimizer, model(rows), config.optimizer.gradient_clip)

    return run


if __name__ == "__main__":
    main()
