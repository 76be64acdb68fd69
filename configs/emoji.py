"""Emoji and their Unicode names: thousands of captioned colour images, three quarters of an hour on two CPU cores.

    apt-get install fonts-noto-color-emoji
    pip install 'emoji>=2.14'
    transfusion prepare emoji --output data/emoji --image-size 32 --tokenizer bpe:2048 --encode dct-f4c12
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
            steps=4000,
            batch_rows=8,
            model=dict(
                width=256,
                init_std=0.06,
                layers=6,
                heads=4,
                mlp_width=704,
                vocabulary=2048,
                latent_shape=(8, 8, 12),
                patch_size=2,
            ),
            data=dict(
                sources=dict(emoji=dict(path="data/emoji")),
                encoding="dct-f4c12",
                context_length=256,
                max_images=16,
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
            loop=dict(log_every=50, save_every=500, evaluate_every=1000, sample_every=1000),
        )
    )
