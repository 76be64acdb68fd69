"""Transfusion and Chameleon on the same captioned shapes, small enough for two CPU cores.

    transfusion prepare shapes:20000 --output data/shapes32 --image-size 32 --tokenizer bpe:512 --held-out 0.02
    transfusion autoencoder train --config configs/autoencoder.py:kl,small --workdir runs/kl
    transfusion autoencoder export --workdir runs/kl --name kl-f4c8 --output autoencoders/kl-f4c8
    transfusion prepare … --encode autoencoders/kl-f4c8    # the first command again; all three for vq, as vq-f4
    transfusion train --config configs/families.py:linear --workdir runs/linear

    transfusion prepare edits:8000:1 --output data/edits32 --image-size 32 --held-out 0.02 \\
        --tokenizer data/shapes32/tokenizer.json --encode autoencoders/kl-f4c8
    transfusion train --config configs/families.py:editing --workdir runs/editing --init-from runs/linear

The argument is `linear` or `unet` (Transfusion with that patch coder) or `chameleon`, which may be followed by
`,match=images`: Chameleon then trains until it has seen as many images, instead of as many elements. An image takes
16 elements of Transfusion's and 64 of Chameleon's, the ratio that the paper has (256 and 1,024).

`editing` goes on from `linear` with 8,000 edits, as many as the paper's (section 4.5). Half of them are stories, a
caption, its drawing, a change and what comes of it, and so the model also writes and draws by turns.
"""

from ml_collections import ConfigDict

COMMON = dict(
    name="families",
    seed=0,
    steps=1500,
    batch_rows=8,
    model=dict(
        width=128,
        init_std=0.08,
        layers=4,
        heads=2,
        mlp_width=384,
        vocabulary=410,
        latent_shape=(8, 8, 8),
        patch_size=2,
    ),
    data=dict(
        sources=dict(shapes=dict(path="data/shapes32")),
        encoding="kl-f4c8",
        context_length=320,
        max_images=12,
        image_first=0.2,
        caption_dropout=0.1,
    ),
    optimizer=dict(
        learning_rate=8e-3,  # the best of a sweep for either family: docs/families.md
        final_learning_rate=8e-5,
        warmup_steps=100,
        ema_decay=0.998,
    ),
    evaluation=dict(rows=64),
    sampling=dict(guidance=3.0),
    loop=dict(log_every=50, save_every=500, evaluate_every=500),
)
FAMILIES = {
    "linear": {"sampling.steps": 50},
    "unet": {"sampling.steps": 50, "model.patch_coder": "unet", "model.unet_channels": (32, 64)},
    "editing": {
        "sampling.steps": 50,
        "sampling.guidance": 1.5,
        "data.sources.shapes.path": "data/edits32",
        "data.max_images": 14,
        "data.clean_context": 0.5,
        "optimizer.learning_rate": 4e-3,
        "optimizer.final_learning_rate": 4e-5,
        "evaluation.suites": ("loss", "edits"),
    },
    "chameleon": {
        "model.images": "codes",
        "model.codebook": 512,
        "model.latent_shape": (8, 8, 4),
        "model.patch_size": 1,
        "model.image_attention": "causal",
        "model.query_key_norm": True,
        "model.norm": "post",
        "z_loss": 1e-5,
        "data.encoding": "vq-f4",
        "data.max_images": 5,
    },
}
ELEMENTS_PER_IMAGE = {"latents": 16 + 2, "codes": 64 + 2}  # with BOI and EOI


def get_config(arg: str = "") -> ConfigDict:
    """The config of a family."""
    family, *options = (arg or "linear").split(",")
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    config = ConfigDict(COMMON)
    config.name = f"families-{family}"
    config.update_from_flattened_dict(FAMILIES[family])
    for option in options:
        if option != "match=images" or family != "chameleon":
            raise ValueError(f"unknown option {option!r} of {family}: only chameleon takes match=images")
        config.steps = config.steps * ELEMENTS_PER_IMAGE["codes"] // ELEMENTS_PER_IMAGE["latents"]
    return config
