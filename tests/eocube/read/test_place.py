"""A raster that lies elsewhere than its item says is a failed read, in every zone and over the antimeridian."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from eocube.errors import SourceError
from eocube.ground.grid import Lattice, Window
from eocube.ground.zones import BBox
from eocube.read.place import misplaced
from eocube.read.reader import WindowReader
from tests.eocube.rasters import BBOX, LATTICE, TRANSFORM, WINDOW, digital, ground, over, read, s2, tif


def test_a_raster_of_another_zone_fails_and_names_both_places(tmp_path: Path) -> None:
    path = tif(tmp_path / "b.tif", digital(ground()), crs="EPSG:32638")
    with pytest.raises(
        SourceError, match=r"item item-1, asset b02: .*it lies at 4.*EPSG:32638.*its item says 1"
    ) as said:
        read(over(path))
    assert "\n" not in str(said.value)
    moved = tif(tmp_path / "m.tif", digital(ground()), transform=Affine.translation(200_000, 0) * TRANSFORM)
    with pytest.raises(SourceError, match="its item says"):
        read(over(moved))
    good = tif(tmp_path / "g.tif", digital(ground()))
    with WindowReader(s2(), LATTICE) as reader, pytest.raises(SourceError, match=r"asset scl: .*its item says"):
        reader.mask([over(good, mask=path)], WINDOW)


def test_a_raster_that_covers_its_footprint_in_part_leaves_windows_without_data(tmp_path: Path) -> None:
    path = tif(tmp_path / "b.tif", digital(ground()))
    west, south, east, north = BBOX
    large = over(path, bbox=(west, south, east + 1.0, north))
    far = Window(WINDOW.row, WINDOW.col + 20)
    assert read(large, window=far).valid_percent == 0
    assert read(large).valid_percent == 100


def test_an_item_s_rounded_box_is_no_mistake(tmp_path: Path) -> None:
    path = tif(tmp_path / "b.tif", digital(ground()))
    _, south, east, north = BBOX
    beside = over(path, bbox=(east + 0.001, south, east + 0.05, north))
    assert read(beside, window=Window(WINDOW.row, WINDOW.col + 2)).valid_percent == 0


# (EPSG of the raster, its upper left corner, the item's box), 100 km a side at 100 m.
HOMES: dict[str, tuple[int, float, float, BBox]] = {
    "mid zone": (32633, 500_000, 5_500_000, (15.0, 48.7, 16.4, 49.6)),
    "south": (32733, 500_000, 6_500_000, (15.0, -32.6, 16.1, -31.6)),
    "antimeridian, box wraps": (32601, 300_000, 7_100_000, (178.7, 63.0, -179.0, 64.0)),
    "antimeridian, box in 0..360": (32601, 300_000, 7_100_000, (178.7, 63.0, 181.0, 64.0)),
    "antimeridian, from the west": (32660, 650_000, 7_100_000, (-181.0, 63.0, -177.0, 64.0)),
    "neighbour's zone": (32634, 200_000, 5_500_000, (16.6, 48.6, 18.1, 49.6)),
}


@pytest.mark.parametrize("name", HOMES)
def test_places_over_all_zones(name: str) -> None:
    epsg, left, top, box = HOMES[name]
    transform = Affine(100, 0, left, 0, -100, top)
    scene = over("x.tif", bbox=box)
    assert misplaced(scene, f"EPSG:{epsg}", transform, 1000, 1000) is None
    west, south, east, north = box
    for wrong in ((west + 20, south, east + 20, north), (west, -north - 3, east, -south - 3)):
        assert "its item says" in str(misplaced(replace(scene, bbox=wrong), f"EPSG:{epsg}", transform, 1000, 1000))
    other = 32600 + (epsg + 3) % 60 + 1
    assert misplaced(scene, f"EPSG:{other}", transform, 1000, 1000) is not None


def test_footprints_count_before_boxes_and_part_by_part() -> None:
    """An item over the antimeridian whose box spans the globe, as catalogues write them."""
    parts = [[[[179, 60], [180, 60], [180, 61], [179, 61], [179, 60]]],
             [[[-180, 60], [-179, 60], [-179, 61], [-180, 61], [-180, 60]]]]  # fmt: skip
    text = json.dumps({"type": "MultiPolygon", "coordinates": parts})
    scene = over("x.tif", bbox=(-180.0, 60.0, 180.0, 61.0), footprint=text)
    here = Affine(100, 0, 640_000, 0, -100, 6_740_000)
    assert misplaced(scene, "EPSG:32660", here, 800, 800) is None
    assert misplaced(scene, "EPSG:32633", here, 800, 800) is not None


def test_poles_full_disks_and_the_whole_globe_are_somewhere() -> None:
    polar = "EPSG:3413"
    for lon in (-170.0, 10.0, 100.0):
        near = over("x.tif", bbox=(lon, 85.0, lon + 5, 86.0))
        assert misplaced(near, polar, Affine(1000, 0, -1_000_000, 0, -1000, 1_000_000), 2000, 2000) is None
    assert misplaced(over("x.tif", bbox=(0, 10, 5, 15)), polar, Affine(1000, 0, -1e6, 0, -1000, 1e6), 2000, 2000)
    disk = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +ellps=WGS84 +units=m").to_wkt()
    whole = Affine(3000, 0, -5_568_000, 0, -3000, 5_568_000)
    assert misplaced(over("x.tif", bbox=(10, 10, 15, 15)), disk, whole, 3712, 3712) is None
    world = Affine(0.1, 0, -180, 0, -0.1, 90)
    assert misplaced(over("x.tif", bbox=(179.9, -89, -179.9, -88)), "EPSG:4326", world, 1800, 3600) is None
    lost = Affine(10, 0, 1e9, 0, -10, 1e9)
    assert "nowhere on the globe" in str(misplaced(over("x.tif"), "EPSG:32633", lost, 100, 100))


def test_a_window_over_the_antimeridian_still_reads(tmp_path: Path) -> None:
    lattice = Lattice(32601, 10)
    window = Window(-7_060_000 // 1920, 351_200 // 1920)
    left, bottom, right, top = lattice.window_bounds(window)
    path = tif(
        tmp_path / "a.tif", digital(ground()), crs="EPSG:32601", transform=Affine(10, 0, left - 320, 0, -10, top + 320)
    )
    west, south, east, north = transform_bounds(32601, 4326, left, bottom, right, top)
    assert west > 0 > east
    with WindowReader(s2(), lattice) as reader:
        assert reader.read([over(path, bbox=(west, south, east, north), epsg=32601)], window).valid_percent == 100
