"""What the API takes and gives."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from transfusion_jax.config import ConfigError
from transfusion_jax.generation.png import png, to_pixels

MOST_TEXT = 20_000  # characters
MOST_IMAGE = 11_000_000  # characters of base64, 8 MiB of a file

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Strict(BaseModel):
    """Takes no field that it does not know, and no string for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A text."""

    type: Literal["text"] = "text"
    text: str = Field(max_length=MOST_TEXT)


class ImagePart(Strict):
    """An image: a data URL, or the base64 of a file (PNG, JPEG, WEBP and others)."""

    type: Literal["image"] = "image"
    image: str = Field(max_length=MOST_IMAGE)


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Settings(Strict):
    """How images are drawn and texts written; what is left out is as the run's config has it."""

    seed: Seed = Field(0, description="fixes noise and draws")
    steps: int | None = Field(None, ge=1, le=100_000, description="of denoising")
    sampler: Literal["ancestral", "ddim", "dpm++", "euler", "heun"] | None = None
    guidance: float | None = Field(None, ge=0, le=100)
    image_guidance: float | None = Field(
        None, ge=0, le=100, description="of the images before, apart from the texts"
    )
    guidance_rescale: float | None = Field(None, ge=0, le=1)
    code_temperature: float | None = Field(None, ge=0, le=100, description="of images that are codes")
    max_tokens: int = Field(256, ge=1, le=100_000)
    max_images: int = Field(8, ge=1, le=64)
    temperature: float = Field(0.0, ge=0, le=100, description="of texts; 0 takes the likeliest token")
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field([], max_length=8)


class Generate(Settings):
    """A prompt of texts and images, and what is to follow."""

    parts: list[Part] = Field(max_length=64)
    follow: Literal["any", "text", "image"] = Field("any", description="texts and images, text alone, or one image")
    stream: bool = Field(False, description="server-sent events instead of one answer")
    previews: int = Field(0, ge=0, le=20, description="how often an image is shown while it is drawn; for streams")


class Caption(Strict):
    """An image to put into words."""

    image: str = Field(max_length=MOST_IMAGE)
    max_tokens: int = Field(60, ge=1, le=100_000)


class Answer(BaseModel):
    """What followed."""

    parts: list[Part]
    reason: Literal["end", "stop", "length", "images"]


class Words(BaseModel):
    """A caption."""

    text: str


class Problem(BaseModel):
    """Why a request was not served."""

    detail: str


class ServedModel(BaseModel):
    """What is served."""

    name: str
    step: int
    weights: Literal["ema", "raw"]
    images: Literal["latents", "codes", "none"]
    image_size: list[int] = Field(description="height, width, channels")
    context: int = Field(description="elements")
    samplers: list[str]
    steps: int
    most_steps: int
    guidance: float
    warm: bool = Field(description="whether the programs of usual requests are compiled")


def file_of(text: str) -> bytes:
    """The bytes of a data URL or of base64.

    Raises:
        ConfigError: it is neither.
    """
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("an image must be a data URL or base64 of a file") from error


def url_of(image: np.ndarray) -> str:
    """A PNG as a data URL of an image `[H, W, channels]` in [−1, 1]."""
    return "data:image/png;base64," + base64.b64encode(png(to_pixels(image[None])[0])).decode()
