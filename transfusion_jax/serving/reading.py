"""From what a client sent to a request that can be decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress

from transfusion_jax.config import ConfigError, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.readers.pictures import PictureError, area
from transfusion_jax.generation.interleaved import Request, check_requests
from transfusion_jax.generation.prompt import pixels_of
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.serving.engine import Sharing
from transfusion_jax.serving.schema import Generate, ImagePart, TextPart, file_of
from transfusion_jax.tasks.families import ModelTask

PREVIEWS = 8  # that the page asks for
LARGE = 1 << 24  # pixels: an image with more is decoded while no other such is, for the memory that it takes
_large = threading.Lock()


class Departed(Exception):
    """The client is gone, and nobody waits for what is read."""


def read_request(
    asked: Generate, task: ModelTask, codec: Codec, pixels: int, left: Callable[[], bool] = lambda: False
) -> tuple[Request, Sharing]:
    """The request that a body asks for, with its images decoded.

    Args:
        asked: the body.
        task: the model's.
        codec: how it codes texts and images.
        pixels: that all images may have together.
        left: whether the client is gone, asked before each image.

    Raises:
        ConfigError: an image cannot be read, or a value does not go with the model.
        Departed: the client is gone.
    """
    require(asked.stream or not asked.previews, "previews go with a stream: leave them out")
    sampling = task.config.sampling_with(
        steps=asked.steps,
        sampler=asked.sampler,
        guidance=asked.guidance,
        image_guidance=asked.image_guidance,
        guidance_rescale=asked.guidance_rescale,
        temperature=asked.code_temperature,
    )
    writing = Writing(
        *(asked.max_tokens, asked.temperature, asked.top_k, asked.top_p, asked.min_p, tuple(asked.stop))
    )
    document = _document(asked, task, codec, pixels, left)
    how = Sharing(sampling, writing, asked.max_images, asked.previews)
    return Request(document, asked.follow, asked.seed), how


def usual_requests(task: ModelTask, codec: Codec) -> list[tuple[Request, Sharing]]:
    """What the page asks for first: an image where the model draws, and a text."""
    usual = []
    for follow in ("image", "text"):
        body = Generate(parts=[TextPart(text="a")], follow=follow, stream=True, previews=PREVIEWS)  # type: ignore[call-arg]
        request, how = read_request(body, task, codec, pixels=0)
        with suppress(ConfigError):  # a model of text alone, or with a context for less than an image
            check_requests(task.config, [request], how.sampling)
            usual.append((request, how))
    return usual


def _document(asked: Generate, task: ModelTask, codec: Codec, pixels: int, left: Callable[[], bool]) -> Document:
    config = task.config
    images = sum(isinstance(part, ImagePart) for part in asked.parts)
    require(config.model.images != "none" or not images, "this is a model of text alone: it sees no images")
    most = config.data.context_length // (config.model.patches + 2)
    require(images <= most, f"{images} images do not fit the model's context of {config.data.context_length}")
    segments: list[Text | Image] = []
    for number, part in enumerate(asked.parts, 1):
        if isinstance(part, TextPart):
            if part.text:
                segments.append(Text(codec.tokenizer.encode(part.text)))
            continue
        try:
            file = file_of(part.image)
            pixels -= (size := area(file))
            require(pixels >= 0, f"the images up to part {number} have too many pixels together: make them smaller")
            with _large if size > LARGE else nullcontext():
                if left():  # it may have waited
                    raise Departed
                shown = pixels_of(file, config, codec)
            segments.append(Image(codec.latents(shown[None])[0]))
        except PictureError as error:
            raise ConfigError(f"part {number} is no image that can be read: {error}") from error
    return Document(tuple(segments))
