"""Runs a real server on a thread of the test, on a port of its own, and asks it."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio

from eocube.serve.app import Service, Serving, app_of
from eocube.serve.cube import ServedCube
from eocube.serve.server import Place, listen, server_of


@dataclass(frozen=True)
class Answer:
    """What a request got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def pixels(self) -> np.ndarray:
        """(4, H, W) of a PNG."""
        with rasterio.open(io.BytesIO(self.body)) as image:
            return np.asarray(image.read())


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    port: int
    service: Service

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        """Ask for a path as it is written: no client puts dots in order."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}))
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


@contextmanager
def running(
    cubes: tuple[ServedCube, ...], serving: Serving | None = None, place: Place | None = None
) -> Iterator[Running]:
    """A server of some cubes; it has ended when the block has."""
    where = place or Place(port=0)
    app = app_of(cubes, where, serving or Serving(memory=200_000_000))
    with listen(where) as bound:
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Running(bound.getsockname()[1], service_of(app))
        finally:
            server.should_exit = True
            thread.join()


def service_of(app: Any) -> Service:
    """The service within an app."""
    found = app._app.state.service
    assert isinstance(found, Service)
    return found


def tile_at(lon: float, lat: float, z: int) -> tuple[int, int]:
    """Column and row of the tile that holds a place."""
    lat = np.radians(lat)
    x, y = (lon + 180) / 360, (1 - np.arcsinh(np.tan(lat)) / np.pi) / 2
    return int(x * 2**z), int(y * 2**z)
