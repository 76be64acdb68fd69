"""Drawn scenes of coloured shapes whose captions say exactly what is there.

    transfusion prepare shapes:20000 --output data/shapes --image-size 64
    transfusion train --config configs/shapes.py --workdir runs/shapes
    transfusion sample --workdir runs/shapes --prompt "two red circles above a blue square" -n 4 --output shapes.png

Counts, colours, sizes and relations can be graded against the caption: `transfusion_jax/data/claims.py`.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The config; it takes no argument."""
    if arg:
        raise ValueError(f"configs/shapes.py takes no argument, not {arg!r}")
    return ConfigDict(
        dict(
            name="shapes",
            seed=0,
            steps=10_000,
            batch_rows=4,
            model=dict(
                width=192,
                init_std=0.06,
                layers=6,
                heads=3,
                mlp_width=512,
                vocabulary=256,
                latent_shape=(64, 64, 3),
                patch_size=8,
            ),
            data=dict(
                sources=dict(shapes=dict(path="data/shapes")),
                context_length=512,
                max_images=6,
                image_first=0.2,
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
