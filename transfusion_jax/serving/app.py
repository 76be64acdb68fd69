"""The HTTP API and its page, on an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from transfusion_jax import __version__
from transfusion_jax.config import ConfigError
from transfusion_jax.diffusion.sampler import samplers_of
from transfusion_jax.generation.interleaved import Draws, Drew, Ended, Wrote, grid_of
from transfusion_jax.generation.sizes import untrained_shape
from transfusion_jax.serving.access import Access
from transfusion_jax.serving.bodies import RETRY
from transfusion_jax.serving.engine import Compiling, Engine, QueuedRequest, Stopped, Warned
from transfusion_jax.serving.faults import faults_of
from transfusion_jax.serving.guard import CAPTION, GENERATE, RequestGuard
from transfusion_jax.serving.inbox import Inbox
from transfusion_jax.serving.limits import ServerLimits
from transfusion_jax.serving.reading import read_request
from transfusion_jax.serving.schema import (
    Answer,
    Caption,
    Generate,
    ImagePart,
    Problem,
    ServedModel,
    TextPart,
    Words,
    drawn_shapes,
    url_of,
)

PAGE = Path(str(resources.files("transfusion_jax.serving") / "page"))
BROKEN = "decoding broke off"
DRAIN = 60.0  # seconds that requests under way have when the server ends
OTHERS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The server asks for a token."},
    421: {"model": Problem, "description": "The server does not answer to this name."},
}
PROBLEMS: dict[int | str, dict[str, Any]] = OTHERS | {
    400: {"model": Problem, "description": "The model cannot do that."},
    403: {"model": Problem, "description": "A page of another site asks."},
    408: {"model": Problem, "description": "The request came too slowly."},
    413: {"model": Problem, "description": "The request is too large."},
    415: {"model": Problem, "description": "The request is no JSON."},
    503: {"model": Problem, "description": "Too many wait, or the server ends: try again later."},
}
POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Served:
    """What the page says of the model."""

    name: str
    step: int
    weights: str
    trained: Mapping[str, Sequence[int]] | None = None  # shapes of the training images, where known


def make_app(engine: Engine, served: Served, access: Access, limits: ServerLimits | None = None) -> FastAPI:
    """The application; it starts the engine and, at its end, waits for what is under way."""
    limits = limits or ServerLimits()
    readers = ThreadPoolExecutor(limits.readers, "reading")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop, DRAIN)
        readers.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="transfusion", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(RequestGuard, engine=engine, access=access, limits=limits)
    app.state.readers = readers
    app.router.route_class = _parsing_in(readers)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    locked = [Security(HTTPBearer(auto_error=False))] if access.token else []  # for the schema: the guard checks it
    task, codec = engine.task, engine.codec
    config = task.config

    @app.exception_handler(ConfigError)
    async def refuse(_: Request, error: ConfigError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": faults_of(error.errors(), limits)}, 422)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/health", responses={503: {"model": Problem}})
    async def health() -> dict[str, str]:
        """Whether requests are served at once: not before the first programs are compiled."""
        if not engine.alive:
            raise HTTPException(503, "decoding has ended")
        if not engine.warm:
            raise HTTPException(503, "compiling: not warm yet", RETRY)
        return {"status": "ok"}

    plain: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}, **OTHERS}

    @app.get("/metrics", response_class=Response, responses=plain, dependencies=locked)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(engine.measures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/model", responses=OTHERS, dependencies=locked)
    async def model() -> ServedModel:
        """What is served."""
        draws = config.model.images == "latents"
        return ServedModel(
            name=served.name,
            step=served.step,
            weights=served.weights,  # type: ignore[arg-type]
            images=config.model.images,  # type: ignore[arg-type]
            image_size=list(codec.autoencoder.image_shape(config.model.latent_shape)),
            shapes=drawn_shapes(config.model, codec, served.trained),
            context=config.data.context_length,
            samplers=list(samplers_of(task.schedule)) if draws else [],  # type: ignore[union-attr]
            steps=config.sampling.steps,
            most_steps=config.diffusion.timesteps,
            guidance=config.sampling.guidance,
            warm=engine.warm,
        )

    async def submitted(asked: Generate, request: Request) -> Inbox:
        """Where the events of a request come in that was put into the queue."""
        place, inbox = request.state.place, Inbox()
        read = partial(read_request, asked, task, codec, limits.pixels, lambda: place.left)
        what, how = await asyncio.get_running_loop().run_in_executor(readers, read)
        grid = grid_of(what, config.model) if what.follow != "text" else None
        if grid and (warning := untrained_shape(grid, config, codec, served.trained)):
            inbox.tell(Warned(warning))
        try:
            engine.submit(place, QueuedRequest(what, how, inbox.tell))
        except Stopped as error:
            raise HTTPException(503, "the server ends", RETRY) from error
        return inbox

    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}, **PROBLEMS}

    @app.post(GENERATE, responses=streamed, dependencies=locked)
    async def generate(asked: Annotated[Generate, Body()], request: Request) -> Answer:
        """Makes what follows a prompt of texts and images; the same seed and prompt give the same."""
        inbox = await submitted(asked, request)
        if asked.stream:
            return StreamingResponse(_told(inbox), media_type="text/event-stream")  # type: ignore[return-value]
        return await _gathered(inbox)

    @app.post(CAPTION, responses=PROBLEMS, dependencies=locked)
    async def caption(asked: Annotated[Caption, Body()], request: Request) -> Words:
        """Puts an image into words."""
        whole = Generate(parts=[ImagePart(image=asked.image)], follow="text", max_tokens=asked.max_tokens)  # type: ignore[call-arg]
        made = await _gathered(await submitted(whole, request))
        return Words(text="".join(part.text for part in made.parts if isinstance(part, TextPart)))

    return app


def _parsing_in(readers: ThreadPoolExecutor) -> type[APIRoute]:
    """Routes whose requests parse their JSON in a thread of the readers'."""

    class Parsed(Request):
        async def json(self) -> Any:
            return await asyncio.get_running_loop().run_in_executor(readers, _parsed, await self.body())

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer = super().get_route_handler()

            async def handler(request: Request) -> Response:
                return await answer(Parsed(request.scope, request.receive))

            return handler

    return Route


def _parsed(body: bytes) -> Any:
    """A body's JSON; what counted its characters took it for UTF-8, so that it is nothing else.

    Raises:
        HTTPException: it is no UTF-8.
        json.JSONDecodeError: it is no JSON.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HTTPException(400, "a request's JSON must be UTF-8") from error
    return json.loads(text)


async def _gathered(inbox: Inbox) -> Answer:
    """All that was made."""
    parts: list[TextPart | ImagePart] = []
    warnings: list[str] = []
    while True:
        match await inbox.get():
            case Warned(text):
                warnings.append(text)
            case Wrote(_, text):
                if parts and isinstance(last := parts[-1], TextPart):
                    last.text += text
                else:
                    parts.append(TextPart(text=text))
            case Drew(_, image):
                parts.append(ImagePart(image=await asyncio.to_thread(url_of, image)))
            case Ended(_, reason):
                return Answer(parts=parts, reason=reason, warnings=warnings)  # type: ignore[arg-type]
            case None:
                raise HTTPException(503, BROKEN, RETRY)


async def _told(inbox: Inbox) -> AsyncIterator[str]:
    """Server-sent events, such as `text` or `image`, and last `end`, or `error` where decoding broke off."""
    while True:
        match await inbox.get():
            case Warned(text):
                yield _line("warning", detail=text)
            case Compiling(now):
                yield _line("compiling", now=now)
            case Wrote(_, text):
                yield _line("text", text=text)
            case Draws(_, image, done, total):
                yield _line("preview", image=await asyncio.to_thread(url_of, image), done=done, total=total)
            case Drew(_, image):
                yield _line("image", image=await asyncio.to_thread(url_of, image))
            case Ended(_, reason):
                yield _line("end", reason=reason)
                return
            case None:
                yield _line("error", detail=BROKEN)
                return


def _line(name: str, **values: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(values)}\n\n"
