"""What the API takes and gives."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from transfusion_jax.config import ConfigError, ModelConfig
from transfusion_jax.data.datasets import Codec
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
    size: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$",
        description='width and height of what is drawn, in pixels: "320x192"; of models that draw any shape',
    )
    aspect: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,4}:[1-9][0-9]{0,4}$",
        description='its proportions, in place of size: "16:9"; the largest image that comes nearest is drawn',
    )
    stream: bool = Field(False, description="server-sent events instead of one answer")
    previews: int = Field(0, ge=0, le=20, description="how often an image is shown while it is drawn; for streams")

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if self.size is not None and self.aspect is not None:
            raise ValueError("size and aspect exclude each other")
        return self


class Caption(Strict):
    """An image to put into words."""

    image: str = Field(max_length=MOST_IMAGE)
    max_tokens: int = Field(60, ge=1, le=100_000)


class Answer(BaseModel):
    """What followed."""

    parts: list[Part]
    reason: Literal["end", "stop", "length", "images"]
    warnings: list[str] = Field([], description="such as: the model was trained on no images of this size")


class Words(BaseModel):
    """A caption."""

    text: str


class Problem(BaseModel):
    """Why a request was not served."""

    detail: str


class TrainedShapes(BaseModel):
    """The shapes of training images, in pixels: each the least and the most."""

    height: list[int]
    width: list[int]
    area: list[int]


class DrawnShapes(BaseModel):
    """The shapes of images that a model draws, in pixels, where they are not all of one."""

    multiple: int = Field(description="of which both sides must be")
    largest_area: int
    largest_side: int
    chosen: bool = Field(description="whether the model chooses a shape where a request names none")
    trained: TrainedShapes | None = Field(description="null where its run does not say")


class ServedModel(BaseModel):
    """What is served."""

    name: str
    step: int
    weights: Literal["ema", "raw"]
    images: Literal["latents", "codes", "none"]
    image_size: list[int] = Field(description="height, width, channels")
    shapes: DrawnShapes | None = Field(description="null where all images have image_size")
    context: int = Field(description="elements")
    samplers: list[str]
    steps: int
    most_steps: int
    guidance: float
    warm: bool = Field(description="whether the programs of usual requests are compiled")


def drawn_shapes(
    model: ModelConfig, codec: Codec, trained: Mapping[str, Sequence[int]] | None
) -> DrawnShapes | None:
    """The shapes of images that a model draws; None where they are all of one.

    Args:
        model: its config.
        codec: how it codes images.
        trained: the least and the greatest `height`, `width` and `area` of its training images in latent pixels,
            where they are known.
    """
    if not model.max_side:
        return None
    side = codec.autoencoder.image_shape((1, 1, model.latent_shape[2]))[0]  # pixels of a latent pixel's
    scale = {"height": side, "width": side, "area": side**2}
    known = {name: [bound * by for bound in trained[name]] for name, by in scale.items()} if trained else None
    return DrawnShapes(
        multiple=model.patch_size * side,
        largest_area=model.patches * model.patch_area * side**2,
        largest_side=model.max_side * side,
        chosen=model.shape_marks,
        trained=TrainedShapes(**known) if known else None,
    )


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
