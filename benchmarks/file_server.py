"""Serves a folder's files by ranges as a distant object store does: each answer late, and no faster than so.

A process of its own (`serving`), lean, so that what is measured beside it is the reader. `GET /?counts` gives
{"requests", "bytes"} since the last such question.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

_SPARE = 65536


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str

    def counts(self) -> dict[str, int]:
        """Requests answered and bytes sent since the last call."""
        with urllib.request.urlopen(f"{self.url}/?counts") as answer:
            found: dict[str, int] = json.load(answer)
        return found


@contextlib.contextmanager
def serving(folder: Path, delay_ms: float = 0.0, megabytes_per_second: float | None = None) -> Iterator[Served]:
    """Serve a folder on loopback while inside."""
    rate = [] if megabytes_per_second is None else ["--rate", str(megabytes_per_second)]
    command = [sys.executable, str(Path(__file__)), str(folder), "--delay", str(delay_ms), *rate]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Served(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


class _Server:
    def __init__(self, folder: Path, delay: float, rate: float | None) -> None:
        self._folder, self._delay, self._rate = folder.resolve(), delay, rate
        self._lock, self._requests, self._bytes = threading.Lock(), 0, 0

    def serve(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        head = b""
        with client, contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in head:
                    part = client.recv(_SPARE)
                    if not part:
                        return
                    head += part
                asked, _, head = head.partition(b"\r\n\r\n")
                self._answer(client, asked.decode("latin-1"))

    def _answer(self, client: socket.socket, asked: str) -> None:
        first, *lines = asked.split("\r\n")
        method, target, _ = first.split(" ")
        if target.endswith("?counts"):
            with self._lock:
                said = json.dumps({"requests": self._requests, "bytes": self._bytes}).encode()
                self._requests = self._bytes = 0
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)
            return
        fields = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        path = (self._folder / unquote(target.partition("?")[0]).lstrip("/")).resolve()
        there = path.is_relative_to(self._folder) and path.is_file()
        size = path.stat().st_size if there else 0
        low, high, asked_range = 0, size - 1, fields.get("range", "")
        if asked_range.startswith("bytes="):
            begin, _, end = asked_range[6:].partition("-")
            low, high = int(begin), min(int(end or high), size - 1)
        count = high - low + 1 if there and method == "GET" else 0
        with self._lock:
            self._requests += 1
            self._bytes += count
        time.sleep(self._delay + (count / self._rate if self._rate else 0.0))
        if not there:
            client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        lines = [
            "HTTP/1.1 206 Partial Content" if asked_range else "HTTP/1.1 200 OK", "Accept-Ranges: bytes",
            f"Content-Length: {high - low + 1}",
            "Content-Type: " + ("application/json" if path.suffix == ".json" else "image/tiff"),
        ]  # fmt: skip
        if asked_range:
            lines.append(f"Content-Range: bytes {low}-{high}/{size}")
        client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        if count:
            with path.open("rb") as file:
                while count:
                    sent = os.sendfile(client.fileno(), file.fileno(), low, count)
                    low, count = low + sent, count - sent


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds before every answer")
    parser.add_argument("--rate", type=float, default=None, help="megabytes a second of each connection")
    asked = parser.parse_args()
    _Server(asked.folder, asked.delay / 1000, None if asked.rate is None else asked.rate * 1e6).serve()


if __name__ == "__main__":
    _main()
