"""Connections on real sockets that come to a stop: at a head, at a body, between requests, at reading."""

import asyncio
import contextlib
import json
import socket
import threading

import pytest
from starlette.responses import PlainTextResponse, StreamingResponse

from served import codec, made, server
from transfusion_jax.serving.connection import TURN
from transfusion_jax.serving.engine import Engine
from transfusion_jax.serving.limits import ServerLimits
from transfusion_jax.serving.measures import Measures
from transfusion_jax.serving.server import web_server

SOON = ServerLimits(head_seconds=0.2, body_seconds=0.2, client_seconds=0.2)
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def refusing(scope, receive, send):
    """Answers without reading the body."""
    if scope["type"] == "http":
        await PlainTextResponse("no", 415)(scope, receive, send)


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", GET[:-2], b"\r\n", HEAD[:-1]])
def test_a_head_that_comes_to_a_stop_is_told_so(sent):
    with listening(refusing) as address, socket.create_connection(address) as client:
        client.sendall(sent)
        answer = read(client)
    if sent.strip():
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]
    else:
        assert not answer.startswith(b"HTTP/1.1 2")


def test_a_head_that_comes_byte_by_byte_is_told_so():
    with listening(refusing) as address, socket.create_connection(address) as client:
        client.settimeout(0.01)
        answer = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /")
            while not answer:
                client.sendall(b"a")
                with contextlib.suppress(TimeoutError):
                    answer = client.recv(2**16)
    assert answer.startswith(b"HTTP/1.1 408")


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"1\r\n \r\n"


async def reading(scope, receive, send):
    """Answers when the body is whole."""
    if scope["type"] == "http":
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            length, more = length + len(message["body"]), message["more_body"]
        await PlainTextResponse(str(length))(scope, receive, send)


@pytest.mark.parametrize(("app", "answer"), [(reading, b"200"), (refusing, b"415")])
def test_as_many_chunks_as_may_be(app, answer):
    limits = ServerLimits(chunks=1000)
    with listening(app, limits) as address, socket.create_connection(address) as client:
        for _ in range(2):  # each body is counted on its own
            client.sendall(CHUNKED + CHUNK * 1000 + b"0\r\n\r\n")
            said = b""
            while b"\r\n\r\n" not in said or said.endswith(b"\r\n\r\n"):
                said += client.recv(2**16)
            assert said.startswith(b"HTTP/1.1 " + answer)
            assert app is refusing or said.endswith(b"\r\n\r\n1000")


@pytest.mark.parametrize(("app", "answer"), [(reading, b"413"), (refusing, b"415")])
def test_a_body_in_too_many_chunks_ends_the_connection(app, answer):
    limits = ServerLimits(chunks=1000)
    with listening(app, limits) as address, socket.create_connection(address) as client:
        client.sendall(CHUNKED + CHUNK * 1000)
        client.sendall(CHUNK)
        said = read(client)
    assert said.startswith(b"HTTP/1.1 " + answer)
    assert app is refusing or b"1000 chunks" in said


@pytest.mark.parametrize("app", [reading, refusing])
@pytest.mark.parametrize("size", [1, 2000])  # so that bodies stay below what is held, and pass it
def test_other_connections_have_their_turn_between_chunks(app, size):
    async def parsing():
        web = web_server(app, ServerLimits(), waiting=1)
        web.config.load()
        connection = web.config.http_protocol_class(
            config=web.config, server_state=web.server_state, app_state={}, _loop=asyncio.get_running_loop()
        )
        connection.connection_made(transport := Transport())
        chunk = b"%x\r\n%b\r\n" % (size, b" " * size)
        connection.data_received(CHUNKED + chunk * 1000 + b"0\r\n\r\n")
        turns = 0
        while left := len(connection.conn.trailing_data[0]):
            assert left >= len(chunk) * (1000 - TURN * (turns + 1))  # no more than its turn
            if connection.flow.waiting:
                assert not transport.reading  # what comes meanwhile is held nowhere
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 1000 // TURN
        while b"\r\n\r\n" not in transport.written:
            await asyncio.sleep(0)
        assert transport.reading
        connection.connection_lost(None)

    asyncio.run(asyncio.wait_for(parsing(), 60))


class Transport(asyncio.Transport):
    """Stands in for a socket's: remembers what was written, and whether more may come."""

    def __init__(self):
        super().__init__()
        self.written, self.reading = b"", True

    def write(self, data):
        self.written += data

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return False

    def close(self):
        pass


def test_who_says_nothing_is_let_go():
    with listening(refusing) as address, socket.create_connection(address) as client:
        assert read(client) == b""


@pytest.mark.parametrize("rest", [b"", b" " * 10])
def test_a_refused_body_that_never_ends_is_let_go(rest):
    with listening(refusing) as address, socket.create_connection(address) as client:
        client.sendall(HEAD + rest)
        assert read(client).startswith(b"HTTP/1.1 415")


def test_requests_one_after_another_are_answered():
    with listening(refusing, ServerLimits()) as address, socket.create_connection(address) as client:
        client.sendall(GET + HEAD + b" " * 1000 + GET)
        answer = b""
        while answer.count(b"\r\n\r\nno") < 3:
            answer += client.recv(2**16)
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert read(client).startswith(b"HTTP/1.1 415")


def test_who_does_not_read_is_let_go():
    ended = threading.Event()

    async def endless():
        try:
            while True:
                yield b" " * 2**16
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await StreamingResponse(endless())(scope, receive, send)

    with listening(app) as address, socket.create_connection(address) as client:
        client.sendall(GET)
        assert ended.wait(60)


def test_heads_and_connections_are_bounded():
    with listening(refusing, ServerLimits(connections=2)) as address:
        with socket.create_connection(address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"x" * 17_000)
            assert read(client).startswith(b"HTTP/1.1 400")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(address)) for _ in range(4)]
            clients[-1].sendall(GET)
            assert read(clients[-1]).startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_comes_byte_by_byte_is_told_so(length):
    with server(Engine(*made(), codec(), 2, Measures()), SOON) as url:
        address = url.removeprefix("http://")
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as client:
            lines = ["POST /v1/generate HTTP/1.1", f"Host: {address}", "Content-Type: application/json", length]
            client.sendall("\r\n".join([*lines, "", ""]).encode())
            client.settimeout(0.01)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while not answer:
                    client.sendall(b"1\r\n \r\n" if "chunked" in length else b" ")
                    with contextlib.suppress(TimeoutError):
                        answer = client.recv(2**16)
        assert answer.startswith(b"HTTP/1.1 408")


@contextlib.contextmanager
def listening(app, limits=SOON):
    """The address of an application."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        web = web_server(app, limits, waiting=1)
        thread = threading.Thread(target=web.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield bound.getsockname()
        finally:
            web.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


def read(client):
    """All that the server says until it hangs up."""
    client.settimeout(60)
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(2**16):
            said += piece
    return said
