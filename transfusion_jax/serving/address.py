"""The address that a server listens at."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from transfusion_jax.config import ConfigError, require

BACKLOG = 128  # connections that the system holds until they are taken
_NAME = re.compile(
    r"(?!.{254})([0-9a-z_]([0-9a-z_-]{0,61}[0-9a-z_])?\.)*[0-9a-z_]([0-9a-z_-]{0,61}[0-9a-z_])?\.?", re.I
)


@dataclass(frozen=True)
class Address:
    """An address that was resolved, and how it was given."""

    host: str
    family: socket.AddressFamily
    port: int
    place: tuple  # as `socket.bind` takes it

    @property
    def loopback(self) -> bool:
        """Whether this machine alone reaches it."""
        address = ipaddress.ip_address(self.place[0].partition("%")[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    @property
    def everywhere(self) -> bool:
        """Whether it stands for all addresses of this machine."""
        return ipaddress.ip_address(self.place[0].partition("%")[0]).is_unspecified

    @property
    def link(self) -> str:
        """The host of a URL that a browser on this machine can open."""
        if self.everywhere:
            return "127.0.0.1" if self.family == socket.AF_INET else "[::1]"
        return self.shown

    @property
    def shown(self) -> str:
        """The host as a URL has it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def listen(self) -> socket.socket:
        """A socket that listens at it: connections wait until they are taken.

        Raises:
            ConfigError: it is taken, or not this machine's.
        """
        try:
            return socket.create_server(self.place, family=self.family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen at {self.shown}:{self.port}: {error.strerror}") from error


def resolve(host: str, port: int) -> Address:
    """The address of `--host` and `--port`.

    Raises:
        ConfigError: it is no host's name, or one that nobody knows.
    """
    require(host != "", "--host is empty: give an address to listen at, such as 127.0.0.1")
    require(0 <= port < 2**16, f"--port must lie between 0 and 65535, not {port}")
    name = _ascii(host)
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        place = socket.getaddrinfo(name, port, family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise ConfigError(f"--host {_short(host)} cannot be resolved: {error.strerror}") from error
    return Address(name, family, port, place)


def _ascii(host: str) -> str:
    """A host that is an address or a name, without what no resolver takes."""
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError as error:
        raise ConfigError(f"--host {_short(host)} is no host's name") from error
    if ":" in name:
        try:
            address = ipaddress.IPv6Address(name)
        except ValueError as error:
            raise ConfigError(f"--host {_short(host)} is no IPv6 address") from error
        require(
            re.fullmatch(r"[\w.-]*", address.scope_id or "") is not None, f"--host {_short(host)} has no such zone"
        )
    else:
        require(_NAME.fullmatch(name) is not None, f"--host {_short(host)} is no host's name")
    return name


def _short(host: str) -> str:
    shown = ascii(host)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
