"""Image autoencoders: the paper's (appendix A), and small ones for drawn shapes, minutes on two CPU cores.

    transfusion prepare shapes:20000 --output data/shapes32 --image-size 32 --tokenizer bpe:512 --held-out 0.02
    transfusion autoencoder train --config configs/autoencoder.py:kl,small --workdir runs/kl
    transfusion autoencoder export --workdir runs/kl --name kl-f4c8 --output autoencoders/kl-f4c8

The argument is `kl` or `vq`, and `small` after a comma. The paper's takes your images and the files of two
perceptual networks: docs/autoencoders.md.
"""

from ml_collections import ConfigDict

PAPER = dict(
    seed=0,
    steps=1_000_000,
    batch_rows=256,
    image_size=256,
    architecture=dict(
        channels=128,
        multipliers=(1, 2, 4, 4),
        blocks=2,
        latent_channels=8,
        encoder_channels=192,
    ),
    losses=dict(l1=1.0, lpips=1.0, gan=0.5, gan_from=50_000, identity=0.2, kl=1e-6, codebook=1.0, commitment=0.25),
    optimizer=dict(
        learning_rate=1e-4,
        final_learning_rate=1e-5,
        warmup_steps=5000,
        beta1=0.5,
        beta2=0.9,
        weight_decay=0.0,
        ema_decay=0.999,
    ),
    loop=dict(log_every=50, save_every=5000, evaluate_every=5000, sample_every=5000),
)
SMALL = dict(
    seed=0,
    steps=1500,
    batch_rows=16,
    image_size=32,
    architecture=dict(
        channels=32, multipliers=(1, 2, 2), blocks=1, latent_channels=8, groups=8, middle_attention=False
    ),
    data=dict(sources=dict(shapes="data/shapes32")),
    losses=dict(l1=0.1, l2=1.0, lpips=0.0, gan=0.0, identity=0.0, kl=1e-3),
    optimizer=dict(
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        warmup_steps=100,
        beta2=0.99,
        weight_decay=0.0,
        ema_decay=0.99,
    ),
    loop=dict(log_every=50, save_every=500, evaluate_every=500, sample_every=500),
)
CODEBOOK = {"paper": dict(codebook=16_384), "small": dict(codebook=512, latent_channels=4)}


def get_config(arg: str = "") -> ConfigDict:
    """The config of a kind, such as `kl` or `vq,small`."""
    kind, *options = (arg or "kl").split(",")
    if kind not in ("kl", "vq"):
        raise ValueError(f"unknown kind {kind!r}: kl or vq")
    if options not in ([], ["small"]):
        raise ValueError(f"unknown option {','.join(options)!r}: only small")
    size = "small" if options else "paper"
    config = ConfigDict(SMALL if options else PAPER)
    config.name = f"autoencoder-{kind}-{size}"
    config.architecture.kind = kind
    if kind == "vq":
        config.architecture.update(CODEBOOK[size])
        if size == "small":
            config.losses.coverage = 0.25
    return config
