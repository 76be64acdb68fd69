"""Drawn scenes of coloured shapes whose captions say exactly what is there.

    transfusion prepare shapes:20000 --output data/shapes --image-size 64
    transfusion train --config configs/shapes.py --workdir runs/shapes
    transfusion sample --workdir runs/shapes --prompt "two red circles above a blue square" -n 4 --output shapes.png
    transfusion evaluate --workdir runs/shapes

Counts, colours, sizes and relations are graded against the caption: docs/evaluation.md.

The argument `latents` trains on latents of smaller pictures, whose things are large and stand in the corners, so
that a small model learns them in minutes. `editing` goes on from there with 8,000 edits, as many as the paper's
(section 4.5). Half of those are stories, a caption, its drawing, a change and what comes of it: so the model also
writes and draws by turns.

    transfusion prepare shapes:20000 --output data/shapes32 --image-size 32 --tokenizer bpe:512 --held-out 0.02
    transfusion autoencoder train --config configs/autoencoder.py:kl,small --workdir runs/kl
    transfusion autoencoder export --workdir runs/kl --name kl-f4c8 --output autoencoders/kl-f4c8
    transfusion prepare shapes:20000:0:corners --output data/corners32 --image-size 32 --held-out 0.02 \\
        --tokenizer data/shapes32/tokenizer.json --encode autoencoders/kl-f4c8
    transfusion train --config configs/shapes.py:latents --workdir runs/shapes-latents

    transfusion prepare edits:8000:1:corners --output data/edits32 --image-size 32 --held-out 0.02 \\
        --tokenizer data/shapes32/tokenizer.json --encode autoencoders/kl-f4c8
    transfusion train --config configs/shapes.py:editing --workdir runs/editing --init-from runs/shapes-latents

`native` learns scenes of a single thing in square, wide and tall pictures, and to choose among the three as a
caption says. `native,1x1`, `native,2x1` and `native,1x2` are the same model on pictures of one shape, to compare.

    transfusion prepare shapes:6000 --output data/shapes40 --image-size 40 --held-out 0.02
    transfusion autoencoder train --config configs/autoencoder.py:kl,small --workdir runs/kl40 \\
        --config.image_size=40 --config.data.sources.shapes=data/shapes40
    transfusion autoencoder export --workdir runs/kl40 --name kl-f4c8 --output autoencoders/kl40-f4c8
    SIZES="--aspect native --area 32x64 --multiple 16 --held-out 0.02 --encode autoencoders/kl40-f4c8"
    transfusion prepare shapes:20000:0:single:1x1+2x1+1x2 --output data/native/all --tokenizer bpe:512 $SIZES
    for shape in 1x1 2x1 1x2; do transfusion prepare shapes:20000:0:single:$shape --output data/native/$shape \\
        --tokenizer data/native/all/tokenizer.json $SIZES; done
    transfusion train --config configs/shapes.py:native --workdir runs/native
    transfusion train --config configs/shapes.py:native,2x1 --workdir runs/native-2x1
    transfusion sample --workdir runs/native --prompt "a wide picture of a red ring" -n 4 --output native.png
    transfusion evaluate --workdir runs/native
"""

from typing import Any

from ml_collections import ConfigDict

PIXELS = dict(
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
    evaluation=dict(suites=("loss", "images", "captions", "shapes")),
    sampling=dict(steps=50, guidance=3.0),
    loop=dict(log_every=50, save_every=500, evaluate_every=1000, sample_every=1000),
)
LATENTS = {
    "name": "shapes-latents",
    "steps": 3000,
    "model.width": 128,
    "model.init_std": 0.08,
    "model.layers": 4,
    "model.heads": 2,
    "model.mlp_width": 384,
    "model.vocabulary": 410,
    "model.latent_shape": (8, 8, 8),
    "model.patch_size": 4,
    "diffusion.objective": "x",  # a patch holds 128 values, as many as the model is wide: too many for their noise
    "data.sources.shapes.path": "data/corners32",
    "data.encoding": "kl-f4c8",
    "data.context_length": 320,
    "data.max_images": 20,
    "evaluation.scenes": "corners",
}
EDITING = {
    **LATENTS,
    "name": "editing",
    "steps": 4000,
    "data.sources.shapes.path": "data/edits32",
    "data.max_images": 24,
    "data.clean_context": 0.5,
    "optimizer.learning_rate": 1e-3,
    "optimizer.final_learning_rate": 1e-5,
    "evaluation.suites": ("loss", "edits"),
    "sampling.guidance": 1.5,
}
NATIVE = {
    **LATENTS,
    "name": "shapes-native",
    "steps": 6000,
    "batch_rows": 8,
    "model.vocabulary": 363,
    "model.latent_shape": (8, 16, 8),
    "model.max_side": 16,
    "model.shape_marks": True,
    "model.rope_sections": (8, 12, 12),
    "data.sources.shapes.path": "data/native/all",
    "data.max_images": 24,
    "evaluation.scenes": "single",
    "evaluation.suites": ("loss", "captions", "shapes"),
    "evaluation.proportions": ("1x1", "2x1", "1x2", "3x2"),
    "diffusion.timestep_distribution": "logit_normal",
    "diffusion.timestep_mean": 1.0,  # much noise: where things stand is decided there
    "sampling.guidance": 2.0,
    "sampling.guidance_interval": (0.0, 0.7),  # of t / T; above, a thing would be placed twice
}
ALONE = {  # the same on pictures of one shape
    f"native,{shape}": {
        **NATIVE,
        "name": f"native-{shape}",
        "data.sources.shapes.path": f"data/native/{shape}",
        "evaluation.proportions": (shape,),
    }
    for shape in ("1x1", "2x1", "1x2")
}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "latents": LATENTS,
    "editing": EDITING,
    "native": NATIVE,
    **ALONE,
}


def get_config(arg: str = "") -> ConfigDict:
    """The config of a variant."""
    if arg not in VARIANTS:
        raise ValueError(f"unknown variant {arg!r}: one of {'; '.join(filter(None, VARIANTS))}, or none")
    config = ConfigDict(PIXELS)
    config.update_from_flattened_dict(VARIANTS[arg])
    return config
