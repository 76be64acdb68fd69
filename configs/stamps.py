"""Tux Paint's stamps: 784 drawings and photographs with their captions, under an hour on two CPU cores.

    apt-get install tuxpaint-stamps-default
    transfusion prepare stamps --output data/stamps --image-size 48 --held-out 0.1 --tokenizer bpe:512 \\
        --encode dct-f4c12
    transfusion train --config configs/stamps.py --workdir runs/stamps
    transfusion sample --workdir runs/stamps --prompt "A green apple." --prompt "A frog." -n 4 --output stamps.png

The pictures are cropped to squares. With the argument `native` they keep their proportions, up to 8:1:

    transfusion prepare stamps --output data/stamps-native --aspect native --area 48x48 --multiple 8 \\
        --max-aspect 8 --held-out 0.1 --tokenizer bpe:512 --encode dct-f4c12
    transfusion train --config configs/stamps.py:native --workdir runs/stamps-native

Those that are kept from training, about a tenth, say what a model of this size has learnt beyond the others, each
of which it sees more than two hundred times.
"""

from typing import Any

from ml_collections import ConfigDict

SQUARE = dict(
    name="stamps",
    seed=0,
    steps=4000,
    batch_rows=8,
    model=dict(
        width=256,
        init_std=0.06,
        layers=6,
        heads=4,
        mlp_width=704,
        vocabulary=512,
        latent_shape=(12, 12, 12),
        patch_size=2,
        rope_sections=(8, 12, 12),
    ),
    data=dict(
        sources=dict(stamps=dict(path="data/stamps")),
        encoding="dct-f4c12",
        context_length=256,
        max_images=6,
        image_first=0.1,
        caption_dropout=0.1,
    ),
    diffusion=dict(image_first_limit=500),
    optimizer=dict(
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        warmup_steps=200,
        ema_decay=0.999,
    ),
    sampling=dict(steps=50, guidance=2.0),
    loop=dict(log_every=50, save_every=500, evaluate_every=500, sample_every=1000),
)
NATIVE = {"model.max_side": 36, "data.max_images": 10, "data.sources.stamps.path": "data/stamps-native"}
VARIANTS: dict[str, dict[str, Any]] = {"": {}, "native": NATIVE}  # by the argument, what is changed


def get_config(arg: str = "") -> ConfigDict:
    """The config of a variant."""
    if arg not in VARIANTS:
        raise ValueError(f"unknown argument {arg!r}: native, or none")
    config = ConfigDict(SQUARE)
    config.update_from_flattened_dict(VARIANTS[arg])
    return config
