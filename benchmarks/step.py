"""The training step on this machine's CPU: `transfusion_jax` beside plain PyTorch and transfusion-pytorch.

    python benchmarks/step.py

A step is a forward and a backward pass, clipping and an AdamW update, in float32, on one batch whose rows
hold captioned images and then a text. Plain PyTorch (`pytorch_step.py`) computes the same losses and update. With
rematerialisation the step computes some activations again in its backward pass; PyTorch's keeps all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transfusion_pytorch

import harness
import pytorch_step
from harness import compare, matmul_peak, parser, publish
from training import config_of, make_batch, our_step, shape_flags, title_of, with_remat
from transfusion_jax.config import Config, ModelConfig
from transfusion_jax.data.batch import Batch

OURS = {"transfusion_jax": "none", "with remat dots": "dots", "with remat full": "full"}
LIBRARY_MARKS = 3 + 2 + 129  # ids that it adds to the tokenizer's: sentence, modality and shape marks
LIBRARY_NOTES = [
    "transfusion-pytorch: equal width, depth, heads, hidden size, vocabulary and elements. No option of it works",
    "without time-conditioned norms and gates, attention over earlier layers, U-Net skips, soft-capped scores and",
    "a text head on every element; its image loss is flow matching. So no FLOP/s are given for it.",
]


def main() -> None:
    """Measures and prints."""
    flags = parser(__doc__, plot=True)
    shape_flags(flags)
    args = flags.parse_args()
    config = config_of(args)
    batch = make_batch(config)
    ours = {name: harness.apart(our_step, with_remat(config, remat), batch) for name, remat in OURS.items()}
    work = next(work for _, work in ours.values())
    report = compare(
        title_of(config),
        {
            **{name: run for name, (run, _) in ours.items()},
            "plain PyTorch": harness.apart(plain_step, config, batch)[0],
            "transfusion-pytorch": harness.apart(library_step, config)[0],
        },
        reference="plain PyTorch",
        rounds=args.rounds,
        work=dict.fromkeys((*ours, "plain PyTorch"), work),
        peak=matmul_peak({"PyTorch": pytorch_step.matmul_flops}),
        notes=LIBRARY_NOTES,
    )
    publish(report, args.json, args.plot)


def plain_step(config: Config, batch: Batch) -> tuple[Callable[[], object], None]:
    """The same in plain PyTorch."""
    return pytorch_step.make_step(config, batch), None


def library_model(shape: ModelConfig, **options: Any) -> transfusion_pytorch.Transfusion:
    """transfusion-pytorch's model of the same width, depth, heads, hidden size, vocabulary and patches."""
    return transfusion_pytorch.Transfusion(
        num_text_tokens=shape.padded_vocabulary - LIBRARY_MARKS,
        dim_latent=shape.patch_channels,
        modality_default_shape=(shape.patches,),
        prob_uncond=0.0,
        transformer={
            "dim": shape.width,
            "depth": shape.layers,
            "heads": shape.heads,
            "dim_head": shape.head_channels,
            "ff_expansion_factor": 1.5 * (shape.mlp_width + 0.5) / shape.width,  # it takes 2/3 and rounds down
            "qk_rmsnorm": False,
            "attn_kwargs": {"gate_values": False},
        },
        **options,
    )


def library_step(config: Config) -> tuple[Callable[[], object], None]:
    """The same with transfusion-pytorch, as near to plain as its options go."""
    shape, data = config.model, config.data
    model = library_model(shape)
    optimizer = pytorch_step.make_optimizer(model, config.optimizer)
    marks = 3 + len(str(shape.patches))  # the image's shape is spelled out in front of it
    text = data.context_length - 1 - data.max_images * (shape.patches + marks)
    lengths = [len(part) for part in np.array_split(range(text), data.max_images + 1)]

    def row() -> list[torch.Tensor]:
        segments = []
        for length in lengths:
            segments += [
                torch.randint(shape.vocabulary - LIBRARY_MARKS, (length,)),
                torch.randn(shape.patches, shape.patch_channels),
            ]
        return segments[:-1]  # text stands at both ends

    rows = [row() for _ in range(config.batch_rows)]

    def run() -> None:
        pytorch_step.update(model, optimizer, model(rows), config.optimizer.gradient_clip)

    return run, None


if __name__ == "__main__":
    main()
