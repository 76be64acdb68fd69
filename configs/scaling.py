"""The families at several small sizes, on drawn shapes and English prose: what the ladder `cpu` trains.

    transfusion prepare shapes:20000 --output data/shapes32 --image-size 32 --tokenizer bpe:512 --held-out 0.02
    transfusion prepare shapes:50000:0:corners --output data/ladder-corners --image-size 32 --held-out 0.02 \\
        --tokenizer data/shapes32/tokenizer.json
    transfusion autoencoder train --config configs/autoencoder.py:kl,small --workdir runs/kl-corners \\
        --config.data.sources.shapes=data/ladder-corners
    transfusion autoencoder train --config configs/autoencoder.py:vq,small --workdir runs/vq-corners \\
        --config.data.sources.shapes=data/ladder-corners --config.steps=4500 \\
        --config.architecture.codebook=1024 --config.losses.coverage=1.0
    for ae in kl-f4c8 vq-f4; do
        transfusion autoencoder export --workdir runs/${ae%%-*}-corners --name $ae --output autoencoders/$ae
        transfusion prepare shapes:50000:0:corners --output data/ladder-corners --image-size 32 --held-out 0.02 \\
            --tokenizer data/shapes32/tokenizer.json --encode autoencoders/$ae
    done
    transfusion prepare prose --output data/ladder-prose --held-out 0.05 --tokenizer data/shapes32/tokenizer.json
    transfusion scale run --ladder configs/ladders/cpu.py --workdir runs/cpu-ladder --jobs 2

The argument is a size and a family, such as `s,chameleon`; the ladder `ablations` trains most of the families.
Half of the elements are prose, half are shapes with captions, as half of the paper's are text. An image takes 16
elements of Transfusion's and 64 of Chameleon's, the ratio that the paper has (256 and 1,024). Beyond images and
their losses the families are the same: one trunk, with query-key norm, which helps both, and norms before each
part, which serve both better than Chameleon's after it (docs/decisions.md).
"""

from ml_collections import ConfigDict

SIZES = {  # about 0.1M parameters in the trunk, and each about 2.5 times the one before
    "xs": dict(layers=2, width=64, heads=1, mlp_width=192),
    "s": dict(layers=3, width=96, heads=2, mlp_width=256),
    "m": dict(layers=4, width=128, heads=2, mlp_width=384),
    "l": dict(layers=6, width=192, heads=3, mlp_width=512),
    "xl": dict(layers=8, width=256, heads=4, mlp_width=768),
    "2xl": dict(layers=10, width=384, heads=6, mlp_width=1024),
    "3xl": dict(layers=12, width=512, heads=8, mlp_width=1536),
}
SUITES = ("loss", "text", "captions", "shapes", "frechet")
COMMON = dict(
    seed=0,
    steps=2000,
    batch_rows=16,
    model=dict(vocabulary=410, latent_shape=(8, 8, 8), patch_size=2, query_key_norm=True),
    data=dict(
        sources=dict(
            shapes=dict(path="data/ladder-corners", weight=1.0),
            prose=dict(path="data/ladder-prose", weight=1.0),
        ),
        encoding="kl-f4c8",
        context_length=256,
        max_images=8,
        image_first=0.2,
        caption_dropout=0.1,
    ),
    diffusion={},
    optimizer=dict(learning_rate=2e-3, final_learning_rate=1e-4, warmup_steps=80, ema_decay=0.998),
    sampling=dict(guidance=3.0),
    evaluation=dict(suites=SUITES, during_training=SUITES, rows=128, images=200, scenes="corners"),
    loop=dict(log_every=100, save_every=500),
)
# These models are narrow: a patch has 32 values, and to carry their noise takes much of a width of 64 or 96.
LATENTS = {"diffusion.objective": "x", "sampling.steps": 50}
UNET = {**LATENTS, "model.patch_coder": "unet", "model.unet_channels": (32, 64)}
CHAMELEON = {
    "model.images": "codes",
    "model.codebook": 1024,
    "model.latent_shape": (8, 8, 1),
    "model.patch_size": 1,
    "model.image_attention": "causal",
    "z_loss": 1e-5,
    "data.encoding": "vq-f4",
    "data.max_images": 3,
}
TEXT = {"model.images": "none", "data.max_images": 1, "batch_rows": 8}  # as many texts to a step as the others have
OWN_TRUNK = {"model.norm": "post"}  # Chameleon's
FAMILIES: dict[str, dict] = {
    "linear": LATENTS,
    "unet": UNET,
    "causal": {**LATENTS, "model.image_attention": "causal"},
    "unet-causal": {**UNET, "model.image_attention": "causal"},
    "none-1x1": {**LATENTS, "model.patch_coder": "none", "model.patch_size": 1, "data.max_images": 3},
    "linear-4x4": {**LATENTS, "model.patch_size": 4, "data.max_images": 14},
    "unet-4x4": {**UNET, "model.unet_channels": (32, 64, 64), "model.patch_size": 4, "data.max_images": 14},
    "unet-limit": {**UNET, "diffusion.image_first_limit": 500},
    "epsilon": {**LATENTS, "diffusion.objective": "epsilon"},
    "light": {**LATENTS, "image_loss_weight": 1.0},
    "chameleon": CHAMELEON,
    "chameleon-own": CHAMELEON | OWN_TRUNK,
    "text": TEXT,
    "text-own": TEXT | OWN_TRUNK,
}


def get_config(arg: str = "") -> ConfigDict:
    """The config of a size and a family, such as `s,linear`, which is the default."""
    size, _, family = (arg or "s").partition(",")
    family = family or "linear"
    for name, table in ((size, SIZES), (family, FAMILIES)):
        if name not in table:
            raise ValueError(f"unknown word {name!r}: one of {', '.join(table)}")
    config = ConfigDict(COMMON | {"name": f"scaling-{size}-{family}"})
    config.model.update(SIZES[size])
    config.model.init_std = SIZES[size]["width"] ** -0.5
    if FAMILIES[family].get("model.images") == "none":
        del config.data.sources["shapes"]
        config.evaluation.suites = config.evaluation.during_training = SUITES[:2]
    config.update_from_flattened_dict(FAMILIES[family])
    return config
