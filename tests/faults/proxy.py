"""A proxy of our own between a client and an HTTP server, which breaks a seeded share of what passes through.

    with FaultProxy("http://127.0.0.1:5000") as proxy:      # in front of moto, or of `cog_server.CogServer`
        options = {"client_kwargs": {"endpoint_url": proxy.endpoint}, "key": "testing", "secret": "testing"}
        proxy.faults = Faults(share=0.1, seed=7)            # at any moment; Faults() breaks nothing
        ...
        proxy.seen            # tuple of Seen(number, method, path, range, status, fault, length), in order of arrival
        proxy.count("PUT")    # requests by method, optionally with a part of their path
        proxy.met             # Counter of the faults that were met, by kind
        proxy.down(30)        # the next 30 requests find the server down (503), whatever `faults` says
        proxy.forget()        # seen and met start anew

Whether a request meets a fault follows from the seed, the method, path and range, and how often just that request was
made before: never from the order of threads. `on_request` is called with every request's number and itself before it is
passed on, in the thread that serves it; it may block, kill a process (kill points), or raise ConnectionError to cut the
connection; `on_answer` the same once the server has carried it out. `conditions` makes the server one that ignores
If-Match and If-None-Match, or answers 501 to them. The fixtures `fault_proxy` (a factory) and `s3_behind_proxy` are in
tests/faults/conftest.py.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["slow", "503", "429", "reset", "lost", "cut", "truncated", "long", "short"]

TRANSPORT: tuple[Kind, ...] = ("slow", "503", "429", "reset", "lost", "cut", "truncated", "long")
"""Latency; throttling; a connection reset before the request is passed on; after it was carried out, with the reply
lost; in the middle of the body; a body that ends early, orderly; a length announced larger than the body."""
LIES: tuple[Kind, ...] = (*TRANSPORT, "short")
"""And a body cut to half with a length to match: only the Content-Range tells."""

_HOP = frozenset({"transfer-encoding", "connection", "content-length", "server", "date", "keep-alive", "expect"})
_CONDITIONS = frozenset({"if-match", "if-none-match"})
_NOT_IMPLEMENTED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NotImplemented</Code>"
    b"<Message>A header you provided implies functionality that is not implemented</Message></Error>"
)
_SLOW_DOWN = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True, slots=True)
class Faults:
    """What share of the requests breaks, and how.

    `burst` is how many requests on end are refused once a 503 or 429 is drawn. `only` limits faults to requests
    (method, path) that it accepts.
    """

    share: float = 0.0
    seed: int = 0
    kinds: tuple[Kind, ...] = TRANSPORT
    burst: int = 1
    delay_s: float = 0.2
    only: Callable[[str, str], bool] | None = None

    def draw(self, method: str, path: str, span: str, turn: int) -> Kind | None:
        """The fault that the request meets when it is made for the `turn`-th time; None for none."""
        if not self.kinds or (self.only is not None and not self.only(method, path)):
            return None
        drawn = hashlib.sha256(f"{self.seed} {method} {path} {span} {turn}".encode()).digest()
        if int.from_bytes(drawn[:8], "big") / 2**64 >= self.share:
            return None
        return self.kinds[int.from_bytes(drawn[8:12], "big") % len(self.kinds)]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it passed: `status` is what the client was told (0: the connection was cut before)."""

    number: int
    method: str
    path: str
    range: str
    status: int
    fault: Kind | None
    length: int


class FaultProxy:
    """A threaded HTTP proxy in front of one server; use as a context manager."""

    def __init__(self, upstream: str, faults: Faults | None = None) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.faults = faults or Faults()
        self.on_request: Callable[[int, str, str], None] | None = None
        self.on_answer: Callable[[int, str, str], None] | None = None
        self.conditions: Literal["kept", "ignored", "refused"] = "kept"
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._turns: Counter[tuple[str, str, str]] = Counter()
        self._number = 0
        self._refuse = 0
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def seen(self) -> tuple[Seen, ...]:
        """Every request so far whose answer was sent, in order of arrival."""
        with self._lock:
            return tuple(sorted(self._seen, key=lambda one: one.number))

    @property
    def met(self) -> Counter[Kind]:
        """The faults that were met, by kind."""
        with self._lock:
            return Counter(one.fault for one in self._seen if one.fault is not None)

    def count(self, method: str | None = None, part: str = "") -> int:
        """Requests with a method and a part of their path."""
        return sum((method is None or one.method == method) and part in one.path for one in self.seen)

    def forget(self) -> None:
        """Start counting anew; the faults that a request meets start anew with it."""
        with self._lock:
            self._seen.clear()
            self._turns.clear()

    def down(self, requests: int) -> None:
        """Refuse that many requests with a 503 from now on; 0 ends it."""
        with self._lock:
            self._refuse = requests

    def draw(self, method: str, path: str, span: str) -> tuple[int, Kind | None]:
        """The number of a request that arrives and the fault that it meets."""
        with self._lock:
            self._number += 1
            key = (method, path, span)
            turn = self._turns[key]
            self._turns[key] += 1
            if self._refuse > 0:
                self._refuse -= 1
                return self._number, "503"
            kind = self.faults.draw(method, path, span, turn)
            if kind in ("503", "429"):
                self._refuse = max(self._refuse, self.faults.burst - 1)
            return self._number, kind

    def note(self, seen: Seen) -> None:
        """Keep the record of a request."""
        with self._lock:
            self._seen.append(seen)


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    _upstream: http.client.HTTPConnection | None = None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        with suppress(OSError):
            super().finish()

    def _reset(self) -> None:
        """Cut the connection with a TCP reset."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        if self.owner.conditions == "ignored":
            headers = {k: v for k, v in headers.items() if k.lower() not in _CONDITIONS}
        headers["Content-Length"] = str(len(body))
        for fresh in (False, True):
            if self._upstream is None or fresh:
                self._upstream = http.client.HTTPConnection(*self.owner.upstream, timeout=60)
            try:
                self._upstream.request(self.command, self.path, body, headers)
                answer = self._upstream.getresponse()
                data = answer.read()
                return answer.status, answer.reason, answer.getheaders(), data
            except (http.client.HTTPException, OSError):
                self._upstream.close()
                if fresh:
                    raise
        raise AssertionError("unreachable")

    def _answer(self, status: int, reason: str, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response(status, reason)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _any(self) -> None:
        owner, span = self.owner, self.headers.get("Range", "")
        try:
            body = self._body()
        except (OSError, ValueError):
            return self._reset()
        number, fault = owner.draw(self.command, self.path, span)

        def note(status: int, length: int = 0) -> None:
            owner.note(Seen(number, self.command, self.path, span, status, fault, length))

        try:
            if owner.on_request is not None:
                owner.on_request(number, self.command, self.path)
            if fault == "reset":
                note(0)
                return self._reset()
            if fault in ("503", "429"):
                note(int(fault))
                self._answer(int(fault), "Slow Down", [("Content-Type", "application/xml")], len(_SLOW_DOWN))
                if self.command != "HEAD":
                    self.wfile.write(_SLOW_DOWN)
                return None
            if fault == "slow":
                time.sleep(owner.faults.delay_s)
            if owner.conditions == "refused" and _CONDITIONS & {k.lower() for k in self.headers}:
                note(501, len(_NOT_IMPLEMENTED))
                self._answer(501, "Not Implemented", [("Content-Type", "application/xml")], len(_NOT_IMPLEMENTED))
                self.wfile.write(_NOT_IMPLEMENTED)
                return None
            status, reason, headers, data = self._forward(body)
            if owner.on_answer is not None:
                owner.on_answer(number, self.command, self.path)
            if fault == "lost":
                note(0)
                return self._reset()
            self._send(status, reason, headers, data, fault, note)
        except OSError:  # the client went away, or `on_request` wants the connection cut
            self._reset()
        return None

    def _send(
        self, status: int, reason: str, headers: list[tuple[str, str]], data: bytes, fault: Kind | None,
        note: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        if self.command == "HEAD":
            said = next((v for k, v in headers if k.lower() == "content-length"), "0")
            note(status, 0)
            return self._answer(status, reason, headers, int(said))
        half = data[: len(data) // 2]
        sent = half if fault in ("cut", "truncated", "short") else data
        # Noted before it is sent: whoever has the answer finds its record.
        note(status, len(sent))
        announced = {"short": len(half), "long": len(data) + 1000}.get(fault or "", len(data))
        self._answer(status, reason, headers, announced)
        self.wfile.write(sent)
        self.wfile.flush()
        if fault == "cut":
            self._reset()
        elif fault in ("truncated", "long"):
            self.close_connection = True
        return None

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any  # noqa: N815
