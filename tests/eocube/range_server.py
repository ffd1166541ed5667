"""Serves a folder over http with ranges, in a process of its own: GDAL asks for side cars while it holds the GIL."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Ranges(BaseHTTPRequestHandler):
    """Answers GET and HEAD, whole or by range."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool = False) -> None:
        file = self.folder / self.path.strip("/")
        content = file.read_bytes() if file.is_file() else b""
        low, _, high = self.headers.get("Range", "bytes=0-")[6:].partition("-")
        part = content[int(low) : int(high or len(content)) + 1]
        status = 404 if not content else 200 if "Range" not in self.headers else 206 if part else 416
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {low}-{int(low) + len(part) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        return


if __name__ == "__main__":
    Ranges.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    print(server.server_port, flush=True)
    server.serve_forever()
