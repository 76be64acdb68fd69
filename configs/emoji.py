"""Emoji and their Unicode names: thousands of captioned colour images, about an hour on two CPU cores.

    apt-get install fonts-noto-color-emoji libfribidi0
    transfusion prepare emoji --output data/emoji --image-size 32
    transfusion train --config configs/emoji.py --workdir runs/emoji
    transfusion sample --workdir runs/emoji --prompt "red heart" --prompt "smiling cat" -n 4 --output emoji.png

A model of this size learns the set by heart more than it learns to draw: enough to see that everything works.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The config; it takes no argument."""
    if arg:
        raise ValueError(f"configs/emoji.py takes no argument, not {arg!r}")
    return ConfigDict(
        dict(
            name="emoji",
            seed=0,
            steps=5000,
            batch_rows=4,
            model=dict(
                width=192,
                init_std=0.06,
                layers=6,
                heads=3,
                mlp_width=512,
                vocabulary=256,
                latent_shape=(32, 32, 3),
                patch_size=4,
            ),
            data=dict(
                sources=dict(emoji=dict(path="data/emoji")),
                context_length=512,
                max_images=8,
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
            sampling=dict(steps=50, guidance=3.0),
            loop=dict(log_every=50, save_every=500, evaluate_every=1000, sample_every=1000),
        )
    )
