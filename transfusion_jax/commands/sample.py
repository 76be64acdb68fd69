"""`transfusion sample`: draws images from prompts, or writes captions for images."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from transfusion_jax.commands.reading import add_reading_flags, read_model
from transfusion_jax.config import ConfigError
from transfusion_jax.data import load as data_loading
from transfusion_jax.data.documents import Image, Text
from transfusion_jax.generation.images import draw
from transfusion_jax.generation.picture import grid, read_image, write_png
from transfusion_jax.generation.text import caption
from transfusion_jax.storage import place


def add_parser(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("sample", help="draw images from prompts, or caption images", description=__doc__)
    add_reading_flags(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", help="text to draw; repeat it for more rows of the sheet")
    what.add_argument("--image", type=place, nargs="+", help="image files to caption")
    what.add_argument("--held-out", type=int, metavar="N", help="caption N images that were kept from training")
    parser.add_argument("-n", type=int, help="images per prompt (default: 1)")
    parser.add_argument("--output", type=place, help="PNG to write the images to (needed with --prompt)")
    parser.add_argument("--sampling-steps", type=int, help="denoising steps (default: the config's)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 for none (default: the config's)")
    parser.add_argument("--temperature", type=float, help="of codes, drawn one by one (default: the config's)")
    parser.add_argument("--seed", type=int, help="of the noise (default: 0)")
    parser.set_defaults(run=run, takes_overrides=False)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Samples; returns the exit code."""
    del overrides
    if arguments.prompt:
        return _draw(arguments)
    for name in ("n", "output", "sampling_steps", "guidance", "temperature", "seed"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"option {name.replace('_', '-')} goes with --prompt; captions are printed, without chance"
            )
    return _caption_files(arguments) if arguments.image else _caption_held_out(arguments)


def _draw(arguments: argparse.Namespace) -> int:
    if arguments.output is None or arguments.output.suffix.lower() != ".png":
        raise ConfigError("--prompt needs --output FILE.png")
    count, seed = 1 if arguments.n is None else arguments.n, arguments.seed or 0
    if count < 1:
        raise ConfigError(f"-n must be at least 1, not {count}")
    if seed < 0:
        raise ConfigError(f"--seed must not be negative, not {seed}")
    task, params, workdir, _, _ = read_model(arguments, print)
    sampling = task.config.sampling_with(
        steps=arguments.sampling_steps, guidance=arguments.guidance, temperature=arguments.temperature
    )
    prompts = [prompt for prompt in arguments.prompt for _ in range(count)]
    images = draw(task, params, workdir.codec(), prompts, seed, sampling)
    labels = arguments.prompt if len(arguments.prompt) > 1 else None
    write_png(arguments.output, grid(images, count, labels))
    print(f"{len(images)} image(s) in {arguments.output}")
    return 0


def _caption_files(arguments: argparse.Namespace) -> int:
    task, params, workdir, _, _ = read_model(arguments, print)
    codec = workdir.codec()
    height, width, channels = codec.autoencoder.image_shape(task.config.model.latent_shape)
    images = []
    for path in arguments.image:
        try:
            images.append(read_image(path, (height, width), channels))
        except OSError as error:
            raise ConfigError(f"cannot read image {path}: {error}") from error
    for path, text in zip(arguments.image, caption(task, params, codec, np.stack(images)), strict=True):
        print(f"{path}: {text}")
    return 0


def _caption_held_out(arguments: argparse.Namespace) -> int:
    if arguments.held_out < 1:
        raise ConfigError(f"--held-out must be at least 1, not {arguments.held_out}")
    task, params, workdir, _, _ = read_model(arguments, print)
    data = data_loading.load(task.config, workdir.codec().statistics)
    shown = data.held_out.pairs(arguments.held_out)
    if not shown:
        raise ConfigError("this run holds out no captioned images")
    latents = np.stack([s.latent for d in shown for s in d.segments if isinstance(s, Image)])
    true = [data.codec.tokenizer.decode(s.tokens) for d in shown for s in d.segments if isinstance(s, Text)]
    written = caption(task, params, data.codec, data.codec.images(latents))
    true, written = ([" ".join(text.split()) for text in texts] for texts in (true, written))  # one line each
    width = max(map(len, true))
    print(f"{'held-out image':<{width}}    the model's caption")
    for expected, text in zip(true, written, strict=True):
        print(f"{expected:<{width}}    {text}")
    return 0
