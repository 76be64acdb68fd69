"""Requests to an ASGI application in this process, step by step: what comes when is the test's to say."""

import asyncio
import contextlib
import json

JSON = [(b"content-type", b"application/json")]
HOST = (b"host", b"testserver")


class Exchange:
    """One request, whose body's pieces are sent one at a time."""

    def __init__(self, app, path, method="POST", headers=JSON, state=None):
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [*headers, HOST],  # the first counts
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        self.status, self.headers, self.body = None, {}, b""
        self.heard = asyncio.Event()  # some of the answer
        self._pieces = asyncio.Queue()
        self._answered = asyncio.Event()
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    @property
    def done(self):
        return self.task.done()

    async def send(self, piece, more=True):
        """Sends a piece, and returns when it was taken, or when the request is over."""
        await self._put({"type": "http.request", "body": piece, "more_body": more})

    async def leave(self):
        """Hangs up, and returns when the server knows."""
        await self._put({"type": "http.disconnect"})
        await asyncio.wait_for(self.task, 60)

    async def answer(self):
        """The status, when all is answered."""
        await self.task
        return self.status

    async def _put(self, message):
        await self._pieces.put(message)
        taken = asyncio.create_task(self._pieces.join())
        await asyncio.wait({taken, self.task}, return_when=asyncio.FIRST_COMPLETED)
        taken.cancel()

    async def _receive(self):
        if self._pieces._unfinished_tasks and self._pieces.empty():
            self._pieces.task_done()  # of the one before
        piece = asyncio.create_task(self._pieces.get())
        over = asyncio.create_task(self._answered.wait())
        try:
            await asyncio.wait({piece, over}, return_when=asyncio.FIRST_COMPLETED)
            return piece.result() if piece.done() else {"type": "http.disconnect"}
        finally:
            piece.cancel()
            over.cancel()

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                self._answered.set()
        self.heard.set()


async def get(app, path, headers=()):
    """The status of a GET."""
    return await Exchange(app, path, "GET", headers).answer()


@contextlib.asynccontextmanager
async def running(app):
    """The application between its start and its end."""
    async with app.router.lifespan_context(app):
        yield


def post(app, body, path="/v1/generate"):
    """A whole request, under way."""
    exchange = Exchange(app, path)
    exchange._pieces.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
    return exchange
