"""Who may ask a server: by the name that it is called by, the page that asks, and a token."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from transfusion_jax.config import require
from transfusion_jax.errors import some

HEALTH = "/health"  # for load balancers, which know neither names nor tokens
LOCAL = ("localhost", "127.0.0.1", "::1")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}

Name = tuple[str, int | None]  # a host and a port; without one, any port


@dataclass(frozen=True)
class Access:
    """The names that a server answers to, and the token that it asks for."""

    names: frozenset[Name]
    token: str | None = None

    def check(self, scope: Mapping[str, Any]) -> None:
        """Raises HTTPException where the request of an ASGI scope may not be made."""
        path = scope["path"]
        if path == HEALTH:
            return
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}  # the first counts
        if not self._known(authority(headers.get(b"host", "")), scope):
            names = some(sorted(map(_shown, self.names)), 6)
            raise HTTPException(421, f"this server answers to {names}: --allow-host NAME adds a name")
        origin = headers.get(b"origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and not self._own(origin, scope):
            raise HTTPException(403, "a page of another site may not ask this server")
        asset = path == "/" or path.startswith("/page/")
        if self.token is not None and not asset and not self._holds(headers.get(b"authorization", "")):
            detail = "this server asks for its token: Authorization: Bearer TOKEN"
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})

    def _known(self, name: Name | None, scope: Mapping[str, Any]) -> bool:
        if name is None:
            return False
        return name in self.names or (name[0], None) in self.names or name == _reached(scope)

    def _own(self, origin: str, scope: Mapping[str, Any]) -> bool:
        """Whether a page of this origin is one of the server's own."""
        scheme, _, rest = origin.partition("://")
        return scheme in _PORTS and self._known(authority(rest, _PORTS[scheme]), scope)

    def _holds(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        expected = (self.token or "").encode()
        return hmac.compare_digest(token.strip().encode("latin-1"), expected) and scheme.lower() == "bearer"


def access_of(host: str, port: int, others: Iterable[str] = (), token: str | None = None) -> Access:
    """Access to a server bound to a host and a port.

    Args:
        host: the name or address that it was bound to.
        port: the port that it listens at.
        others: more names, `NAME` or `NAME:PORT`.
        token: what clients must show, if anything.

    Raises:
        ConfigError: one of `others` is no name.
    """
    more = [authority(name, None) for name in others]
    for given, name in zip(others, more, strict=True):
        require(name is not None, f"--allow-host is {given[:80]!r}: give a host's name, or a name and a port")
    own = [(canonical(name), port) for name in (*LOCAL, host)]
    return Access(frozenset([*own, *(name for name in more if name)]), token)


def authority(text: str, default: int | None = 80) -> Name | None:
    """The name and the port of `NAME[:PORT]`, as the Host header has it; None where it is neither."""
    found = _AUTHORITY.fullmatch(text)
    if not found or (found[2] and int(found[2]) > 65535):
        return None
    return canonical(found[1].strip("[]")), int(found[2]) if found[2] else default


def canonical(host: str) -> str:
    """One spelling of a host: addresses compressed, names in lower case."""
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return host.lower().rstrip(".")


def _shown(name: Name) -> str:
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return host if name[1] is None else f"{host}:{name[1]}"


def _reached(scope: Mapping[str, Any]) -> Name | None:
    """The address that the connection came in at: no name that another can point here."""
    address, port = scope.get("server") or ("", None)
    try:
        return ipaddress.ip_address(address).compressed, port
    except ValueError:
        return None
