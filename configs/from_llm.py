"""The paper's recipe on the trunks of today's language models.

    transfusion plan --config configs/from_llm.py:llama-3-8b --topology v5p:4x4x4

The argument is a shape of `SHAPES`.
"""

from ml_collections import ConfigDict

SHAPES = {
    "llama-3-8b": dict(  # 3.1
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        mlp_width=14_336,
        vocabulary=128_256,
        rope_theta=500_000.0,
        rope_scaling="llama3",
        rope_factor=8.0,
        rope_frequency_factors=(1.0, 4.0),
        rope_original_context=8192,
        norm_epsilon=1e-5,
    ),
    "qwen3-4b": dict(
        width=2560,
        layers=36,
        heads=32,
        head_dim=128,
        kv_heads=8,
        mlp_width=9728,
        vocabulary=151_936,
        rope_theta=1_000_000.0,
        query_key_norm=True,
        query_key_norm_kind="rms",
        tied_embeddings=True,
        norm_epsilon=1e-6,
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The config for a shape, such as `llama-3-8b`."""
    shape = arg or "llama-3-8b"
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")
    return ConfigDict(
        dict(
            name=f"from-{shape}",
            seed=0,
            steps=250_000,
            batch_rows=512,  # × 4,096 = 2M elements
            model=dict(**SHAPES[shape], latent_shape=(32, 32, 8), patch_size=2, patch_coder="linear", remat="full"),
            data=dict(encoding="kl-f8c8", context_length=4096, max_images=8, image_first=0.2, caption_dropout=0.1),
            image_loss_weight=5.0,
            optimizer=dict(
                learning_rate=1e-4,
                final_learning_rate=1.5e-5,
                warmup_steps=4000,
                beta1=0.9,
                beta2=0.95,
                epsilon=1e-8,
                weight_decay=0.1,
                gradient_clip=1.0,
            ),
            sampling=dict(steps=250, guidance=3.0),
            loop=dict(log_every=10, save_every=1000, evaluate_every=5000),
        )
    )
