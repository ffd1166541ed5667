"""Remote sources: a real HTTP server that fails, forgets tokens and cuts answers short."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

import eocube.read.sources
from eocube.errors import SourceError
from eocube.ground.grid import Lattice, Window
from eocube.net.network import Network, NetworkLimits
from eocube.net.redaction import one_line
from eocube.raster.opening import gdal_path
from eocube.read.reader import WindowPixels, WindowReader
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry

LATTICE, WINDOW = Lattice(32633, 10), Window(-2760, 209)
SENSOR = get_sensor("S2L2A").subset(["B02"])


class Server(ThreadingHTTPServer):
    """Serves one file with byte ranges; `refuse` is asked for a status before each answer."""

    content = b""
    paths: list[str]

    def refuse(self, path: str) -> int | None:
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.paths.append(self.path)
        status = self.server.refuse(self.path)
        content = b"" if status else self.server.content
        first, last = 0, len(content) - 1
        asked = self.headers.get("Range", "")
        if not status and asked.startswith("bytes="):
            low, _, high = asked[6:].partition("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(status or (206 if asked else 200))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked and not status:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(content[first : last + 1])

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    left, _, _, top = LATTICE.window_bounds(WINDOW)
    values = np.random.default_rng(0).integers(1, 9000, (600, 600)).astype(np.uint16)
    with rasterio.open(
        tmp_path / "b.tif",
        "w",
        driver="COG",
        width=600,
        height=600,
        count=1,
        dtype="uint16",
        nodata=0,
        crs="EPSG:32633",
        transform=Affine(10, 0, left - 1000, 0, -10, top + 1000),
    ) as target:
        target.write(values, 1)
    running = Server(("127.0.0.1", 0), _Handler)
    running.content, running.paths = (tmp_path / "b.tif").read_bytes(), []
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def scene(server: Server, name: str, signer: str | None = None) -> Scene:
    href = f"http://127.0.0.1:{server.server_port}/{name}"
    source = BandSource("B02", "blue", href, 1, Radiometry(1e-4, -0.1, 0.0, "dn", "test"))
    return Scene("item-1", "c", "2023-08-15T09:57:57Z", "S2A", "g", "2023-08-15T09:57:57Z", 32633, (-180, -80, 180, 84),
                 None, None, None, (source,), None, signer)  # fmt: skip


IMPATIENT = NetworkLimits(first_wait=0.01)


def read(
    one: Scene, options: dict[str, object] | None = None, retries: int = 2, limits: NetworkLimits = IMPATIENT
) -> WindowPixels:
    network = Network(limits)
    with WindowReader(SENSOR, LATTICE, storage_options=options, retries=retries, network=network) as reader:
        return reader.read([one], WINDOW)


def test_gdal_and_fsspec_read_the_same(server: Server) -> None:
    fast = read(scene(server, "gdal.tif"))
    slow = read(scene(server, "fsspec.tif"), {"use_listings_cache": False})
    np.testing.assert_array_equal(fast.groups[10], slow.groups[10])
    assert fast.valid_percent == 100
    # Two answers to HEAD at most and no probing for side-car files.
    assert {path for path in server.paths} == {"/gdal.tif", "/fsspec.tif"}


@pytest.mark.parametrize("options", [{}, {"use_listings_cache": False}])
def test_a_passing_failure_is_asked_again(server: Server, options: dict[str, object]) -> None:
    left = [2]

    def refuse(path: str) -> int | None:
        left[0] -= 1
        return 503 if left[0] >= 0 else None

    server.refuse = refuse  # type: ignore[method-assign]
    assert read(scene(server, f"flaky{len(options)}.tif"), options).valid_percent == 100


def test_a_token_that_ran_out_is_renewed_and_none_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["OLD", "NEW"])
    monkeypatch.setattr(eocube.read.sources, "sign", lambda href, signer: f"{href}?sig={next(tokens)}")
    server.refuse = lambda path: 403 if "NEW" not in path else None  # type: ignore[method-assign]
    assert read(scene(server, "signed.tif", "somebody")).valid_percent == 100
    monkeypatch.setattr(eocube.read.sources, "sign", lambda href, signer: f"{href}?sig=SECRET")
    with pytest.raises(SourceError) as caught:
        read(scene(server, "signed2.tif", "somebody"), retries=1)
    assert "SECRET" not in str(caught.value) and "item-1" in str(caught.value) and "blue" in str(caught.value)


def test_what_is_not_there_is_asked_for_once(server: Server) -> None:
    server.refuse = lambda path: 404  # type: ignore[method-assign]
    for options in ({}, {"use_listings_cache": False}):
        server.paths.clear()
        with pytest.raises(SourceError, match="item item-1, asset blue"):
            read(scene(server, f"gone{len(options)}.tif"), options)
        assert len(server.paths) <= 4


@pytest.mark.parametrize("options", [{}, {"use_listings_cache": False}])
def test_a_file_cut_short_is_a_failure_and_never_nodata(server: Server, options: dict[str, object]) -> None:
    server.content = server.content[: len(server.content) // 3]
    with pytest.raises(SourceError, match="blue"):
        read(scene(server, f"cut{len(options)}.tif"), options, retries=1)


def test_which_way_an_href_is_read() -> None:
    assert gdal_path("/data/b.tif", {}) == "/data/b.tif"
    assert gdal_path("file:///data/b%20c.tif", {}) == "/data/b c.tif"
    assert gdal_path("https://host/b.tif?sig=1", {}) == "/vsicurl/https://host/b.tif?sig=1"
    assert gdal_path("s3://bucket/b.tif", {"anon": True}) == "/vsis3/bucket/b.tif"
    assert gdal_path("s3://bucket/b.tif", {"client_kwargs": {"endpoint_url": "http://x"}}) == "/vsis3/bucket/b.tif"
    assert gdal_path("s3://bucket/b.tif", {"config_kwargs": {"retries": 1}}) is None
    assert gdal_path("gs://bucket/b.tif", {}) is None
    assert gdal_path("simplecache::https://host/b.tif", {}) is None


def test_messages_lose_their_queries() -> None:
    said = one_line("HTTP 403 at /vsicurl/https://h/b.tif?se=1&sig=a%2Fb==, then\nhttps://h/c.tif?x=y")
    assert said == "HTTP 403 at /vsicurl/https://h/b.tif, then https://h/c.tif"


def test_s3_with_given_keys_and_endpoint(server: Server, tmp_path: Path) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    store = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=endpoint, **keys)
        client.create_bucket(Bucket="scenes")
        client.put_object(Bucket="scenes", Key="a/b.tif", Body=server.content)
        one = scene(server, "x.tif")
        source = BandSource("B02", "blue", "s3://scenes/a/b.tif", 1, one.sources[0].radiometry)
        there = Scene.from_dict({**one.to_dict(), "sources": [source.to_dict()]})
        options: dict[str, object] = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint}}
        truth = read(one).groups[10]
        np.testing.assert_array_equal(read(there, options).groups[10], truth)
        np.testing.assert_array_equal(read(there, {**options, "use_ssl": False}).groups[10], truth)
    finally:
        store.stop()
