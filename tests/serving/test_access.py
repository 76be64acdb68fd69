"""Who may ask: names, origins and tokens, within and beyond."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from transfusion_jax.config import ConfigError
from transfusion_jax.serving.access import access_of, authority

OPEN = access_of("model.lan", 8000, ["proxy.example", "tunnel:9000", "[::5]:80"])
LOCKED = access_of("127.0.0.1", 8000, token="s3cret~token")
REACHED = ("10.0.0.7", 8000)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LocalHost:8000", 200),
        ("localhost.:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("[0:0:0:0:0:0:0:1]:8000", 200),
        ("model.lan:8000", 200),
        ("MODEL.lan:8000", 200),
        ("proxy.example", 200),
        ("proxy.example:443", 200),
        ("tunnel:9000", 200),
        ("[::5]", 200),
        ("10.0.0.7:8000", 200),  # the address that the connection came in at
        ("10.0.0.8:8000", 421),
        ("10.0.0.7:8001", 421),
        ("localhost", 421),
        ("localhost:8001", 421),
        ("localhost:99999", 421),
        ("localhost:", 421),
        ("localhost:8000:8000", 421),
        ("localhost:8000@evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example:8000", 421),
        ("evil.localhost:8000", 421),
        ("127.0.0.1.evil.example:8000", 421),
        ("127.1:8000", 421),
        ("2130706433:8000", 421),
        ("0x7f.1:8000", 421),
        ("0.0.0.0:8000", 421),
        ("[::ffff:127.0.0.1]:8000", 421),
        ("::1:8000", 421),
        ("tunnel", 421),
        ("tunnel:9001", 421),
        ("", 421),
        (" localhost:8000", 421),
        ("localhost:8000\x00", 421),
        ("localhost:²", 421),
        ("a" * 10_000, 421),
        ("é:8000", 421),
    ],
)
def test_names_that_it_answers_to(host, status):
    assert asked(OPEN, host=host) == status
    assert asked(OPEN, host=host, path="/health") == 200
    assert asked(OPEN, host=host, path="/", method="GET") == status


def test_without_a_name_nothing_is_answered_but_health():
    assert asked(OPEN, host=None) == 421
    assert asked(OPEN, host=None, path="/health") == 200


@given(st.text(st.characters(codec="latin-1"), max_size=40))
def test_no_other_name_gets_in(host):
    known = {"localhost:8000", "127.0.0.1:8000", "[::1]:8000", "model.lan:8000", "tunnel:9000", "10.0.0.7:8000"}
    name = host.lower().replace(".:", ":")
    expected = name in known or name.partition(":")[0].rstrip(".") == "proxy.example" or name.startswith("[")
    assert asked(OPEN, host=host) == 421 or expected


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),  # no browser
        ("http://localhost:8000", 200),
        ("http://127.0.0.1:8000", 200),
        ("http://[::1]:8000", 200),
        ("https://proxy.example", 200),
        ("http://10.0.0.7:8000", 200),
        ("http://localhost", 403),
        ("http://localhost:8888", 403),
        ("http://evil.example", 403),
        ("http://evil.example:8000", 403),
        ("https://localhost", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("localhost:8000", 403),
        ("chrome-extension://abc", 403),
        ("http://localhost:8000/", 403),
        ("http://localhost:8000 http://evil.example", 403),
    ],
)
def test_pages_that_may_ask(origin, status):
    assert asked(OPEN, origin=origin) == status
    assert asked(OPEN, origin=origin, method="PUT") == status
    assert asked(OPEN, origin=origin, method="GET") == 200  # its answer is not for a page of another site to read


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        ("Bearer s3cret~token", 200),
        ("bearer s3cret~token", 200),
        ("Bearer  s3cret~token ", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer s3cret~toke", 401),
        ("Bearer s3cret~token2", 401),
        ("Bearer S3CRET~TOKEN", 401),
        ("Basic s3cret~token", 401),
        ("s3cret~token", 401),
        ("Bearer é", 401),
        ("Bearer s3cret~token, Bearer x", 401),
        ("Bearer " + "s" * 100_000, 401),
    ],
)
def test_tokens(shown, status):
    for path in ("/v1/generate", "/v1/model", "/metrics", "/openapi.json", "/nowhere", "/healthy", "/health/"):
        assert asked(LOCKED, authorization=shown, path=path, method="GET") == status
        assert asked(OPEN, authorization=shown, path=path, method="GET") == 200  # it asks for none
    for path in ("/", "/page/page.js", "/health"):
        assert asked(LOCKED, authorization=shown, path=path, method="GET") == 200


def test_who_shows_no_token_is_told_how():
    with pytest.raises(HTTPException) as refused:
        LOCKED.check(scope_of())
    assert refused.value.headers == {"WWW-Authenticate": "Bearer"}
    assert "Authorization: Bearer" in refused.value.detail


def test_who_uses_another_name_is_told_which_there_are():
    with pytest.raises(HTTPException) as refused:
        OPEN.check(scope_of(host="<script>evil"))
    assert "localhost:8000" in refused.value.detail
    assert "--allow-host" in refused.value.detail
    assert "evil" not in refused.value.detail


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:", "a:b", "a:70000", "a/b", "http://a", "*", "a\0b", "²:²", "[::1"]
)
def test_a_name_that_is_none_is_refused(name):
    assert authority(name) is None
    with pytest.raises(ConfigError, match="--allow-host"):
        access_of("127.0.0.1", 8000, [name])


def asked(access, **how):
    try:
        access.check(scope_of(**how))
    except HTTPException as refused:
        return refused.status_code
    return 200


def scope_of(path="/v1/generate", method="POST", host="localhost:8000", origin=None, authorization=None):
    headers = {b"host": host, b"origin": origin, b"authorization": authorization}
    return {
        "path": path,
        "method": method,
        "server": REACHED,
        "headers": [(name, value.encode("latin-1")) for name, value in headers.items() if value is not None],
    }
