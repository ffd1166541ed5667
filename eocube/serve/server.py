"""Runs the server: binds its port, prints where the page is, stops at Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from eocube.errors import InputError

GRACE = 3
"""Seconds that answers under way are given at the end."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    allow_hosts: Sequence[str] = ()


def listen(place: Place) -> socket.socket:
    """A socket at the place. InputError where it is taken or is not this machine's."""
    if not 0 <= place.port < 65536:
        raise InputError(f"--port {place.port}: a port is a number up to 65535, 0 for any that is free")
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((place.host, place.port))
    except OSError as error:
        made.close()
        raise InputError(
            f"{place.host}:{place.port} cannot be listened at ({error.strerror}): take another --port, or 0 for one "
            "that is free"
        ) from error
    made.listen(128)
    return made


def server_of(app: ASGIApp) -> uvicorn.Server:
    """A server of an app that says nothing of each request."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=GRACE, lifespan="on", ws="none", h11_max_incomplete_event_size=16384,
    )  # fmt: skip
    return uvicorn.Server(config)


def address(bound: socket.socket) -> str:
    """The page's URL."""
    host, port = bound.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"
