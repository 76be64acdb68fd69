"""The HTTP API and its page, on an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from transfusion_jax import __version__
from transfusion_jax.config import ConfigError, require
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.readers.pictures import PictureError
from transfusion_jax.diffusion.sampler import samplers_of
from transfusion_jax.generation.interleaved import Draws, Drew, Ended, Event, Wrote
from transfusion_jax.generation.interleaved import Request as Asked
from transfusion_jax.generation.prompt import pixels_of
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.serving.engine import Engine, Full, QueuedRequest, Sharing, Stopped
from transfusion_jax.serving.schema import (
    MOST_BODY,
    Answer,
    Caption,
    Generate,
    ImagePart,
    Problem,
    ServedModel,
    TextPart,
    Words,
    file_of,
    url_of,
)

PAGE = Path(str(resources.files("transfusion_jax.serving") / "page"))
DRAIN = 60.0  # seconds that requests under way have when the server ends
RETRY = "5"  # seconds after which one may ask again
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The model cannot do that."},
    413: {"model": Problem, "description": "The request is too large."},
    503: {"model": Problem, "description": "Too many wait, or the server ends: try again later."},
}
POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Served:
    """What the page says of the model."""

    name: str
    step: int
    weights: str


def make_app(engine: Engine, served: Served) -> FastAPI:
    """The application; it starts the engine and, at its end, waits for what is under way."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop, DRAIN)

    app = FastAPI(title="transfusion", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.middleware("http")(_guard(engine))
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    task, codec = engine.task, engine.codec
    config = task.config

    @app.exception_handler(ConfigError)
    async def refuse(_: Request, error: ConfigError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        told = [{name: fault[name] for name in ("loc", "msg", "type")} for fault in error.errors()]
        return JSONResponse({"detail": told}, 422)  # without what was sent, which may be no JSON: infinity is none

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/health", responses={503: {"model": Problem}})
    async def health() -> dict[str, str]:
        """Whether requests are served."""
        if not engine.alive:
            raise HTTPException(503, "decoding has ended")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(engine.measures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/model")
    async def model() -> ServedModel:
        """What is served."""
        draws = config.model.images == "latents"
        return ServedModel(
            name=served.name,
            step=served.step,
            weights=served.weights,  # type: ignore[arg-type]
            images=config.model.images,  # type: ignore[arg-type]
            image_size=list(codec.autoencoder.image_shape(config.model.latent_shape)),
            context=config.data.context_length,
            samplers=list(samplers_of(task.schedule)) if draws else [],  # type: ignore[union-attr]
            steps=config.sampling.steps,
            most_steps=config.diffusion.timesteps,
            guidance=config.sampling.guidance,
        )

    @app.post("/v1/generate", responses={200: {"content": {"text/event-stream": {}}}, **PROBLEMS})
    async def generate(asked: Annotated[Generate, Body()], request: Request) -> Answer:
        """Makes what follows a prompt of texts and images; the same seed and prompt give the same."""
        events = await _submit(engine, await asyncio.to_thread(_job, engine, asked))
        if asked.stream:
            return StreamingResponse(_told(events), media_type="text/event-stream")  # type: ignore[return-value]
        return await _gathered(events, request)

    @app.post("/v1/caption", responses=PROBLEMS)
    async def caption(asked: Annotated[Caption, Body()], request: Request) -> Words:
        """Puts an image into words."""
        whole = Generate(parts=[ImagePart(image=asked.image)], follow="text", max_tokens=asked.max_tokens)  # type: ignore[call-arg]
        made = await _gathered(await _submit(engine, await asyncio.to_thread(_job, engine, whole)), request)
        return Words(text="".join(part.text for part in made.parts if isinstance(part, TextPart)))

    return app


Events = AsyncIterator[Event]


def _job(engine: Engine, asked: Generate) -> Callable[[Callable], QueuedRequest]:
    """A job without its listener.

    Raises:
        ConfigError: an image cannot be read, or a value does not go with the model.
    """
    config, codec = engine.task.config, engine.codec
    segments: list[Text | Image] = []
    for number, part in enumerate(asked.parts, 1):
        if isinstance(part, TextPart):
            if part.text:
                segments.append(Text(codec.tokenizer.encode(part.text)))
            continue
        require(config.model.images != "none", "this is a model of text alone: it sees no images")
        try:
            pixels = pixels_of(file_of(part.image), config, codec)
        except PictureError as error:
            raise ConfigError(f"part {number} is no image that can be read: {error}") from error
        segments.append(Image(codec.latents(pixels[None])[0]))
    sampling = config.sampling_with(
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
    require(asked.stream or not asked.previews, "previews go with a stream: leave them out")
    how = Sharing(sampling, writing, asked.max_images, asked.previews)
    request = Asked(Document(tuple(segments)), asked.follow, asked.seed)
    return lambda tell: QueuedRequest(request, how, tell)


async def _submit(engine: Engine, make: Callable[[Callable], QueuedRequest]) -> Events:
    """The events of a job that was put into the queue."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
    job = make(lambda event: loop.call_soon_threadsafe(queue.put_nowait, event))
    try:
        engine.submit(job)
    except Full as error:
        raise HTTPException(503, "too many requests wait", {"Retry-After": RETRY}) from error
    except Stopped as error:
        raise HTTPException(503, "the server ends", {"Retry-After": RETRY}) from error

    async def events() -> Events:
        try:
            while (event := await queue.get()) is not None:
                yield event
                if isinstance(event, Ended):
                    return
            raise HTTPException(503, "decoding broke off", {"Retry-After": RETRY})
        finally:
            job.cancelled = True

    return events()


async def _gathered(events: Events, request: Request) -> Answer:
    """All that was made; nothing more is, once the client is gone."""
    parts: list[TextPart | ImagePart] = []
    async for event in events:
        if await request.is_disconnected():
            await events.aclose()  # type: ignore[attr-defined]
            raise HTTPException(499, "the client is gone")
        match event:
            case Wrote(_, text):
                if parts and isinstance(last := parts[-1], TextPart):
                    last.text += text
                else:
                    parts.append(TextPart(text=text))
            case Drew(_, image):
                parts.append(ImagePart(image=url_of(image)))
            case Ended(_, reason):
                return Answer(parts=parts, reason=reason)  # type: ignore[arg-type]
    raise AssertionError("events end with one that says so")


async def _told(events: Events) -> AsyncIterator[str]:
    """Server-sent events: `text`, `preview`, `image`, then `end`, or `error` where decoding broke off."""
    try:
        async for event in events:
            match event:
                case Wrote(_, text):
                    yield _line("text", text=text)
                case Draws(_, image, done, total):
                    yield _line("preview", image=url_of(image), done=done, total=total)
                case Drew(_, image):
                    yield _line("image", image=url_of(image))
                case Ended(_, reason):
                    yield _line("end", reason=reason)
    except HTTPException as error:
        yield _line("error", detail=error.detail)


def _line(name: str, **values: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(values)}\n\n"


def _guard(engine: Engine) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Refuses what is too large, and counts answers."""

    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdigit() or int(length) > MOST_BODY:
            detail = "say the request's length" if chunked else f"a request may hold {MOST_BODY} bytes"
            response: Response = JSONResponse({"detail": detail}, 411 if chunked else 413)
        else:
            response = await answer(request)
        engine.measures.requests.labels(str(response.status_code)).inc()
        return response

    return guard
