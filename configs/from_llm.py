"""The paper's recipe on the trunks of today's language models, and on a language model that is at hand.

    transfusion plan --config configs/from_llm.py:llama-3-8b --topology v5p:4x4x4

The argument is a shape of `SHAPES`, or the path of a language model: its folder, as transformers saves it, or its
GGUF file. Such a model learns to draw as in LMFusion (arXiv 2412.15188): its weights stay as they are, and patches
go through weights of their own, which begin as those of text.

    transfusion convert from-hf MODEL --output runs/llm  # for its tokenizer
    transfusion prepare … --tokenizer runs/llm/tokenizer.json
    transfusion train --config configs/from_llm.py:MODEL --workdir runs/fused \\
        --init-from MODEL --init-map 'trunk/layers/patches/*=text' --config.data.sources.NAME.path=…

`shapes,MODEL` does that with drawn scenes of one thing, which are small enough for two cores and a model of 135M
parameters. `scratch,MODEL` is a model of the same sizes that learns them from nothing, to compare.

    transfusion prepare shapes:20000:0:single --output data/fused --image-size 32 --held-out 0.02 \\
        --tokenizer runs/llm/tokenizer.json --encode dct-f8c24
    transfusion train --config configs/from_llm.py:shapes,MODEL --workdir runs/fused \\
        --init-from MODEL --init-map 'trunk/layers/patches/*=text'
    transfusion train --config configs/from_llm.py:scratch,MODEL --workdir runs/scratch
    transfusion evaluate --workdir runs/fused && transfusion evaluate --workdir runs/scratch
    python benchmarks/fused.py runs/fused runs/scratch --model MODEL
"""

from pathlib import Path
from typing import Any

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


FUSED = {"model.modality_weights": "untied", "optimizer.frozen": "text"}
DRAWN: dict[str, Any] = {
    "steps": 1000,
    "batch_rows": 4,
    "model.latent_shape": (4, 4, 24),
    "model.remat": "none",
    "data.sources": dict(shapes=dict(path="data/fused")),
    "data.encoding": "dct-f8c24",
    "data.context_length": 256,
    "data.max_images": 16,
    "data.image_first": 0.4,
    "diffusion.objective": "x",
    "diffusion.timestep_distribution": "logit_normal",
    "diffusion.timestep_mean": 1.0,  # much noise: where things stand is decided there
    "optimizer.learning_rate": 5e-4,
    "optimizer.final_learning_rate": 5e-6,
    "optimizer.warmup_steps": 50,
    "optimizer.weight_decay": 0.0,
    "evaluation.suites": ("loss", "captions", "shapes"),
    "evaluation.scenes": "single",
    "sampling.steps": 50,
    "sampling.guidance": 2.0,
    "sampling.guidance_interval": (0.0, 0.7),  # of t / T; above, a thing would be placed twice
    "loop.save_every": 100,
    "loop.evaluate_every": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "": FUSED,
    "shapes": FUSED | DRAWN,
    "scratch": DRAWN,
}


def get_config(arg: str = "") -> ConfigDict:
    """The config for a shape, such as `llama-3-8b`, or for a variant and a language model, `VARIANT,PATH`."""
    arg = arg or "llama-3-8b"
    if arg in SHAPES:
        return recipe(arg, SHAPES[arg])
    variant, _, path = arg.rpartition(",")
    if variant not in VARIANTS or not Path(path).exists():
        raise ValueError(
            f"{arg!r} is none of the shapes {', '.join(SHAPES)}, and no language model is there, which may follow "
            f"on {' or '.join(f'{name},' for name in VARIANTS if name)}"
        )
    from transfusion_jax.conversion.foreign import open_model

    opened = open_model(Path(path), lambda line: None)
    config = recipe(f"{variant or 'fused'}-{Path(path).stem}", opened.sizes)
    config.data.context_length = min(config.data.context_length, opened.model.longest)
    config.update_from_flattened_dict(VARIANTS[variant])
    return config


def recipe(name: str, sizes: dict[str, Any]) -> ConfigDict:
    """The paper's recipe on a trunk of these sizes."""
    return ConfigDict(
        dict(
            name=f"from-{name}",
            seed=0,
            steps=250_000,
            batch_rows=512,  # × 4,096 = 2M elements
            model=dict(**sizes, latent_shape=(32, 32, 8), patch_size=2, patch_coder="linear", remat="full"),
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
            diffusion=dict(),
            evaluation=dict(),
            sampling=dict(steps=250, guidance=3.0),
            loop=dict(log_every=10, save_every=1000, evaluate_every=5000),
        )
    )
