"""What `transfusion sample` is asked for: prompts from arguments, files, or JSON lines with images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from transfusion_jax.commands.flags.sample import MOST_SAMPLES, SEEDS
from transfusion_jax.config import FOLLOWS, Config, ConfigError, nearest, one_of, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.readers.pictures import PictureError
from transfusion_jax.generation.interleaved import Request
from transfusion_jax.generation.sizes import grid_of_aspect, grid_of_size, parse_aspect, parse_size, pixels_of_file
from transfusion_jax.storage.paths import Place, place

KEYS = ("prompt", "follow", "n", "seed", "size", "aspect")
Shape = Callable[[Config, Codec], tuple[int, int]]  # that images are to have: rows and columns of a model's patches


@dataclass(frozen=True)
class Prompt:
    """Texts and image files in order, and what is to follow: "image" by default, or "text" after an image alone."""

    segments: tuple[str | Place, ...]
    follow: str
    count: int = 1
    seed: int | None = None
    shape: Shape | None = None  # of the images that follow; None: none is asked for

    @property
    def label(self) -> str:
        """In one line."""
        return " ".join(str(segment) for segment in self.segments)


def default_follow(segments: Sequence[str | Place]) -> str:
    """An image after a text, a text after an image."""
    return "image" if segments and isinstance(segments[-1], str) else "text"


def read_shape(size: str | None, aspect: str | None) -> Shape | None:
    """The shape of a size such as `320x192`, or of an aspect such as `16:9`; None of neither.

    Raises:
        ConfigError: both are given, or one says no shape.
    """
    require(size is None or aspect is None, "a size has an aspect already: give either size or aspect")
    if size is not None:
        return partial(grid_of_size, *parse_size(size))
    return None if aspect is None else partial(grid_of_aspect, *parse_aspect(aspect))


def read_prompts(path: Place, follow: str | None, count: int, shape: Shape | None = None) -> list[Prompt]:
    """Prompts from a file: one per line, or with the suffix .jsonl an object per line.

    An object has the key `prompt`, a string or a list of strings and of `{"image": FILE}`, and may have `follow`,
    `n`, `seed`, and `size` or `aspect`; files are found from where the list lies.

    Raises:
        ConfigError: the file is missing, or a line is not so.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read prompts {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if path.suffix != ".jsonl":
                found.append(Prompt((line.strip(),), follow or "image", count, shape=shape))
            else:
                found.append(_read_line(json.loads(line), path.parent, follow, count, shape))
        except (json.JSONDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    require(bool(found), f"{path} holds no prompts")
    return found


def _read_line(value: Any, folder: Place, follow: str | None, count: int, shape: Shape | None) -> Prompt:
    require(isinstance(value, dict) and "prompt" in value, 'each line is an object with the key "prompt"')
    for key in value:
        require(key in KEYS, f"unknown key {key!r}; {nearest(key, KEYS)}")
    listed = value["prompt"] if isinstance(value["prompt"], list) else [value["prompt"]]
    segments: list[str | Place] = []
    for segment in listed:
        if isinstance(segment, str):
            segments.append(segment)
            continue
        good = isinstance(segment, dict) and list(segment) == ["image"] and isinstance(segment["image"], str)
        require(good, f'a prompt is made of strings and of {{"image": FILE}}, not of {segment!r}')
        segments.append(place(segment["image"]) if "://" in segment["image"] else folder / segment["image"])
    asked, number, seed = value.get("follow", follow), value.get("n", count), value.get("seed")
    require(
        type(number) is int and 1 <= number <= MOST_SAMPLES,
        f"n must be a whole number from 1 to {MOST_SAMPLES:,}, not {number!r}",
    )
    require(seed is None or (type(seed) is int and 0 <= seed < SEEDS), f"seed must be below 2³², not {seed!r}")
    if asked is not None:
        one_of("follow", asked, FOLLOWS)
    asked = asked or default_follow(segments)
    given = {name: value.get(name) for name in ("size", "aspect")}
    for name, text in given.items():
        require(text is None or isinstance(text, str), f"{name} is a text, not {text!r}")
    own = read_shape(**given)
    require(own is None or asked != "text", "nothing is drawn where a text follows: leave out size and aspect")
    return Prompt(tuple(segments), asked, number, seed, own or shape)


def requests_of(prompts: Sequence[Prompt], config: Config, codec: Codec, seed: int) -> list[Request]:
    """Requests, those of one prompt next to each other; all are numbered through.

    Raises:
        ConfigError: an image cannot be read, or the model draws no images of the shape that is asked for.
    """
    requests: list[Request] = []
    for prompt in prompts:
        grid = prompt.shape(config, codec) if prompt.shape and prompt.follow != "text" else None
        document = document_of(prompt.segments, config, codec)
        own = seed if prompt.seed is None else prompt.seed
        for number in range(prompt.count):
            place = number if prompt.seed is not None else len(requests)
            requests.append(Request(document, prompt.follow, own, place, grid))
    return requests


def document_of(segments: Sequence[str | Place], config: Config, codec: Codec) -> Document:
    """Texts and images, coded.

    Raises:
        ConfigError: an image cannot be read, or the model sees none.
    """
    made: list[Text | Image] = []
    for segment in segments:
        if isinstance(segment, str):
            if segment:
                made.append(Text(codec.tokenizer.encode(segment)))
            continue
        require(config.model.images != "none", "this is a model of text alone: it sees no images")
        made.append(Image(codec.latents(load_image(segment, config, codec)[None])[0]))
    return Document(tuple(made))


def load_image(path: Place, config: Config, codec: Codec) -> np.ndarray:
    """An image file as the model's autoencoder wants it, `[H, W, channels]` in [−1, 1].

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return pixels_of_file(path.read_bytes(), config, codec)
    except (OSError, PictureError) as error:
        raise ConfigError(f"cannot read image {path}: {error}") from error
