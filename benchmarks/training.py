"""A training step on one device, on a batch of random content: what benchmarks of steps share."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from transfusion_jax.config import SPECIAL_TOKENS, Config, DataConfig, ModelConfig
from transfusion_jax.data.batch import Batch, abstract_batch, stack
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.parallel.sharding import batch_sharding
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.step.state import RunContext, create_state
from transfusion_jax.training.step.step import make_step, train_step

ELEMENTS_PER_IMAGE = 384  # one image of 256 patches for so many elements of a row
CAPTION = 30


def shape_flags(flags: argparse.ArgumentParser) -> None:
    """The flags that `config_of` reads."""
    flags.add_argument("--rows", type=int, default=2, help="rows per batch (default: %(default)s)")
    flags.add_argument("--context", type=int, default=768, help="elements per row (default: %(default)s)")
    flags.add_argument("--width", type=int, default=512, help="a multiple of 64 (default: %(default)s)")
    flags.add_argument("--layers", type=int, default=8, help="(default: %(default)s)")


def config_of(args: argparse.Namespace) -> Config:
    """The run that the flags of `shape_flags` ask for."""
    return make_config(of_size(args.width, args.layers), args.rows, args.context)


def title_of(config: Config) -> str:
    """Names such a run."""
    model, context = config.model, config.data.context_length
    size = f"width {model.width}, {model.layers} layers, {config.batch_rows} rows of {context} elements"
    return f"train step, {size}"


def with_remat(config: Config, remat: str) -> Config:
    """The same with another policy of rematerialisation."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def of_size(width: int, layers: int, vocabulary: int = 8192) -> ModelConfig:
    """A model with heads of 64, in float32."""
    return ModelConfig(
        width=width,
        layers=layers,
        heads=width // 64,
        mlp_width=width * 11 // 4,
        vocabulary=vocabulary - SPECIAL_TOKENS,
        latent_shape=(32, 32, 8),
        patch_size=2,
        compute_dtype="float32",
    )


def make_config(model: ModelConfig, rows: int, context: int) -> Config:
    """A run of this model; as many images per row as make two thirds of it patches."""
    images = context // ELEMENTS_PER_IMAGE
    data = DataConfig(
        context_length=context,
        max_images=images,
        max_text=context - images * model.patches,
        image_first=0.0,
        caption_dropout=0.0,
    )
    return Config(name="step", seed=0, steps=10_000, batch_rows=rows, model=model, data=data)


def make_batch(config: Config) -> Batch:
    """Rows of captioned images and a text that fills what is left, all of random content."""
    random = np.random.default_rng(0)
    special = SpecialTokens.after(config.model.vocabulary)

    def text(length: int) -> Text:
        return Text(random.integers(0, config.model.vocabulary, length, dtype=np.int32))

    def row(number: int) -> Batch:
        latents = random.normal(size=(config.data.max_images, *config.model.latent_shape)).astype(np.float32)
        documents = [Document((text(CAPTION), Image(latent))) for latent in latents]
        left = config.data.context_length - sum(d.length(config.model) for d in documents)
        documents.append(Document((text(left - 1),)))  # BOS takes one
        pieces = [Piece(document, 0, document.length(config.model), source=0) for document in documents]
        return assemble(number, pieces, config, special)

    return stack([row(number) for number in range(config.batch_rows)])


def compile_step(config: Config) -> tuple[float, jax.stages.Compiled]:
    """The compiled step for one device, allocating nothing, and the seconds that tracing and compiling took."""
    task, mesh = TransfusionTask(config), make_mesh(config.mesh, jax.devices()[:1])
    state, batch = RunContext(task, config, mesh).abstract_state, abstract_batch(config)
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(train_step, task, config), donate_argnums=0)
        compiled = step.lower(state, batch).compile()
    return time.perf_counter() - begin, compiled


def our_step(config: Config, batch: Batch) -> tuple[Callable[[], None], float]:
    """The project's training step on one batch again and again, and its model operations."""
    task, mesh = TransfusionTask(config), make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(RunContext(task, config, mesh))
    on_device = jax.device_put(batch, batch_sharding(mesh))
    state, report = step(create_state(RunContext(task, config, mesh)), on_device)

    def run() -> None:
        nonlocal state
        state, report = step(state, on_device)
        jax.block_until_ready((state, report))

    return run, task.flops({name: float(value) for name, value in report.values.items()})
