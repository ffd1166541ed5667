"""Guards the server: refuses other hosts' names and oversized requests, sets headers, turns errors into one line."""

from __future__ import annotations

import ipaddress
import json
import traceback
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eocube.console import lament, plain
from eocube.errors import EocubeError, InputError
from eocube.net.redaction import redacted
from eocube.serve.pool import LeftError

LONGEST_URL = 4096
"""Bytes of a path and of a query."""
LONGEST_HEADERS = 16384
HEADERS = {
    # Pages of this server load from it alone; MapLibre's worker and pictures come as blobs.
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
        "worker-src 'self' blob:; child-src blob:; connect-src 'self'; font-src 'self'; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
ANY_ADDRESS = "*"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class OverloadedError(EocubeError):
    """More is asked at once than the server takes on; the client may ask again."""


class TooLargeError(InputError):
    """More is asked in one request than the server gives."""


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, TooLargeError):
        return 413
    if isinstance(error, InputError):
        return 400
    if isinstance(error, (OverloadedError, LeftError)):
        return 503
    return 502 if isinstance(error, (EocubeError, OSError)) else 500


def line_of(error: Exception) -> str:
    """What a client is told of an error: eocube's own line, and nothing of any other."""
    if isinstance(error, EocubeError):
        return plain(redacted(" ".join(str(error).split())))
    if isinstance(error, OSError):
        return "the cube or its source cannot be read: the server's own output says why"
    return "a defect of the server: its own output says where"


def allowed_names(host: str, extra: Collection[str]) -> frozenset[str]:
    """Names that `Host` may give, without ports; those of this machine for a server bound to it alone.

    A server that is bound to every address takes any address in the place of a name (`ANY_ADDRESS`): what a page
    elsewhere can point at it is a name.
    """
    named = {name.strip().lower().strip(".") for name in extra}
    if host in ("", "0.0.0.0", "::"):
        return frozenset(named | set(LOOPBACK) | {ANY_ADDRESS})
    shown = f"[{host}]" if ":" in host else host
    return frozenset(named | {shown.lower()} | set(LOOPBACK))


class Guard:
    """ASGI middleware around the whole server."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await answer(guarded, *refusal)
            return
        try:
            await self._app(scope, receive, guarded)
        except Exception as error:
            if not begun:  # else the app has answered, and reported it
                report(scope["path"], error)
                await answer(guarded, status_of(error), line_of(error))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        if len(scope.get("raw_path") or b"") > LONGEST_URL or len(scope["query_string"]) > LONGEST_URL:
            return 414, f"a path and a query are {LONGEST_URL} bytes at most"
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, "this server is not known by that name: --allow-host NAME lets it be"
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LONGEST_HEADERS:
            return 431, f"headers are {LONGEST_HEADERS} bytes at most"
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "this server is only read from"
        headers = Headers(scope=scope)
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, "pages of other sites are not served: they would make this machine work"
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.lower().strip()
        name = name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0].rstrip(".")
        if name in self._names and name != ANY_ADDRESS:
            return True
        if ANY_ADDRESS not in self._names:
            return False
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def report(path: str, error: BaseException) -> None:
    """Say on the server's own output what went wrong, unless it is what a client did."""
    if not isinstance(error, EocubeError):
        said = f"{type(error).__name__}: {redacted(error)}{_place(error)}"
        lament(f"error: {plain(path)}: {plain(said)}")


def _place(error: BaseException) -> str:
    """Where in the code it was raised, for whoever reads the server's output."""
    trace = traceback.extract_tb(error.__traceback__)
    return f" ({trace[-1].filename}:{trace[-1].lineno})" if trace else ""


async def answer(send: Send, status: int, line: str) -> None:
    """Send an error as JSON of one line."""
    body = json.dumps({"error": line}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
