"""What `transfusion sample` is asked for: prompts from arguments, files, or JSON lines with images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfusion_jax.commands.flags.sample import MOST_SAMPLES, SEEDS
from transfusion_jax.config import FOLLOWS, Config, ConfigError, nearest, one_of, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.readers.pictures import PictureError
from transfusion_jax.generation.interleaved import Request
from transfusion_jax.generation.prompt import pixels_of
from transfusion_jax.storage.paths import Place, place

KEYS = ("prompt", "follow", "n", "seed")


@dataclass(frozen=True)
class Prompt:
    """Texts and image files in order, and what is to follow: "image" by default, or "text" after an image alone."""

    segments: tuple[str | Place, ...]
    follow: str
    count: int = 1
    seed: int | None = None

    @property
    def label(self) -> str:
        """In one line."""
        return " ".join(str(segment) for segment in self.segments)


def default_follow(segments: Sequence[str | Place]) -> str:
    """An image after a text, a text after an image."""
    return "image" if segments and isinstance(segments[-1], str) else "text"


def read_prompts(path: Place, follow: str | None, count: int) -> list[Prompt]:
    """Prompts from a file: one per line, or with the suffix .jsonl an object per line.

    An object has the key `prompt`, a string or a list of strings and of `{"image": FILE}`, and may have `follow`,
    `n` and `seed`; files are found from where the list lies.

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
                found.append(Prompt((line.strip(),), follow or "image", count))
            else:
                found.append(_read_line(json.loads(line), path.parent, follow, count))
        except (json.JSONDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    require(bool(found), f"{path} holds no prompts")
    return found


def _read_line(value: Any, folder: Place, follow: str | None, count: int) -> Prompt:
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
    return Prompt(tuple(segments), asked or default_follow(segments), number, seed)


def requests_of(prompts: Sequence[Prompt], config: Config, codec: Codec, seed: int) -> list[Request]:
    """Requests, those of one prompt next to each other; all are numbered through.

    Raises:
        ConfigError: an image cannot be read.
    """
    requests: list[Request] = []
    for prompt in prompts:
        document = document_of(prompt.segments, config, codec)
        own = seed if prompt.seed is None else prompt.seed
        for number in range(prompt.count):
            place = number if prompt.seed is not None else len(requests)
            requests.append(Request(document, prompt.follow, own, place))
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
        return pixels_of(path.read_bytes(), config, codec)
    except (OSError, PictureError) as error:
        raise ConfigError(f"cannot read image {path}: {error}") from error
