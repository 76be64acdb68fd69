"""`transfusion sample`: draws images from prompts, or writes captions for images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.commands.reading import add_reading_flags, read_model
from transfusion_jax.config import ConfigError
from transfusion_jax.generation.images import draw
from transfusion_jax.generation.picture import grid, read_image, write_png
from transfusion_jax.generation.text import caption


def add_parser(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser("sample", help="draw images from prompts, or caption images", description=__doc__)
    add_reading_flags(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", help="text to draw; repeat it for more rows of the sheet")
    what.add_argument("--image", type=Path, nargs="+", help="image files to caption")
    parser.add_argument("-n", type=int, default=1, help="images per prompt")
    parser.add_argument("--output", type=Path, help="PNG to write the images to (needed with --prompt)")
    parser.add_argument("--sampling-steps", type=int, help="denoising steps (default: the config's)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 for none (default: the config's)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.set_defaults(run=run, takes_overrides=False)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Samples; returns the exit code."""
    del overrides
    if arguments.prompt:
        return _draw(arguments)
    for name in ("output", "sampling_steps", "guidance"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} goes with --prompt: captions are printed")
    return _caption(arguments)


def _draw(arguments: argparse.Namespace) -> int:
    if arguments.output is None:
        raise ConfigError("--prompt needs --output FILE.png")
    if arguments.n < 1:
        raise ConfigError(f"-n must be at least 1, not {arguments.n}")
    task, params, workdir, _, _ = read_model(arguments, print)
    _check_sampling(arguments, task.config.diffusion.timesteps)
    prompts = [prompt for prompt in arguments.prompt for _ in range(arguments.n)]
    images = draw(
        task, params, workdir.codec(), prompts, arguments.seed, arguments.sampling_steps, arguments.guidance
    )
    labels = arguments.prompt if len(arguments.prompt) > 1 else None
    write_png(arguments.output, grid(images, arguments.n, labels))
    print(f"{len(images)} image(s) in {arguments.output}")
    return 0


def _check_sampling(arguments: argparse.Namespace, timesteps: int) -> None:
    steps, guidance = arguments.sampling_steps, arguments.guidance
    if steps is not None and not 1 <= steps <= timesteps:
        raise ConfigError(f"--sampling-steps must lie between 1 and {timesteps}, not {steps}")
    if guidance is not None and guidance < 0:
        raise ConfigError(f"--guidance must not be negative, not {guidance}")


def _caption(arguments: argparse.Namespace) -> int:
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
