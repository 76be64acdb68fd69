"""Your own captioned photographs, a few hundred or more: under an hour on two CPU cores.

    transfusion prepare photos/ --output data/photos --image-size 32 --held-out 0.1 --encode dct-f4c12
    transfusion doctor data/photos --output photos.png
    transfusion train --config configs/photos.py --workdir runs/photos
    transfusion sample --workdir runs/photos --prompt "a red bicycle" -n 4 --output drawn.png

`photos/` holds NAME.jpg and its caption NAME.txt. A tenth of the photographs is kept from training: of a few
hundred, that leaves some tens to evaluate on, and the default share of 0.01 two or three. Look at the contact
sheet that `doctor` draws before you train.

Captions are read as bytes: a few hundred hold too little text to learn a tokenizer from. For thousands, prepare
with `--tokenizer bpe:2048` and add `--config.model.vocabulary=2048`. Photographs of 64 pixels (`--image-size 64`)
want a GPU, `--config.model.latent_shape=(16,16,12)` and `--config.data.max_images=4`. A model of this size learns
a few hundred photographs by heart: what it makes of a new caption is mixed from them.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The config; it takes no argument."""
    if arg:
        raise ValueError(f"configs/photos.py takes no argument, not {arg!r}")
    return ConfigDict(
        dict(
            name="photos",
            seed=0,
            steps=2000,
            batch_rows=8,
            model=dict(
                width=256,
                init_std=0.06,
                layers=6,
                heads=4,
                mlp_width=704,
                vocabulary=256,
                latent_shape=(8, 8, 12),
                patch_size=2,
            ),
            data=dict(
                sources=dict(photos=dict(path="data/photos")),
                encoding="dct-f4c12",
                context_length=256,
                max_images=10,
                image_first=0.2,
                caption_dropout=0.1,
            ),
            diffusion=dict(image_first_limit=500),
            optimizer=dict(
                learning_rate=2e-3,
                final_learning_rate=2e-5,
                warmup_steps=100,
                ema_decay=0.995,
            ),
            sampling=dict(steps=50, guidance=2.0),
            loop=dict(log_every=50, save_every=250, evaluate_every=500, sample_every=500),
        )
    )
