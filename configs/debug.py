"""A tiny model on synthetic data: trains in seconds, for tests and for a first look.

    transfusion train --config configs/debug.py --workdir runs/debug

The argument `reference` trains it for longer, as `transfusion scale compare --reference debug` asks for.
"""

from ml_collections import ConfigDict

REFERENCE = {
    "steps": 480,
    "optimizer.learning_rate": 5e-3,
    "loop.save_every": 240,
    "loop.evaluate_every": 60,
}
VARIANTS: dict[str, dict] = {"": {}, "reference": REFERENCE}


def get_config(arg: str = "") -> ConfigDict:
    """The config of a variant."""
    if arg not in VARIANTS:
        raise ValueError(f"unknown variant {arg!r}: reference, or none")
    config = ConfigDict(
        dict(
            name="debug",
            seed=0,
            steps=20,
            batch_rows=4,
            model=dict(
                width=32,
                layers=2,
                heads=2,
                mlp_width=64,
                vocabulary=256,
                latent_shape=(8, 8, 1),
                patch_size=4,
            ),
            data=dict(
                sources=dict(
                    pairs=dict(path="synthetic:pairs"),
                    text=dict(path="synthetic:text"),
                ),
                context_length=128,
                max_images=4,
            ),
            diffusion=dict(image_first_limit=500),
            optimizer=dict(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
            sampling=dict(steps=10, guidance=2.0),
            loop=dict(log_every=5, save_every=10, evaluate_every=10),
        )
    )
    config.update_from_flattened_dict(VARIANTS[arg])
    return config
