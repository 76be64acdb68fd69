"""Handwritten digits with captions, and English prose: a few minutes on two CPU cores.

    transfusion prepare digits --output data/digits --image-size 8 --channels 1 --held-out 0.15
    transfusion prepare prose --output data/prose --held-out 0.05
    transfusion train --config configs/digits.py --workdir runs/digits

scikit-learn's 1,797 real 8×8 digits and the docstrings of Python's standard library. Half of the pairs come
image first, with the noise limit of the paper's section 4.3.4: that is what makes the captions good.

The argument is a family: `linear` (the default) or `unet`, Transfusion with that patch coder, or `chameleon`, which
reads the digits' 17 levels of grey as codes: prepare them with `--encode grey-f1k17`. An image takes 16 elements of
Transfusion's and 64 of Chameleon's, the ratio that the paper has (256 and 1,024).
"""

from ml_collections import ConfigDict

COMMON = dict(
    name="digits",
    seed=0,
    steps=2400,
    batch_rows=8,
    model=dict(
        width=128,
        init_std=0.08,
        layers=4,
        heads=2,
        mlp_width=384,
        vocabulary=256,
        latent_shape=(8, 8, 1),
        patch_size=2,
    ),
    data=dict(
        sources=dict(
            digits=dict(path="data/digits", weight=6.0),
            prose=dict(path="data/prose", weight=1.0),
        ),
        context_length=256,
        max_images=8,
        image_first=0.5,
        caption_dropout=0.1,
    ),
    diffusion={},
    optimizer=dict(
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        warmup_steps=100,
        ema_decay=0.998,
    ),
    evaluation=dict(suites=("loss", "digits")),
    sampling=dict(guidance=2.0),
    loop=dict(log_every=50, save_every=300, evaluate_every=300, sample_every=600),
)
TRANSFUSION = {"sampling.steps": 50, "diffusion.image_first_limit": 500}
FAMILIES = {
    "linear": TRANSFUSION,
    "unet": {**TRANSFUSION, "model.patch_coder": "unet", "model.unet_channels": (32, 64)},
    "chameleon": {
        "model.images": "codes",
        "model.codebook": 17,
        "model.patch_size": 1,
        "model.image_attention": "causal",
        "model.query_key_norm": True,
        "model.norm": "post",
        "z_loss": 1e-5,
        "data.encoding": "grey-f1k17",
        "data.max_images": 3,
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """The config of a family."""
    if arg and arg not in FAMILIES:
        raise ValueError(f"unknown family {arg!r}: one of {', '.join(FAMILIES)}")
    config = ConfigDict(COMMON)
    config.update_from_flattened_dict(FAMILIES[arg or "linear"])
    return config
