"""GDAL's connections, each judged by the address it goes to: redirects and names too, which GDAL follows by itself."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

import eocube.net.relay
from eocube.net.addresses import AddressError, Policy, Reach
from eocube.net.relay import RelayProcess, relay_for
from eocube.net.relay_server import Relay
from eocube.net.storage_options import scoped
from eocube.raster.opening import gdal_environment, open_raster
from tests.eocube.sites import Handler, serve

AWAY = "https://stac.example.org/v1"


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("raster") / "b.tif"
    values = np.random.default_rng(0).integers(1, 9000, (512, 512)).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", width=512, height=512, count=1, dtype="uint16", crs="EPSG:32633", tiled=True,
        transform=Affine(10, 0, 5e5, 0, -10, 5e6), blockxsize=256, blockysize=256,
    ) as out:  # fmt: skip
        out.write(values, 1)
    return path.read_bytes()


def mean(href: str, options: Any) -> float:
    with gdal_environment(options):
        opened = open_raster(href, options)
        try:
            return float(opened.read([1], (0, 512), (0, 512)).mean())
        finally:
            opened.close()


def closing(raster: bytes) -> Callable[[Handler], None]:
    """A server that closes the connection after each answer, so that every request is a connection of its own."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.part(raster)

    return answer


@pytest.mark.parametrize("location", ["http://169.254.169.254/latest", "http://10.255.255.1:9/b.tif"])
def test_a_redirect_to_a_nearer_address_is_refused(raster: bytes, location: str) -> None:
    with serve(lambda h: h.send(302, Location=location)) as site:
        options = scoped({"hosts": {site.host: {}}}, AWAY)
        with pytest.raises(AddressError, match=f"{location.split('/')[2].partition(':')[0]} lies .*may not lead"):
            mean(f"{site.url}/b.tif", options)
        assert site.seen


def test_a_redirect_to_another_port_of_this_machine_is_refused(raster: bytes) -> None:
    with serve(lambda h: h.part(raster)) as inner, serve(lambda h: h.send(302, Location=f"{inner.url}/b.tif")) as site:
        with pytest.raises(AddressError, match=r"127\.0\.0\.1 lies on this machine"):
            mean(f"{site.url}/b.tif", scoped({"hosts": {site.host: {}}}, AWAY))
        assert not inner.seen
        assert mean(f"{site.url}/b.tif", scoped({"hosts": {site.host: {}, inner.host: {}}}, AWAY)) > 1000
        assert mean(f"{site.url}/c.tif", scoped({}, site.url)) > 1000, "as near as the catalogue itself"


def test_a_redirect_when_the_file_is_open_already_is_refused(raster: bytes) -> None:
    away = [False]

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        if away[0]:
            handler.send(302, Location=f"{inner.url}/b.tif")
        else:
            handler.part(raster)

    with serve(lambda h: h.part(raster)) as inner, serve(answer) as site:
        options = scoped({"hosts": {site.host: {}}}, AWAY)
        with gdal_environment(options):
            opened = open_raster(f"{site.url}/late.tif", options)
            away[0] = True
            with ThreadPoolExecutor(1) as pool, pytest.raises(rasterio.errors.RasterioIOError):
                pool.submit(opened.read, [1], (256, 512), (256, 512)).result()
            opened.close()
        assert not inner.seen and site.seen[-1][0] == "/late.tif"


def test_a_name_is_judged_by_what_it_resolves_to(raster: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        here = host == "cogs.example.org" and not kwargs.get("flags", 0) & socket.AI_NUMERICHOST
        return real("127.0.0.1" if here else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    # In this process, where names are resolved as this test says; what GDAL asks of this file needs no lock.
    monkeypatch.setattr(eocube.net.relay, "relay_for", lru_cache(Relay))
    with serve(closing(raster)) as site:
        url = f"http://cogs.example.org:{site.port}/b.tif"
        with pytest.raises(AddressError, match=r"cogs.example.org \(127.0.0.1\) lies on this machine"):
            mean(url, scoped({}, AWAY))
        assert not site.seen
        assert mean(url, scoped({"hosts": {"cogs.example.org": {}}}, AWAY)) > 1000


def test_what_is_not_judged_and_what_a_proxy_connects_go_past_it(
    raster: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(policy: Policy) -> RelayProcess:
        raise AssertionError("a relay is made")

    monkeypatch.setattr(eocube.net.relay, "relay_for", none)
    with serve(lambda h: h.part(raster)) as site:
        assert mean(f"{site.url}/b.tif", {}) > 1000
        assert mean(f"{site.url}/b.tif", scoped({}, AWAY, trusted=True)) > 1000
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
        assert mean(f"{site.url}/b.tif", scoped({}, site.url)) > 1000


def test_nobody_else_on_the_machine_gets_through() -> None:
    relay = Relay(Policy())
    host, port = relay.gdal_options["GDAL_HTTP_PROXY"].rpartition("/")[2].split(":")
    for said, heard in ((b"\5\1\0", b"\5\xff"), (b"\5\1\2\1\6eocube\4hush", b"\5\2\1\1")):
        with socket.create_connection((host, int(port)), 5) as client:
            client.sendall(said)
            with client.makefile("rb") as answer, contextlib.suppress(ConnectionResetError):
                assert answer.read(len(heard)) == heard and answer.read() == b""


def test_a_forked_child_has_a_relay_of_its_own() -> None:
    """The threads of its parent's stay behind, and whoever waits for them waits for ever."""
    policy = Policy(Reach.PUBLIC, ("only-here",))
    mine = relay_for(policy)
    assert relay_for(policy) is mine
    child = os.fork()
    if child == 0:
        os._exit(0 if relay_for(policy) is not mine else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_gdal_asks_for_while_it_holds_python_s_lock_is_answered(tmp_path: Path) -> None:
    """Overviews at a file's end are found when they are counted; a relay in a thread of the process hung for ever."""
    path = tmp_path / "o.tif"
    values = np.random.default_rng(0).integers(1, 9000, (1500, 1500)).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", width=1500, height=1500, count=1, dtype="uint16", crs="EPSG:32633", tiled=True,
        transform=Affine(10, 0, 5e5, 0, -10, 5e6), blockxsize=256, blockysize=256,
    ) as out:  # fmt: skip
        out.write(values, 1)
    with rasterio.open(path, "r+") as out:
        out.build_overviews([2, 4])
    command = [sys.executable, str(Path(__file__).parents[1] / "range_server.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        url = f"http://127.0.0.1:{int(running.stdout.readline())}"
        options = scoped({}, url)
        try:
            with gdal_environment(options):
                opened = open_raster(f"{url}/o.tif", options)
                assert opened.overviews == (2, 4)
                opened.close()
        finally:
            running.terminate()


def test_a_relay_that_was_killed_is_replaced() -> None:
    policy = Policy(Reach.PUBLIC, ("another-only-here",))
    first = relay_for(policy)
    first.close()
    assert relay_for(policy) is not first and not relay_for(policy).ended
