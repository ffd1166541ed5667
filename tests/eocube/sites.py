"""Web servers on loopback that answer as a test says: real sockets, every request noted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_BOTH, _PAGE = ("GET", "POST"), "application/geo+json"
BOX = [[15.0, 46.0], [16.0, 46.0], [16.0, 47.0], [15.0, 47.0], [15.0, 46.0]]


@dataclass
class Site:
    """A server: `answer` takes each request's handler; `seen` are (path, headers) of all that came."""

    answer: Callable[[Handler], None] = lambda handler: handler.send(404)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    sent: int = 0
    """Bytes of bodies that were sent."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]


class Handler(BaseHTTPRequestHandler):
    """One request of a `Site`."""

    site: Site
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body = b""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client went, as it should
            self.close_connection = True

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.site.seen.append((self.path, dict(self.headers)))
        self.site.answer(self)

    do_POST = do_HEAD = do_GET  # noqa: N815

    def head(self, status: int = 200, **headers: Any) -> None:
        """The status and headers; without a length the connection's end is the body's."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def send(self, status: int = 200, body: bytes = b"", **headers: Any) -> None:
        """A whole answer."""
        self.head(status, Content_Length=len(body), **headers)
        if self.command != "HEAD":
            self.write(body)

    def json(self, document: Any) -> None:
        self.send(200, json.dumps(document).encode(), Content_Type="application/json")

    def write(self, part: bytes) -> None:
        self.wfile.write(part)
        self.site.sent += len(part)

    def drip(self, parts: Iterator[bytes], seconds: float = 0.05) -> None:
        """Parts one after another, each after a while, until the client goes."""
        for part in parts:
            self.write(part)
            time.sleep(seconds)

    def part(self, data: bytes) -> None:
        """A file, or the range of it that is asked for."""
        low, _, high = self.headers.get("Range", "bytes=0-")[6:].partition("-")
        first, last = int(low), min(int(high or len(data)), len(data) - 1)
        ranged = "Range" in self.headers
        more = {"Content_Range": f"bytes {first}-{last}/{len(data)}"} if ranged else {}
        self.send(206 if ranged else 200, data[first : last + 1], Accept_Ranges="bytes", **more)

    def log_message(self, format: str, *args: object) -> None:
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


@contextmanager
def serve(answer: Callable[[Handler], None] | None = None) -> Iterator[Site]:
    """A site as long as the context lasts."""
    site = Site()
    if answer is not None:
        site.answer = answer
    server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def item(name: str, href: str = "./B02.tif", **properties: Any) -> dict[str, Any]:
    """A Sentinel-2 item of one band."""
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a", "links": [],
        "geometry": {"type": "Polygon", "coordinates": [BOX]}, "bbox": [15.0, 46.0, 16.0, 47.0],
        "properties": {
            "datetime": "2023-08-15T09:57:57Z", "platform": "sentinel-2a", "proj:epsg": 32633,
            "s2:processing_baseline": "02.12", "earthsearch:boa_offset_applied": False, **properties,
        },
        "assets": {"blue": {"href": href, "raster:bands": [{"scale": 1e-4, "offset": 0, "nodata": 0}]}},
    }  # fmt: skip


def api(page: Callable[[Handler, int], dict[str, Any]]) -> Callable[[Handler], None]:
    """A STAC API whose search answers with `page(handler, number)`; its next links give the number of the next page."""

    def answer(handler: Handler) -> None:
        root = f"http://{handler.headers['Host']}"
        path, _, query = handler.path.partition("?")
        if path == "/search":
            number = int(query.partition("page=")[2] or 0)
            handler.json({"type": "FeatureCollection", **page(handler, number)})
        elif path == "/collections":
            extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
            one = {
                "type": "Collection", "id": "sentinel-2-l2a", "stac_version": "1.0.0", "description": "d",
                "license": "x", "extent": extent, "links": [],
            }  # fmt: skip
            handler.json({"collections": [one], "links": []})
        else:
            classes = ("core", "item-search", "ogcapi-features", "collections")
            handler.json(
                {
                    "type": "Catalog", "id": "x", "description": "d", "stac_version": "1.0.0",
                    "conformsTo": [f"https://api.stacspec.org/v1.0.0/{c}" for c in classes],
                    "links": [
                        *({"rel": "search", "href": f"{root}/search", "method": m, "type": _PAGE} for m in _BOTH),
                        {"rel": "data", "href": f"{root}/collections"},
                    ],
                }
            )  # fmt: skip

    return answer


def next_page(handler: Handler, number: int) -> list[dict[str, Any]]:
    """The links of a page that has a next one."""
    return [{"rel": "next", "method": "GET", "href": f"http://{handler.headers['Host']}/search?page={number}"}]
