"""The paper's recipe (arXiv 2408.11039, sections 3 and 4) at its five sizes, and at a smaller one, 0.07b.

    transfusion train --config configs/paper.py:7b --dry-run

The argument is a size, then options after commas:
    2t              the large run of section 4.4: 4M elements per step, 500,000 steps
    unet            the U-Net patch coder of section 4.3
    chameleon       the baseline of section 4.1: images are codes of a vector-quantised autoencoder, predicted like
                    text; query-key norm, post-norm, z-loss, learning rate 1e-4
    native          images keep their proportions, up to 4:1, at the area of 256×256 pixels at most
    match=images    with chameleon: as many images seen as Transfusion sees, where the default matches elements. An
                    image takes 1,024 + 2 elements, not 256 + 2, so training goes on 1,026 / 258 times as long
    llama           text alone, the text half of the batch: 1M tokens per step (table 4)
    chameleon-text  the same with Chameleon's modifications for stability (table 4)

    Of `chameleon`, `llama` and `chameleon-text` one at most. The last two need sources without images.
"""

from ml_collections import ConfigDict

SIZES = {  # table 2, below it one more; the SwiGLU width follows Llama's rule, 8/3 of the width rounded up to 256
    "0.07b": dict(layers=12, width=512, heads=8, mlp_width=1536),
    "0.16b": dict(layers=16, width=768, heads=12, mlp_width=2048),
    "0.37b": dict(layers=24, width=1024, heads=16, mlp_width=2816),
    "0.76b": dict(layers=24, width=1536, heads=24, mlp_width=4096),
    "1.4b": dict(layers=24, width=2048, heads=16, mlp_width=5632),
    "7b": dict(layers=32, width=4096, heads=32, mlp_width=11008),
}
STABLE = dict(model=dict(query_key_norm=True, norm="post"), z_loss=1e-5, optimizer=dict(learning_rate=1e-4))
CODES = dict(
    model=dict(images="codes", codebook=16_384, patch_size=1, image_attention="causal"),
    data=dict(encoding="vq-f8c8", max_images=3),  # of 1,026 elements each, in 4,096
)
TEXT = dict(model=dict(images="none"))
OPTIONS: dict[str, list[dict]] = {
    "2t": [dict(batch_rows=1024, steps=500_000)],
    "unet": [dict(model=dict(patch_coder="unet"))],
    "chameleon": [STABLE, CODES],
    "llama": [TEXT],
    "chameleon-text": [STABLE, TEXT],
    "native": [dict(model=dict(max_side=64), data=dict(max_images=16, max_patches=2048))],
    "match=images": [],
}
FAMILIES = ("chameleon", "llama", "chameleon-text")


def get_config(arg: str = "") -> ConfigDict:
    """The config for a size and options, such as `7b` or `7b,2t`."""
    size, *options = (arg or "7b").split(",")
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: one of {', '.join(SIZES)}")
    config = ConfigDict(
        dict(
            name=f"paper-{arg or '7b'}",
            seed=0,
            steps=250_000,
            batch_rows=512,  # × 4,096 = 2M elements
            model=dict(
                **SIZES[size],
                vocabulary=32_000,
                latent_shape=(32, 32, 8),
                patch_size=2,
                patch_coder="linear",
                remat="full",
            ),
            data=dict(
                encoding="kl-f8c8",
                context_length=4096,
                max_images=8,
                image_first=0.2,
                caption_dropout=0.1,
            ),
            image_loss_weight=5.0,
            optimizer=dict(
                learning_rate=3e-4,
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
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"unknown option {option!r}: one of {', '.join(OPTIONS)}")
        for changes in OPTIONS[option]:
            config.update(changes)
    if sum(option in FAMILIES for option in options) > 1:
        raise ValueError(f"one of {', '.join(FAMILIES)} at most")
    if config.model.get("images") == "none":
        config.batch_rows //= 2
    if "match=images" in options:
        if "chameleon" not in options:
            raise ValueError("match=images goes with chameleon")
        config.steps = round(config.steps * 1026 / 258)
    return config
