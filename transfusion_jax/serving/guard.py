"""Stands before the API: refuses, bounds what is sent, and ends what nobody waits for any more."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transfusion_jax.serving.access import Access
from transfusion_jax.serving.bodies import RETRY, Bodies, ClientLeft
from transfusion_jax.serving.engine import Engine, Full, QueuePlace, Stopped
from transfusion_jax.serving.limits import ServerLimits

GENERATE, CAPTION = "/v1/generate", "/v1/caption"  # the paths that take a body


class RequestGuard:
    """An ASGI application before another.

    What may not be asked is refused before its body is read. A body is read here, for the paths that take one; then
    the request takes a place in the engine's queue, `request.state.place`, and has it until it is decoded or
    answered, or its client leaves. To the application every other request is one without a body.
    """

    def __init__(self, app: ASGIApp, engine: Engine, access: Access, limits: ServerLimits):
        self.app, self.engine, self.access = app, engine, access
        self.bodies = Bodies(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = self._counting(send)
        try:
            self.access.check(scope)
            if scope["method"] == "POST" and scope["path"] in (GENERATE, CAPTION):
                await self._post(scope, receive, told)
            else:
                await self.app(scope, _sent(b""), told)
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, told)
        except ClientLeft:
            self._count(499)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(reversed(scope["headers"]))
        with self.bodies.counted() as count:
            sent = _sent(await self.bodies.read(headers, receive, count))
            place = self._reserve()
            try:
                scope.setdefault("state", {})["place"] = place
                await _until_left(self.app, scope, receive, sent, send)
            finally:
                self.engine.leave(place)

    def _reserve(self) -> QueuePlace:
        try:
            return self.engine.reserve()
        except Full as error:
            raise HTTPException(503, "too many requests wait", RETRY) from error
        except Stopped as error:
            raise HTTPException(503, "the server ends", RETRY) from error

    def _counting(self, send: Send) -> Send:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(message["status"])
            await send(message)

        return told

    def _count(self, status: int) -> None:
        self.engine.measures.requests.labels(str(status)).inc()


def _sent(body: bytes) -> Receive:
    """Gives an application a body that was read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    return replay


async def _until_left(app: ASGIApp, scope: Scope, receive: Receive, sent: Receive, send: Send) -> None:
    """Has an application answer a request whose body was read, while the client waits.

    Raises:
        ClientLeft: it is gone.
    """
    answered = left = False

    async def sending(message: Message) -> None:
        nonlocal answered
        answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        if not answered:
            left = True
            answering.cancel()

    answering = asyncio.ensure_future(app(scope, sent, sending))
    watching = asyncio.create_task(watch())
    try:
        await answering
    except asyncio.CancelledError as error:
        if left:
            raise ClientLeft from error
        raise  # the server ends
    finally:
        answering.cancel()
        watching.cancel()
