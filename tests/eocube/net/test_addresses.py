"""Where requests go: headers to their own hosts alone, no address nearer than the catalogue, redirects judged again."""

from __future__ import annotations

import json
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from eocube.errors import InputError, SourceError
from eocube.ground.boxes import parse_interval
from eocube.ground.grid import Lattice, Window
from eocube.net.addresses import AddressError, Policy, Reach, matches, origins, reach_of_address, reach_of_host
from eocube.net.failures import Failure, judge
from eocube.net.http_client import ask
from eocube.net.network import Network, NetworkLimits
from eocube.net.redaction import secrets_of
from eocube.net.storage_options import filesystem_for, options_for, parse_options, policy_of, scoped
from eocube.plan.cost import _ask
from eocube.read.reader import WindowPixels, WindowReader
from eocube.scenes.dark_pixels import overview_reader
from eocube.scenes.fetch import load_json
from eocube.scenes.scene import BandSource, Scene
from eocube.scenes.search import search
from eocube.scenes.stac import search_api
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from tests.eocube.sites import Handler, Site, api, item, serve

SENSOR = get_sensor("S2L2A").subset(["B02"])
LATTICE, WINDOW = Lattice(32633, 10), Window(-2760, 209)
WORLD, EVER = (-180.0, -90.0, 180.0, 90.0), parse_interval("2000/2050")
TOKEN = {"headers": {"X-Token": "hush", "Authorization": "Bearer hush"}}
AWAY = "https://stac.example.org/v1"
QUICK = NetworkLimits(first_wait=0.001, longest_wait=0.01)


def get(url: str, options: Any) -> Any:
    filesystem, path = filesystem_for(url, options)
    return ask(filesystem, path, most=2**20)


def told(site: Site) -> bool:
    return "hush" in str(site.seen)


# -- addresses


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("8.8.8.8", Reach.PUBLIC), ("2606:4700::1111", Reach.PUBLIC),
        ("10.1.2.3", Reach.PRIVATE), ("172.16.0.1", Reach.PRIVATE), ("172.31.255.255", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE), ("100.64.0.1", Reach.PRIVATE), ("fd12:3456::1", Reach.PRIVATE),
        ("172.32.0.1", Reach.PUBLIC), ("64:ff9b::808:808", Reach.PUBLIC),
        ("127.0.0.1", Reach.LOOPBACK), ("127.9.9.9", Reach.LOOPBACK), ("::1", Reach.LOOPBACK),
        ("0.0.0.0", Reach.LOOPBACK),
        ("::ffff:127.0.0.1", Reach.LOOPBACK), ("64:ff9b::7f00:1", Reach.LOOPBACK), ("2002:7f00:1::", Reach.LOOPBACK),
        ("169.254.169.254", Reach.ANY), ("fe80::1", Reach.ANY), ("fe80::1%eth0", Reach.ANY),
        ("::ffff:169.254.1.1", Reach.ANY),
        ("fd00:ec2::254", Reach.ANY), ("100.100.100.200", Reach.ANY), ("192.0.0.192", Reach.ANY),
        ("224.0.0.1", Reach.ANY),
    ],
)  # fmt: skip
def test_where_an_address_lies(address: str, reach: Reach) -> None:
    assert reach_of_address(address) is reach
    assert reach_of_host(address.partition("%")[0]) is reach


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost",
     "LOCALHOST.", "x.localhost", "10.0.0.5:9000", "169.254.169.254", "[fe80::1]"],
)  # fmt: skip
def test_a_public_catalogue_names_no_address_that_is_none_however_it_is_spelt(host: str) -> None:
    policy = policy_of(scoped({}, "https://8.8.8.8/stac"))
    with pytest.raises(AddressError, match="where this catalogue may not lead; if you trust it, name the host"):
        policy.check_url(f"https://{host}/x.tif")
    assert judge(AddressError("x")) is Failure.FINAL


@pytest.mark.parametrize(
    ("base", "near", "far"),
    [
        ("https://8.8.8.8/stac", "https://8.8.4.4/x", "https://10.0.0.1/x"),
        ("http://10.0.0.1/stac", "http://192.168.0.7:9000/x", "http://127.0.0.1/x"),
        ("http://127.0.0.1:8000/stac", "http://127.0.0.1:9000/x", "http://169.254.169.254/latest"),
        ("http://localhost:8000/stac", "http://10.0.0.1/x", "http://[fe80::1]/latest"),
        ("/data/catalog.json", "http://127.0.0.1:9000/x", "http://169.254.169.254/latest"),
        ("s3://bucket/catalog.json", "https://8.8.8.8/x", "http://10.0.0.1/x"),
    ],
)
def test_a_catalogue_leads_no_nearer_than_it_lies_itself(base: str, near: str, far: str) -> None:
    policy = policy_of(scoped({}, base))
    policy.check_url(near)
    with pytest.raises(AddressError):
        policy.check_url(far)
    host = far.split("/")[2]
    policy_of(scoped({"hosts": {host: {}}}, base)).check_url(far)
    policy_of(scoped({}, base, trusted=True)).check_url(far)
    with pytest.raises(AddressError):
        policy_of(scoped({"hosts": {"*": {"block_size": 1}}}, base)).check_url(far)


def test_a_catalogue_on_an_endpoint_of_this_machine_may_name_this_machine() -> None:
    policy_of(scoped({"endpoint_url": "http://127.0.0.1:9000"}, "s3://b/catalog.json")).check_url("http://127.0.0.1/x")


def test_a_name_is_judged_by_what_it_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        here = host == "cogs.example.org" and not kwargs.get("flags", 0) & socket.AI_NUMERICHOST
        return real("127.0.0.1" if here else host, *args, **kwargs)

    with serve(lambda h: h.send(200, b"here")) as site:
        url = f"http://cogs.example.org:{site.port}/b.tif"
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(AddressError, match=r"cogs.example.org \(127.0.0.1\) lies on this machine"):
            get(url, scoped({}, AWAY))
        assert not site.seen
        assert get(url, scoped({"hosts": {"cogs.example.org": {}}}, AWAY)).body == b"here"
    assert reach_of_host("cogs.example.org") is Reach.PRIVATE, "a name that points here is not yet this machine"


def test_an_odd_port_is_no_traceback() -> None:
    with pytest.raises(AddressError, match="no URL"):
        Policy(Reach.PUBLIC).check_url("http://host:99999999/x")


# -- which host an option is for


@pytest.mark.parametrize(
    ("pattern", "url", "same"),
    [
        ("h.org", "https://h.org/x", True),
        ("h.org", "http://H.org.:8080/x", True),
        ("h.org", "https://a.h.org/x", False),
        ("h.org:8080", "https://h.org:8080/x", True),
        ("h.org:8080", "https://h.org/x", False),
        ("h.org:443", "https://h.org/x", True),
        ("*.h.org", "https://a.h.org/x", True),
        ("*.h.org", "https://h.org/x", False),
        ("*.h.org", "https://xh.org/", False),
        ("*", "https://any/x", True),
        ("https://h.org", "http://h.org/x", False),
        ("https://h.org", "https://h.org:8443/x", False),
        ("[::1]:80", "http://[::1]/x", True),
        ("h.org", "https://h.org@evil.org/x", False),
        ("h.org", "https://evil.org/?h.org", False),
    ],
)
def test_what_a_pattern_of_hosts_means(pattern: str, url: str, same: bool) -> None:
    assert matches(pattern, url) is same


def test_what_a_catalogue_stands_for() -> None:
    assert origins("https://u:p@h.org/v1") == ("https://h.org:443",)
    assert origins("http://h.org/v1") == ("http://h.org:80", "https://h.org:443")
    assert origins("http://[::1]:8000/") == ("http://[::1]:8000",)
    assert origins("/data/catalog.json") == ()


def test_options_go_to_the_catalogues_host_and_to_those_that_are_named() -> None:
    given = {
        **TOKEN,
        "key": "k",
        "secret": "s",
        "hosts": {"cogs.org": {"headers": {"X": "1"}}, "*.c.org": {"ssl": False}},
    }
    options = scoped(given, AWAY)
    assert options_for(f"{AWAY}/x", options) == TOKEN
    assert options_for("http://stac.example.org/x", options) == {}, "in the clear"
    assert options_for("https://stac.example.org:8443/x", options) == {}
    assert options_for("https://cogs.org/x", options) == {"headers": {"X": "1"}}
    assert options_for("https://a.c.org/x", options) == {"ssl": False}
    assert options_for("https://other.org/x", options) == {}
    assert options_for("s3://bucket/x", options) == {**TOKEN, "key": "k", "secret": "s"}, "signed, to S3 alone"
    assert (
        scoped(options, "https://other.org") is not None
        and options_for("https://other.org/x", scoped(options, "https://other.org")) == {}
    )
    assert pickle.loads(pickle.dumps(options)) == options and "hush" not in repr(options)
    assert set(secrets_of(options)) == {"hush", "Bearer hush"}
    assert options_for("https://other.org/x", given) == TOKEN, (
        "where no catalogue stands between, they are the caller's"
    )


@pytest.mark.parametrize("hosts", [3, ["h"], {"h": 3}, "h"])
def test_hosts_that_are_none_are_named(hosts: Any) -> None:
    with pytest.raises(InputError, match="hosts takes options by host"):
        scoped({"hosts": hosts}, AWAY)


def test_hosts_may_be_given_on_the_command_line() -> None:
    given = parse_options(['{"hosts": {"cogs.org": {"headers": {"X-Token": "hush"}}}}'])
    assert options_for("https://cogs.org/x", scoped(given, AWAY)) == {"headers": {"X-Token": "hush"}}


# -- redirects


def test_headers_stay_on_a_host_and_leave_with_no_redirect() -> None:
    with serve(lambda h: h.send(200, b"{}")) as other:

        def answer(handler: Handler) -> None:
            if handler.path == "/away":
                handler.send(302, Location=f"{other.url}/x")
            elif handler.path == "/here":
                handler.send(307, Location="/there")
            else:
                handler.send(200, b"{}")

        with serve(answer) as site:
            for client in ({}, {"client_kwargs": {"headers": {"X-Api-Key": "hush2"}, "cookies": {"c": "hush3"}}}):
                options = scoped({**TOKEN, **client}, site.url)
                other.seen.clear()
                assert get(f"{site.url}/here", options).status == 200
                assert [told(Site(seen=[s])) for s in site.seen] == [True, True]
                site.seen.clear()
                assert get(f"{site.url}/away", options).status == 200
                assert told(site) and len(other.seen) == 1 and not told(other)
                # with nothing that scopes them, the first host's alone too
                assert get(f"{site.url}/away", {**TOKEN, **client}).status == 200
                assert len(other.seen) == 2 and not told(other)
                site.seen.clear()


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest/meta-data", "http://0xA9FEA9FE/", "//localhost:9/x"]
)
def test_a_redirect_to_a_nearer_address_is_refused(location: str) -> None:
    with serve(lambda h: h.send(302, Location=location)) as site:
        options = scoped({"hosts": {site.host: {}}}, AWAY)
        with pytest.raises(Exception, match=r"where this catalogue may not lead|not a canonical IPv4") as caught:
            get(f"{site.url}/x", options)
        assert judge(caught.value) is Failure.FINAL and len(site.seen) == 1
        with pytest.raises(InputError, match=f"cannot read {site.url}/x: "):
            load_json(f"{site.url}/x", options, network=Network(QUICK))


def test_a_redirect_to_another_scheme_is_refused() -> None:
    with serve(lambda h: h.send(302, Location="file:///etc/hostname")) as site, pytest.raises(Exception, match="file"):
        get(f"{site.url}/x", {})


# -- catalogues


def test_an_item_that_leads_to_a_nearer_address_is_refused_by_name(tmp_path: Path) -> None:
    good = item("S2A_33TWM_20230815_0_L2A", "https://cogs.example.org/B02.tif")
    bad = item("S2A_33TWN_20230815_0_L2A", "http://169.254.169.254/B02.tif")
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [good, bad]}))
    found = search(str(tmp_path / "items.json"), SENSOR, WORLD, EVER)
    assert [scene.id for scene in found.scenes] == [good["id"]]
    ((name, why),) = found.refused
    assert name == bad["id"] and "169.254.169.254 lies link-local" in why and "hosts" in why
    for how in ({"storage_options": {"hosts": {"169.254.169.254": {}}}}, {"allow_local": True}):
        assert len(search(str(tmp_path / "items.json"), SENSOR, WORLD, EVER, **how).scenes) == 2  # type: ignore[arg-type]


def test_a_link_to_a_nearer_address_is_refused() -> None:
    links = [{"rel": "item", "href": "http://169.254.169.254/item.json"}]
    document = {"type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "", "links": links}
    with serve(lambda h: h.json(document)) as site, pytest.raises(InputError, match="a link of it cannot be followed"):
        search(f"{site.url}/catalog.json", SENSOR, WORLD, EVER)


@pytest.mark.parametrize("where", ["169.254.169.254", "localhost.:1"])
def test_a_page_at_a_nearer_address_is_refused(where: str) -> None:
    def page(handler: Handler, number: int) -> dict[str, Any]:
        return {"features": [item("a")], "links": [{"rel": "next", "href": f"http://{where}/search"}]}

    with serve(api(page)) as site:
        options = scoped({"hosts": {site.host: {}}}, AWAY)
        with pytest.raises(InputError, match="where this catalogue may not lead"):
            search_api(
                site.url, ["sentinel-2-l2a"], [WORLD], EVER, network=Network(QUICK), storage_options=options
            )  # fmt: skip


def test_an_api_takes_the_users_headers_and_its_pages_elsewhere_do_not() -> None:
    with serve(api(lambda h, n: {"features": [item("b")]})) as other:

        def page(handler: Handler, number: int) -> dict[str, Any]:
            return {"features": [item("a")], "links": [{"rel": "next", "href": f"{other.url}/search"}]}

        with serve(api(page)) as site:
            options = scoped(TOKEN, site.url)
            found = search_api(
                site.url, ["sentinel-2-l2a"], [WORLD], EVER, network=Network(QUICK), storage_options=options
            )
            assert len(found) == 2 and len(other.seen) == 1 and not told(other)
            assert all(headers.get("X-Token") == "hush" for _, headers in site.seen)
            with pytest.raises(InputError, match="collections"):
                search(site.url, get_sensor("S1RTC"), WORLD, EVER, storage_options=TOKEN)
            assert all(headers.get("X-Token") == "hush" for _, headers in site.seen)


def test_static_catalogues_links_to_other_hosts_go_without_the_users_headers() -> None:
    def document(*links: str) -> dict[str, Any]:
        listed = [{"rel": "item", "href": link} for link in links]
        return {"type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "", "links": listed}

    with serve(lambda h: h.json(item("S2A_33TWM_20230815_0_L2A"))) as other:

        def answer(handler: Handler) -> None:
            if handler.path == "/own.json":
                handler.json(item("S2A_33TWN_20230815_0_L2A"))
            else:
                handler.json(document("./own.json", f"{other.url}/item.json"))

        with serve(answer) as site:
            found = search(f"{site.url}/catalog.json", SENSOR, WORLD, EVER, storage_options=TOKEN)
            assert len(found.scenes) == 2
            assert all("hush" in str(headers) for _, headers in site.seen) and len(site.seen) == 2
            assert len(other.seen) == 1 and not told(other)
            other.seen.clear()
            named = {"hosts": {other.host: TOKEN}}
            search(f"{site.url}/catalog.json", SENSOR, WORLD, EVER, storage_options=named)
            assert len(other.seen) == 1 and told(other)
            assert sum("hush" in str(headers) for _, headers in site.seen) == 2, "those of the first search alone"


# -- rasters


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    left, _, _, top = LATTICE.window_bounds(WINDOW)
    values = np.random.default_rng(0).integers(1, 9000, (600, 600)).astype(np.uint16)
    path = tmp_path_factory.mktemp("raster") / "b.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=600, height=600, count=1, dtype="uint16", nodata=0, crs="EPSG:32633",
        transform=Affine(10, 0, left - 1000, 0, -10, top + 1000), tiled=True,
    ) as out:  # fmt: skip
        out.write(values, 1)
    return path.read_bytes()


def read(href: str, options: Any, network: Network | None = None) -> WindowPixels:
    source = BandSource("B02", "blue", href, 1, Radiometry(1e-4, -0.1, 0.0, "dn", "test"))
    one = Scene("item-1", "c", "2023-08-15T09:57:57Z", "S2A", "g", "2023-08-15T09:57:57Z", 32633, (-180, -80, 180, 84),
                None, None, None, (source,), None, None)  # fmt: skip
    with WindowReader(SENSOR, LATTICE, storage_options=options, retries=1, network=network or Network(QUICK)) as reader:
        return reader.read([one], WINDOW)


def test_headers_for_every_host_in_the_environment_go_to_none(raster: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "X-Token: hush")
    monkeypatch.setenv("GDAL_HTTP_BEARER", "hush")
    with serve(lambda h: h.part(raster)) as site, ThreadPoolExecutor(1) as pool:
        # On a thread of its own, since rasterio keeps for a thread what it found in the environment once.
        assert pool.submit(read, f"{site.url}/b.tif", scoped({}, site.url)).result().valid_percent == 100
        assert site.seen and not told(site)


def test_rasters_elsewhere_are_read_without_the_users_headers(raster: bytes) -> None:
    with serve(lambda h: h.part(raster)) as site, serve(lambda h: h.part(raster)) as other:
        options = scoped(TOKEN, f"{site.url}/catalog.json")
        truth = read(f"{site.url}/b.tif", options).groups[10]
        assert site.seen and all(headers.get("X-Token") == "hush" for _, headers in site.seen)
        for limits in (QUICK, replace(QUICK, requests_per_second=1e6)):
            np.testing.assert_array_equal(read(f"{other.url}/b.tif", options, Network(limits)).groups[10], truth)
            assert other.seen and not told(other)
            other.seen.clear()
        named = scoped({"hosts": {other.host: TOKEN}}, f"{site.url}/catalog.json")
        np.testing.assert_array_equal(read(f"{other.url}/b.tif", named).groups[10], truth)
        assert other.seen and all(headers.get("X-Token") == "hush" for _, headers in other.seen)


def test_views_and_sizes_of_assets_elsewhere_are_asked_for_without_the_users_headers(raster: bytes) -> None:
    with serve(lambda h: h.part(raster)) as site, serve(lambda h: h.part(raster)) as other:
        options = scoped(TOKEN, f"{site.url}/catalog.json")
        for where in (site, other):
            assert overview_reader(options)(f"{where.url}/b.tif").shape == (512, 512)
            source = BandSource("B02", "blue", f"{where.url}/b.tif", 1, Radiometry(1e-4, -0.1, 0.0, "dn", "test"))
            assert _ask(source, None, options) == len(raster)
        assert told(site) and other.seen and not told(other)


@pytest.mark.parametrize("limits", [QUICK, replace(QUICK, requests_per_second=1e6)], ids=["gdal", "fsspec"])
def test_no_raster_is_read_at_a_nearer_address(raster: bytes, limits: NetworkLimits) -> None:
    with serve(lambda h: h.part(raster)) as site:
        with pytest.raises(SourceError, match=r"127\.0\.0\.1 lies on this machine, where this catalogue may not lead"):
            read(f"{site.url}/b.tif", scoped({}, AWAY), Network(limits))
        with pytest.raises(AddressError):
            overview_reader(scoped({}, AWAY))(f"{site.url}/b.tif")
        assert not site.seen
        assert read(f"{site.url}/b.tif", scoped({"hosts": {site.host: {}}}, AWAY), Network(limits)).valid_percent == 100
