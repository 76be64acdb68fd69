"""A bucket of Google Cloud Storage on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

STARTS_IN = 60.0  # seconds, on a busy machine


@contextmanager
def bucket(name: str) -> Iterator[str]:
    """The URL of an empty bucket in a process of its own; what runs meanwhile reaches no other under `gs://`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--host", "localhost", "--port", str(port), "--default-bucket", name, "--in-memory", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "gcp_storage_emulator", "start", *options])
    reached = {
        "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks what the emulator does not answer
    }
    try:
        _wait(port)
        with mock.patch.dict(os.environ, reached):
            yield f"gs://{name}"
    finally:
        process.terminate()
        process.wait()


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
