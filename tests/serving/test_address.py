"""Addresses to listen at: the good, and whatever else may be typed."""

import socket
from argparse import Namespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfusion_jax.commands.serve import choose_token
from transfusion_jax.config import ConfigError
from transfusion_jax.serving import address
from transfusion_jax.serving.address import resolve

NONSENSE = [
    "",
    "a\0b",
    "\0",
    "é" * 100,
    "e" * 64,
    "a." * 200 + "a",
    "a..b",
    ".a",
    "-a",
    "a b",
    "a\nb",
    "a/b",
    "http://a",
    "a:b",
    "1.2.3.4:80",
    "[::1]",
    "::1%\0",
    "::1%a b",
    ":::",
    "\udcff",
    "\x1b[31m",
    "²",
    "٣" * 64,
    "*",
    "'",
    "x" * 100_000,
]


@pytest.mark.parametrize("host", NONSENSE, ids=[ascii(host)[:20] for host in NONSENSE])
def test_a_host_that_is_none_is_one_short_sentence(host, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match="--host") as refused:
        resolve(host, 80)
    said = str(refused.value)
    assert len(said) < 250
    assert said.isprintable()


@given(host=st.text(max_size=80))
def test_no_host_ends_in_anything_else(host):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(ConfigError, match="--host"):
            resolve(host, 80)


@pytest.mark.parametrize("port", [-1, 2**16, 10**30])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(ConfigError, match="--port must lie between 0 and 65535"):
        resolve("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "resolved", "loopback"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("127.9.9.9", "127.9.9.9", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("machine.lan", "127.0.1.1", True),
        ("machine.lan", "10.0.0.1", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("0", "0.0.0.0", False),
        ("::", "::", False),
        ("::ffff:0.0.0.0", "::ffff:0.0.0.0", False),
        ("fe80::1%eth0", "fe80::1%eth0", False),
        ("192.168.1.2", "192.168.1.2", False),
        ("bücher.example", "10.0.0.1", False),
    ],
)
def test_what_other_machines_reach_asks_for_a_token(host, resolved, loopback, monkeypatch):
    monkeypatch.setattr(address.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", (resolved, 80))])
    found = resolve(host, 80)
    assert found.loopback is loopback
    asked = Namespace(host=host, token=None, no_token=False)
    if loopback:
        assert choose_token(asked, {}, found.loopback) is None
    else:
        with pytest.raises(ConfigError, match="TRANSFUSION_TOKEN, or say --no-token"):
            choose_token(asked, {}, found.loopback)


@pytest.mark.parametrize("loopback", [True, False])
@pytest.mark.parametrize(
    ("token", "no_token", "environment", "expected"),
    [
        ("abc", False, {}, "abc"),
        (None, False, {"TRANSFUSION_TOKEN": "env"}, "env"),
        ("abc", False, {"TRANSFUSION_TOKEN": "env"}, "abc"),
        (None, True, {}, None),
        (None, True, {"TRANSFUSION_TOKEN": "env"}, None),
        ("abc", True, {}, ConfigError),
        ("", False, {}, ConfigError),
        (None, False, {"TRANSFUSION_TOKEN": ""}, ConfigError),
        ("a b", False, {}, ConfigError),
        ("a\n", False, {}, ConfigError),
        ("é", False, {}, ConfigError),
        ("\0", False, {}, ConfigError),
        (None, False, {"TRANSFUSION_TOKEN": "a\udcff"}, ConfigError),
    ],
)
def test_where_the_token_comes_from(token, no_token, environment, expected, loopback):
    asked = Namespace(host="x", token=token, no_token=no_token)
    if expected is ConfigError:
        with pytest.raises(ConfigError, match=r"--token|TRANSFUSION_TOKEN"):
            choose_token(asked, environment, loopback)
    else:
        assert choose_token(asked, environment, loopback) == expected


def test_an_address_in_use_is_found_before_the_model_is_read():
    with resolve("127.0.0.1", 0).listen() as first, pytest.raises(ConfigError, match=r"cannot listen at 127\.0"):
        resolve("127.0.0.1", first.getsockname()[1]).listen()
    with pytest.raises(ConfigError, match=r"cannot listen at 192\.0\.2\.1"):  # another machine's
        resolve("192.0.2.1", 0).listen()


def unknown(*_):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("host", "everywhere", "link"),
    [
        ("0.0.0.0", True, "127.0.0.1"),
        ("0", True, "127.0.0.1"),
        ("::", True, "[::1]"),
        ("0:0::0", True, "[::1]"),
        ("127.0.0.2", False, "127.0.0.2"),
        ("::1", False, "[::1]"),
        ("localhost", False, "localhost"),
    ],
)
def test_a_link_can_be_opened(host, everywhere, link):
    found = resolve(host, 80)
    assert (found.everywhere, found.link) == (everywhere, link)
