"""A bucket of Google Cloud Storage on this machine.

gcp-storage-emulator, and what it lacks: the conditions and generations that writers of locks and checkpoints go by,
and a bucket and objects that fail as the real ones do.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from unittest import mock

STARTS_IN = 60.0  # seconds, on a busy machine
FORBIDDEN = "forbidden-bucket"  # a bucket that answers to nobody
FLAKY = "flaky"  # an object with this in its name is not available when it is first asked for


@contextmanager
def bucket(name: str) -> Iterator[str]:
    """The URL of an empty bucket in a process of its own; what runs meanwhile reaches no other under `gs://`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, str(port), name])
    try:
        _wait(port)
        with mock.patch.dict(os.environ, reached(port)):
            yield f"gs://{name}"
    finally:
        process.terminate()
        process.wait()


def reached(port: int) -> dict[str, str]:
    """The environment of a process that finds its buckets at a port of this machine."""
    return {
        "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks for a bucket's kind, which goes unanswered
        "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{port}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",  # TensorStore's
    }


def _wait(port: int) -> None:
    """Until the port answers."""
    until = time.monotonic() + STARTS_IN
    while True:
        try:
            socket.create_connection(("localhost", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _serve(port: int, name: str) -> None:
    from gcp_storage_emulator import __main__ as emulator
    from gcp_storage_emulator import server

    def handle_error(self: Any, *connection: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client was killed, or has read enough
            report(self, *connection)

    service = server.server.HTTPServer
    report, service.handle_error = service.handle_error, handle_error
    service.request_queue_size = (
        128  # connections that wait; of more than five, some would try again a second later
    )
    asked: set[tuple[str, str]] = set()
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = _like_the_real_one(handler, asked)
    emulator.main(
        ["start", "--host", "localhost", "--port", str(port), "--default-bucket", name, "--in-memory", "--quiet"]
    )


def _like_the_real_one(handler: Callable[..., None], asked: set[tuple[str, str]]) -> Callable[..., None]:
    """A handler that minds conditions and generations, and fails where it should."""

    def handle(request: Any, response: Any, storage: Any) -> None:
        folder, name = request.params.get("bucket_name"), _object(request)
        if folder == FORBIDDEN:
            response.status = HTTPStatus.FORBIDDEN
            return
        if name and FLAKY in name and (request.method, name) not in asked:
            asked.add((request.method, name))
            response.status = HTTPStatus.SERVICE_UNAVAILABLE
            return
        generation = _generation(storage, folder, name)
        wanted, unwanted = (request.query.get(f"ifGeneration{of}Match", [None])[0] for of in ("", "Not"))
        if wanted not in (None, generation):
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif unwanted == generation:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage)
            if generation != "0":
                response["x-goog-generation"] = generation

    return handle


def _object(request: Any) -> str | None:
    """The name of the object that a request is about."""
    name = request.params.get("object_id") or request.query.get("name", [None])[0]
    if name is None and request.query.get("uploadType") == ["multipart"]:
        name = request.data["meta"].get("name")
    return None if name is None else str(name)


def _generation(storage: Any, folder: str | None, name: str | None) -> str:
    """The generation of an object; 0: there is none."""
    from gcp_storage_emulator.exceptions import NotFound

    if name is None:
        return "0"
    try:
        return str(storage.get_file_obj(folder, name)["generation"])
    except NotFound:
        return "0"


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
