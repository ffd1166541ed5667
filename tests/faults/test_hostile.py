"""Hostile catalogues, files and stores: refused in one line or one window, in bounded memory, nothing given away."""

from __future__ import annotations

import json
import math
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
from affine import Affine

import eocube
from eocube.cli import encode_main, main
from eocube.errors import InputError, SourceError, StoreError
from eocube.ground.grid import Lattice, Window
from eocube.net.objects import Objects
from eocube.net.trust import check_href
from eocube.plan.plan import footprint
from eocube.read.reader import WindowReader
from eocube.run.request import Exit
from eocube.scenes.item_checks import MAX_ASSETS, check_item
from eocube.scenes.scene import BandSource, Scene
from eocube.scenes.search import parse_interval, search
from eocube.scenes.stac import Found
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.store.store import CubeStore
from tests.faults.killing import drive, plan_of, scene

SENSOR = get_sensor("S2L2A").subset(["B02"])
WORLD, EVER = (-180.0, -80.0, 180.0, 80.0), parse_interval("2000/2050")
LATTICE, WINDOW = Lattice(32633, 10), Window(-2760, 209)
BOX = [[15.0, 46.0], [16.0, 46.0], [16.0, 47.0], [15.0, 47.0], [15.0, 46.0]]


def item(href: str = "./B02.tif", name: str = "S2A_33TWM_20230815_0_L2A", **changes: Any) -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a", "links": [],
        "geometry": {"type": "Polygon", "coordinates": [BOX]}, "bbox": [15.0, 46.0, 16.0, 47.0],
        "properties": {
            "datetime": "2023-08-15T09:57:57Z", "platform": "sentinel-2a", "proj:epsg": 32633,
            "s2:processing_baseline": "02.12", "earthsearch:boa_offset_applied": False,
        },
        "assets": {"blue": {"href": href, "raster:bands": [{"scale": 1e-4, "offset": 0, "nodata": 0}]}},
        **changes,
    }  # fmt: skip


def collect(path: Path, *items: dict[str, Any]) -> str:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return str(path)


# -- catalogues


@pytest.mark.faults
def test_an_item_with_a_million_assets_is_refused_and_the_others_taken(tmp_path: Path) -> None:
    bloated = item(name="S2A_33TWN_20230815_0_L2A")
    blue = bloated["assets"]["blue"]
    bloated["assets"] |= {f"a{k}": blue for k in range(1_000_000)}
    found = search(collect(tmp_path / "items.json", bloated, item()), SENSOR, WORLD, EVER)
    assert [s.id for s in found.scenes] == ["S2A_33TWM_20230815_0_L2A"]
    assert found.refused == ((bloated["id"], f"has 1000001 assets, more than the {MAX_ASSETS} that are taken"),)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    def catalogue(name: str, *children: str) -> None:
        links = [{"rel": "child", "href": c} for c in children] + [{"rel": "item", "href": "./item.json"}]
        text = json.dumps({"type": "Catalog", "stac_version": "1.0.0", "id": name, "description": "", "links": links})
        (tmp_path / f"{name}.json").write_text(text)

    catalogue("a", "./b.json", "./a.json")
    catalogue("b", "./a.json", "../" + tmp_path.name + "/a.json")
    (tmp_path / "item.json").write_text(json.dumps(item()))
    assert len(search(str(tmp_path / "a.json"), SENSOR, WORLD, EVER).scenes) == 1


def test_links_without_end_are_refused(tmp_path: Path) -> None:
    """A folder that contains itself: every link is a new place."""
    (tmp_path / "self").symlink_to(tmp_path)
    links = [{"rel": "child", "href": "./self/catalog.json"}]
    text = json.dumps({"type": "Catalog", "stac_version": "1.0.0", "id": "a", "description": "", "links": links})
    (tmp_path / "catalog.json").write_text(text)
    with pytest.raises(InputError, match="links deeper than 32 levels"):
        search(str(tmp_path), SENSOR, WORLD, EVER)


ABSURD: dict[str, Any] = {
    "not a number": {"type": "Polygon", "coordinates": [[[math.nan, 46], [16, 46], [16, 47], [math.nan, 46]]]},
    "infinite": {"type": "Polygon", "coordinates": [[[math.inf, 46], [16, 46], [16, 47], [15, 46]]]},
    "a thousand million degrees": {"type": "Polygon", "coordinates": [[[1e9, 46], [16, 46], [16, 47], [1e9, 46]]]},
    "words": {"type": "Polygon", "coordinates": [[["west", "south"], [16, 46], [16, 47]]]},
    "no GeoJSON": {"type": "Polygon", "coordinates": "everywhere"},
    "nested without end": {"type": "Polygon", "coordinates": [[[[[[[[15, 46]]]]]]]]},
}


@pytest.mark.parametrize("kind", ABSURD)
def test_an_absurd_footprint_costs_its_item_alone(kind: str, tmp_path: Path) -> None:
    bad = item(name="S2A_33TWN_20230815_0_L2A", geometry=ABSURD[kind])
    found = search(collect(tmp_path / "items.json", bad, item()), SENSOR, WORLD, EVER)
    assert [s.id for s in found.scenes] == ["S2A_33TWM_20230815_0_L2A"]
    ((name, why),) = found.refused
    assert (name == bad["id"] and "footprint" in why) or "geometry" in why


@pytest.mark.parametrize("bbox", [[math.nan, 46, 16, 47], [15, 46, 16], [1e9, 46, 16, 47], "everywhere"])
def test_an_absurd_bbox_costs_its_item_alone(bbox: Any, tmp_path: Path) -> None:
    bad = item(name="S2A_33TWN_20230815_0_L2A", bbox=bbox, geometry=None)
    found = search(collect(tmp_path / "items.json", bad, item()), SENSOR, WORLD, EVER)
    assert len(found.scenes) == 1 and [i for i, _ in found.refused] == [bad["id"]]


def test_a_self_crossing_footprint_is_put_right() -> None:
    bow = {"type": "Polygon", "coordinates": [[[11, 48], [12, 49], [12, 48], [11, 49], [11, 48]]]}
    check_item(item(geometry=bow))
    shape = footprint(with_footprint(bow), 32632)
    assert (shape.is_valid and shape.geom_type == "MultiPolygon") or shape.area > 1e9


@pytest.mark.parametrize(
    ("ring", "touches"),
    [
        ([[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]], True),
        ([[-170, -50], [-168, -50], [-168, -48], [-170, -50]], False),
    ],
)
def test_a_footprint_around_the_world_or_behind_it_stays_so_in_a_zone(ring: list[Any], touches: bool) -> None:
    """Far from its middle a zone's projection folds the globe onto itself: what is there must not seem near."""
    import shapely

    here = shapely.box(690_000, 5_320_000, 700_000, 5_340_000)
    assert footprint(with_footprint({"type": "Polygon", "coordinates": [ring]}), 32632).intersects(here) == touches


def with_footprint(geometry: Any) -> Scene:
    from dataclasses import replace

    return replace(scene(1), footprint=json.dumps(geometry))


SECRET_FILES = [
    "file:///etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "/vsicurl/file:///etc/passwd",
    "/vsisubfile/0_9,/etc/passwd", "local:///etc/passwd", "zip::file:///etc/passwd", "simplecache::/etc/passwd", "ssh://localhost/etc/passwd",
    "memory://elsewhere/x.tif", "ftp://host/x.tif",
]  # fmt: skip


@pytest.mark.parametrize("href", SECRET_FILES)
@pytest.mark.parametrize("base", ["https://host/items/a.json", "s3://bucket/items/a.json"])
def test_a_catalogue_from_elsewhere_leads_to_no_file_of_this_machine(href: str, base: str) -> None:
    with pytest.raises(SourceError, match="--allow-local-sources") as caught:
        Found({}, base).resolve(href)
    assert "\n" not in str(caught.value)
    Found({}, base, allow_local=True).resolve(href)
    Found({}, "/data/items/a.json").resolve(href)


def test_an_absolute_path_is_the_servers_own_on_the_web_and_refused_from_a_bucket() -> None:
    assert Found({}, "https://host/a/b.json").resolve("/etc/x.tif") == "https://host/etc/x.tif"
    assert Found({}, "https://host/a/b.json").resolve("../../../x.tif") == "https://host/x.tif"
    with pytest.raises(SourceError, match="this machine's files"):
        Found({}, "s3://bucket/b.json").resolve("/etc/x.tif")
    for href in ("https://other/x.tif", "s3://other/x.tif", "gs://b/x.tif", "./x.tif"):
        assert check_href(Found({}, "https://host/a.json").resolve(href), "https://host/a.json")


def test_such_an_item_is_named_in_the_search_and_a_link_ends_it(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/hostile/items.json", Path(collect(tmp_path / "i.json", item("file:///etc/passwd"), item(
        name="S2A_33TWN_20230815_0_L2A"))).read_bytes())  # fmt: skip
    found = search("memory://hostile/items.json", SENSOR, WORLD, EVER)
    assert [s.id for s in found.scenes] == ["S2A_33TWN_20230815_0_L2A"]
    assert "--allow-local-sources" in found.refused[0][1]
    assert len(search("memory://hostile/items.json", SENSOR, WORLD, EVER, allow_local=True).scenes) == 2
    links = [{"rel": "item", "href": "file:///etc/passwd"}]
    catalogue = {"type": "Catalog", "stac_version": "1.0.0", "id": "a", "description": "", "links": links}
    memory.pipe("/hostile/catalog.json", json.dumps(catalogue).encode())
    with pytest.raises(InputError, match="--allow-local-sources"):
        search("memory://hostile/catalog.json", SENSOR, WORLD, EVER)


# -- redirects


class Redirecting(BaseHTTPRequestHandler):
    """Sends whoever asks for anything to `to`."""

    to = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def redirect() -> Iterator[Callable[[str], str]]:
    """A web server that redirects to where it is told; gives the URL to ask."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("R", (Redirecting,), {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def to(place: str) -> str:
        server.RequestHandlerClass.to = place  # type: ignore[attr-defined]
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield to
    server.shutdown()
    server.server_close()


@pytest.mark.faults
def test_a_redirect_to_a_file_gives_neither_catalogue_nor_pixels(
    redirect: Callable[[str], str], tmp_path: Path
) -> None:
    good = raster(tmp_path / "B02.tif")
    items = collect(tmp_path / "items.json", item(str(good)))
    with pytest.raises(InputError, match="cannot read http://127"):
        search(redirect(f"file://{items}") + "/catalog.json", SENSOR, WORLD, EVER)
    with pytest.raises(SourceError, match="cannot read http://127"):
        read(redirect(f"file://{good}") + "/B02.tif")
    assert read(str(good)).valid_percent > 0


# -- rasters


def raster(path: Path, side: int = 400, pixel: float = 10.0, **profile: Any) -> Path:
    left, _, _, top = LATTICE.window_bounds(WINDOW)
    options = {"driver": "GTiff", "dtype": "uint16", "count": 1, "crs": "EPSG:32633", "nodata": 0, **profile}
    with rasterio.open(
        path, "w", width=side, height=side, transform=Affine(pixel, 0, left - 600, 0, -pixel, top + 600), **options
    ) as file:
        if side <= 4000:
            shape = (options["count"], side, side)
            file.write(np.random.default_rng(1).integers(1, 9000, shape).astype(options["dtype"]))
    return path


def read(href: str) -> Any:
    source = BandSource("B02", "blue", href, 1, Radiometry(1e-4, 0.0, 0.0, "dn", "test"))
    one = Scene("item-1", "c", "2023-08-15T09:57:57Z", "S2A", "g", "2023-08-15T09:57:57Z", 32633, WORLD, None, None,
                None, (source,), None)  # fmt: skip
    with WindowReader(SENSOR, LATTICE, retries=0) as reader:
        return reader.read([one], WINDOW)


def test_a_file_of_one_enormous_block_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """A few kB on disk that would decode to 8 GiB at the first pixel."""
    bomb = raster(tmp_path / "bomb.tif", side=65536, blockxsize=65536, blockysize=65536, tiled=True,
                  compress="deflate", sparse_ok=True)  # fmt: skip
    assert bomb.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"item-1.*blocks decode to 8192 MiB") as caught:
            read(str(bomb))
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.asset == "blue" and "\n" not in str(caught.value)


def test_pixels_of_a_millimetre_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """A window's ground in them would be six million million pixels."""
    dust = raster(tmp_path / "dust.tif", side=500_000, pixel=0.01, tiled=True, compress="deflate", sparse_ok=True)
    with pytest.raises(SourceError, match="smaller than the resolution asked for"):
        read(str(dust))


def test_a_file_cut_short_of_what_it_declares_is_no_nodata(tmp_path: Path) -> None:
    whole = raster(tmp_path / "B02.tif", compress="deflate", tiled=True, blockxsize=128, blockysize=128)
    data = whole.read_bytes()
    for share in (0.1, 0.3, 0.5):
        cut = tmp_path / f"cut{share}.tif"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SourceError, match="item-1"):
            read(str(cut))


# -- stores


def test_a_stores_metadata_lead_to_nothing_outside_it(tmp_path: Path) -> None:
    url = str(tmp_path / "cube.zarr")
    drive(url, plan_of((11.500, 48.100, 11.510, 48.106), [scene(10)]))
    (tmp_path / "secret.json").write_text('{"hash": "hush"}')
    layout = json.loads((tmp_path / "cube.zarr/commits/layout.json").read_text())
    layout["sha256"]["../secret.json"] = "0"
    from eocube.store.verify import _hash

    del layout["check"]
    (tmp_path / "cube.zarr/commits/layout.json").write_text(json.dumps({**layout, "check": _hash(layout)}))
    with pytest.raises(StoreError, match="leads out of the store"):
        CubeStore.open(url).verify()
    root = json.loads((tmp_path / "cube.zarr/zarr.json").read_text())
    root["attributes"]["eocube"]["zones"] = ["../other"]
    (tmp_path / "cube.zarr/zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="leads out of the store"):
        CubeStore.stored_plans(url)


@pytest.mark.parametrize("key", ["../x", "latent/../../x", "a/.."])
def test_no_key_leads_out_of_a_target(key: str, tmp_path: Path) -> None:
    target = Objects(tmp_path / "a" / ".." / "cube.zarr")  # the user's own path may have them
    for act in (target.get, target.delete, target.keys, lambda k: target.put(k, b""), lambda k: target.create(k, b"")):
        with pytest.raises(StoreError, match="leads out of the store"):
            act(key)
    target.put("x..y/z", b"1")
    assert target.get("x..y/z") == b"1"


def test_a_group_or_url_with_dots_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreError, match="no zone's name"):
        eocube.open(str(tmp_path), group="../other")
    assert main(["info", str(tmp_path), "--group", "../other"]) == Exit.BAD_INPUT
    args = ["--bbox", "11", "48", "11.1", "48.1", "--datetime", "2023", "--out", "s3://bucket/../cube.zarr"]
    assert encode_main(args) == Exit.BAD_INPUT
    assert "'..'" in capsys.readouterr().err
