"""Judges network addresses: what a catalogue may lead to, by where it lies itself and which hosts the user named."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import urlsplit

from eocube.errors import EocubeError

_DEFAULT_PORT = {"http": 80, "https": 443}
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory", "file", "local")
_MAPPED = ipaddress.ip_network("64:ff9b::/96")
# Where clouds hand a machine its credentials, beside 169.254.169.254, which is link-local.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressError(EocubeError, ValueError):
    """A request would go to an address that the one who named it may not name. Asking again is no use."""


class Reach(IntEnum):
    """How near an address is to this machine. What lies at one may lead to all that is no nearer."""

    PUBLIC = 0
    PRIVATE = 1
    """Of a network of somebody's own: 10/8, 172.16/12, 192.168/16, 100.64/10, fc00::/7."""
    LOOPBACK = 2
    """This machine."""
    ANY = 3
    """Link-local too, where clouds hand out a machine's credentials."""


_SAID = {Reach.PRIVATE: "in a private network", Reach.LOOPBACK: "on this machine", Reach.ANY: "link-local or special"}


def reach_of_address(text: str) -> Reach:
    """Where an IP address lies; one that stands for another (mapped, 6to4) counts as that."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _MAPPED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return reach_of_address(str(inner))
    if address in _METADATA or address.is_link_local or address.is_multicast:
        return Reach.ANY
    if address.is_loopback or address.is_unspecified:
        return Reach.LOOPBACK
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


def numeric(host: str) -> str | None:
    """The address that a host spells out, in whichever form (127.1, 0x7f000001, 2130706433); None for a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])


def reach_of_host(host: str) -> Reach:
    """Where a host lies that the user gave. A name counts as private at most: where it leads may change any time."""
    address = numeric(host)
    if address is not None:
        return reach_of_address(address)
    if _is_localhost(host):
        return Reach.LOOPBACK
    try:
        return min((Reach.PRIVATE, *(reach_of_address(address) for address in lookup(host))))
    except OSError:
        return Reach.PUBLIC


def _is_localhost(host: str) -> bool:
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def lookup(host: str, port: int | None = None) -> list[str]:
    """All addresses of a host, in the resolver's order. OSError where it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"no such host {host}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Policy:
    """Which addresses requests may go to.

    `reach` is the nearest that may be asked; `named` are hosts that the user vouches for by name, wherever they lie.
    """

    reach: Reach = Reach.ANY
    named: tuple[str, ...] = ()

    def check_url(self, url: str) -> None:
        """AddressError for a URL whose host spells out an address that may not be asked.

        Names of web servers are not looked up here: that is done as they are connected to. Those of other protocols
        are, since their clients connect by themselves; object stores are where the user's options say.
        """
        scheme = urlsplit(url).scheme if "://" in url else ""
        if self.reach is Reach.ANY or scheme in ("", *_OBJECT_STORES):
            return
        _, host, port = place_of(url)
        self.check_host(host, port)
        if scheme not in _DEFAULT_PORT:
            self.check_name(url)

    def check_name(self, url: str) -> None:
        """AddressError for a URL whose host is found at an address that may not be asked; OSError where at none."""
        _, host, port = place_of(url)
        for address in lookup(host):
            self.check_address(host, port, address)

    def check_host(self, host: str, port: int | None = None) -> None:
        """AddressError for a host that spells out an address, or this machine, that may not be asked."""
        address = "127.0.0.1" if _is_localhost(host) else numeric(host)
        if address is not None:
            self.check_address(host, port, address)

    def check_address(self, host: str, port: int | None, address: str) -> None:
        """AddressError where a host is found at an address that may not be asked."""
        there = reach_of_address(address)
        if there <= self.reach or any(_is_host(pattern, host, port) for pattern in self.named):
            return
        shown = host if host == address else f"{host} ({address})"
        raise AddressError(
            f"{shown} lies {_SAID[there]}, where this catalogue may not lead; if you trust it, name the host: "
            f'--source-options \'{{"hosts": {{"{host}": {{}}}}}}\''
        )


def place_of(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL, the port its scheme's own where it says none. AddressError where it has none."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise AddressError(f"no URL: {error}") from None
    return parts.scheme, host, port or _DEFAULT_PORT.get(parts.scheme)


def matches(pattern: str, url: str) -> bool:
    """Whether a URL is of the hosts that a pattern names: "h", "h:8080", "https://h", "*.example.org" or "*"."""
    scheme, host, port = place_of(url)
    wanted, mark, rest = pattern.rpartition("://")
    if mark and wanted.lower() != scheme:
        return False
    if rest == "*":
        return True
    if rest.startswith("*."):
        return host.endswith(rest[1:].lower())
    return _is_host(rest, host, port, _DEFAULT_PORT.get(scheme) if mark else None)


def _is_host(pattern: str, host: str, port: int | None, otherwise: int | None = None) -> bool:
    """Whether a pattern without wildcard is a host and port; without a port it means `otherwise`, None: any."""
    _, wanted, its_port = place_of(f"//{pattern.rpartition('://')[2]}")
    return wanted == host.lower().rstrip(".") and (its_port or otherwise) in (None, port)


def origins(url: str) -> tuple[str, ...]:
    """The patterns of what a catalogue's place stands for: its scheme, host and port, and https where it is http.

    Empty for places that have no host.
    """
    scheme, host, port = place_of(url)
    if not host:
        return ()
    shown = f"[{host}]" if ":" in host else host
    own = f"{scheme}://{shown}" + (f":{port}" if port else "")
    return (own, f"https://{shown}:443") if scheme == "http" and port == _DEFAULT_PORT["http"] else (own,)


def specificity(pattern: str) -> tuple[int, int]:
    """What patterns sort by, so that the narrower ones come last."""
    rest = pattern.rpartition("://")[2]
    kind = 0 if rest == "*" else 1 if rest.startswith("*.") else 3 if "://" in pattern else 2
    return kind, len(rest)


def vouched_hosts(patterns: Iterable[str]) -> tuple[str, ...]:
    """Those patterns that name a single host: only such a name says that the user knows where it lies."""
    return tuple(sorted(p for p in patterns if "*" not in p))
