"""From what a client sent to a request that can be decoded."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress

from transfusion_jax.config import Config, ConfigError, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.readers.pictures import PictureError, area
from transfusion_jax.generation.drawing import patch_room
from transfusion_jax.generation.interleaved import Request, check_requests
from transfusion_jax.generation.sizes import grid_of_aspect, grid_of_size, parse_aspect, parse_size, pixels_of_file
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.serving.engine import Sharing
from transfusion_jax.serving.schema import Generate, ImagePart, TextPart, file_of
from transfusion_jax.tasks.families import ModelTask

PREVIEWS = 8  # that the page asks for
ASPECTS = ("1:1", "2:1", "4:3", "3:2", "16:9")  # of its menu; those that are turned have as many patches
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
    grid = _grid(asked, task.config, codec)
    document = _document(asked, task, codec, pixels, left)
    how = Sharing(sampling, writing, asked.max_images, asked.previews)
    return Request(document, asked.follow, asked.seed, grid=grid), how


def usual_requests(task: ModelTask, codec: Codec) -> list[tuple[Request, Sharing]]:
    """What the page asks for first: an image, a text, and an image of each size of its menu, as the model can."""
    model, usual = task.config.model, dict[tuple[str, int | None], tuple[Request, Sharing]]()
    menu = [("image", aspect) for aspect in ASPECTS] if model.max_side else []
    for follow, aspect in [("image", None), ("text", None), *menu]:
        body = Generate(parts=[TextPart(text="a")], follow=follow, aspect=aspect, stream=True, previews=PREVIEWS)  # type: ignore[call-arg, arg-type]
        with suppress(ConfigError):  # a model of text alone, with a context for less than an image, or too narrow
            request, how = read_request(body, task, codec, pixels=0)
            check_requests(task.config, [request], how.sampling)
            room = request.grid and patch_room(math.prod(request.grid), model)
            usual.setdefault((follow, room), (request, how))
    return list(usual.values())


def _grid(asked: Generate, config: Config, codec: Codec) -> tuple[int, int] | None:
    require(
        asked.follow != "text" or (asked.size or asked.aspect) is None,
        "nothing is drawn where a text follows: leave out size and aspect",
    )
    if asked.size is not None:
        return grid_of_size(*parse_size(asked.size), config, codec)
    return None if asked.aspect is None else grid_of_aspect(*parse_aspect(asked.aspect), config, codec)


def _document(asked: Generate, task: ModelTask, codec: Codec, pixels: int, left: Callable[[], bool]) -> Document:
    config, model = task.config, task.config.model
    images = sum(isinstance(part, ImagePart) for part in asked.parts)
    require(model.images != "none" or not images, "this is a model of text alone: it sees no images")
    context, least = config.data.context_length, (1 if model.max_side else model.patches) + model.image_marks
    room = f"the model's context of {context}: leave some out"
    require(images * least < context, f"{images} images do not fit {room}")
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
                shown = pixels_of_file(file, config, codec)
            segments.append(Image(codec.latents(shown[None])[0]))
            length = Document(tuple(segments)).length(model)
            require(length <= context, f"the parts up to {number} take {length} elements and do not fit {room}")
        except PictureError as error:
            raise ConfigError(f"part {number} is no image that can be read: {error}") from error
    return Document(tuple(segments))
