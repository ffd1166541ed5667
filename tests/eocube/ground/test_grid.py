"""The lattice: cores tile the ground, the same ground gives the same windows, zones split where UTM says."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import rasterio.transform
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from eocube.errors import InputError
from eocube.ground.grid import BBox, CubeGrid, Lattice, Window, grids_for, zones_of
from eocube.ground.zones import split_antimeridian, to_lonlat, to_zone, zone_bands, zone_epsg, zone_name

BRNO = (16.0, 48.9, 16.9, 49.5)
EPSGS = st.sampled_from([32601, 32631, 32632, 32633, 32660, 32701, 32733, 32760])


@st.composite
def small_boxes(draw: st.DrawFn, *, lat: tuple[float, float] = (-79.0, 83.0)) -> BBox:
    """Boxes of a few kilometres to about a degree, anywhere UTM goes."""
    west = draw(st.floats(-180, 179))
    south = draw(st.floats(*lat))
    width, height = draw(st.floats(0.001, 0.7)), draw(st.floats(0.001, 0.5))
    return west, south, min(west + width, 180.0), south + height


@given(EPSGS, st.integers(1, 120), st.integers(-3000, 3000), st.integers(0, 400))
def test_cores_tile_without_gap_or_overlap(epsg: int, resolution: int, row: int, col: int) -> None:
    lattice = Lattice(epsg, resolution)
    here = lattice.core_bounds(Window(row, col))
    assert here[2] == lattice.core_bounds(Window(row, col + 1))[0]
    assert here[1] == lattice.core_bounds(Window(row + 1, col))[3]
    assert here[2] - here[0] == here[3] - here[1] == lattice.core * lattice.cell
    assert lattice.cores_over(here) == (row, col, row + 1, col + 1)
    window = lattice.window_bounds(Window(row, col))
    assert window[2] - window[0] == lattice.window_px * resolution
    assert here[0] - window[0] == lattice.halo_px * resolution


def test_rows_count_southwards_from_northing_0() -> None:
    lattice = Lattice(32632, 10)
    assert lattice.core_bounds(Window(0, 0)) == (0.0, -1920.0, 1920.0, 0.0)
    assert lattice.core_bounds(Window(-1, 2)) == (3840.0, 0.0, 5760.0, 1920.0)
    assert (lattice.cell, lattice.core_px, lattice.halo_px, lattice.window_px) == (80, 192, 32, 256)


def test_coarse_groups_cover_the_window_symmetrically_on_their_own_grid() -> None:
    assert [Lattice(32632, 10).group_size(g) for g in (10, 20, 60)] == [256, 130, 44]
    assert [Lattice(32632, 10).margin(g) for g in (10, 20, 60)] == [0, 20, 40]


@given(st.sampled_from([(10, 10), (10, 20), (10, 60), (20, 20), (20, 60), (30, 60), (5, 20), (12, 60), (100, 100)]),
       st.integers(-3000, 3000), st.integers(0, 400), st.sampled_from([3, 6, 24, 48]), st.integers(0, 9))  # fmt: skip
def test_group_grids_are_aligned_and_wide_enough(
    samplings: tuple[int, int], row: int, col: int, core: int, halo: int
) -> None:
    resolution, sampling = samplings
    lattice = Lattice(32733, resolution, core_px=core * 8, halo_px=halo * 8, shard_px=core * 8)
    if (core * lattice.cell) % sampling:
        with pytest.raises(InputError, match="does not fit"):
            lattice.margin(sampling)
        return
    left, bottom, right, top = lattice.group_bounds(Window(row, col), sampling)
    window = lattice.window_bounds(Window(row, col))
    margin = lattice.margin(sampling)
    assert left % sampling == top % sampling == bottom % sampling == right % sampling == 0
    assert (right - left) == (top - bottom) == lattice.group_size(sampling) * sampling
    assert window[0] - left == right - window[2] == window[1] - bottom == top - window[3] == margin
    assert (sampling - resolution) / 2 <= margin < (sampling - resolution) / 2 + sampling
    assert margin <= lattice.reach


@settings(deadline=None, max_examples=60)
@given(small_boxes())
def test_requested_cores_cover_the_box_and_lie_in_whole_shards(bbox: BBox) -> None:
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(bbox[0], bbox[2], 50), rng.uniform(bbox[1], bbox[3], 50)
    parts = zones_of(bbox)
    grids = {grid.lattice.epsg: grid for grid in grids_for(bbox, 10)}
    assert set(grids) == {epsg for epsg, _ in parts}
    for epsg, (west, south, east, north) in parts:
        grid = grids[epsg]
        inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        x, y = to_zone(epsg, lon[inside], lat[inside])
        side = grid.lattice.core * grid.lattice.cell
        for col, row in zip(np.floor(x / side).astype(int), np.floor(-y / side).astype(int), strict=True):
            assert grid.requested(Window(int(row), int(col)))
    for grid in grids.values():
        windows = list(grid.requested_windows())
        assert len(windows) == grid.requested_mask.sum() > 0
        assert {grid.shard_of(w) for w in windows} == set(grid.shards())
        rows, cols = [w.row for w in windows], [w.col for w in windows]
        assert grid.cores == (min(rows), min(cols), max(rows) + 1, max(cols) + 1)
        assert grid.shape[0] % grid.lattice.shard == grid.shape[1] % grid.lattice.shard == 0


@settings(deadline=None, max_examples=40)
@given(small_boxes(lat=(-70, 70)), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_two_boxes_over_the_same_ground_give_the_same_windows_and_shards(bbox: BBox, dx: float, dy: float) -> None:
    west, south, east, north = bbox
    other = (west + dx * (east - west), south + dy * (north - south), east + dx * (east - west), north)
    assume(-180 <= other[0] < other[2] <= 180 and other[1] < other[3])
    ones = {grid.lattice.epsg: grid for grid in grids_for(bbox, 10)}
    twos = {grid.lattice.epsg: grid for grid in grids_for(other, 10)}
    for epsg in set(ones) & set(twos):
        one, two = ones[epsg], twos[epsg]
        of_one = {one.lattice_shard(*s): one.windows_of_shard(*s) for s in one.shards()}
        of_two = {two.lattice_shard(*s): two.windows_of_shard(*s) for s in two.shards()}
        for shard in set(of_one) & set(of_two):
            assert of_one[shard] == of_two[shard]
        for window in set(one.requested_windows()) & set(two.requested_windows()):
            assert one.place_in_shard(window) == two.place_in_shard(window)
            assert one.lattice_shard(*one.shard_of(window)) == two.lattice_shard(*two.shard_of(window))


@settings(deadline=None, max_examples=40)
@given(small_boxes())
def test_indices_go_round_and_survive_json(bbox: BBox) -> None:
    for grid in grids_for(bbox, 10):
        assert CubeGrid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
        n = grid.lattice.cores_per_shard
        for srow, scol in list(grid.shards())[:3]:
            windows = grid.windows_of_shard(srow, scol)
            assert len(windows) == n * n and list(windows) == sorted(windows)
            for index, window in enumerate(windows):
                assert grid.shard_of(window) == (srow, scol)
                assert grid.window_at(*grid.place_in_status(window)) == window
                row, col = grid.place_in_shard(window)
                assert (row // grid.lattice.core) * n + col // grid.lattice.core == index
            left, bottom, right, top = grid.shard_bounds(srow, scol)
            assert grid.lattice.core_bounds(windows[0])[::3] == (left, top)
            assert grid.lattice.core_bounds(windows[-1])[1:3] == (bottom, right)


@pytest.mark.parametrize("bbox", [(11.0, 47.9, 11.2, 48.1), (-70.1, -33.5, -69.9, -33.4), (36.6, -1.4, 36.9, -1.2)])
def test_coordinates_are_latent_pixel_centres(bbox: BBox) -> None:
    (grid,) = grids_for(bbox, 10)
    ny, nx = grid.shape
    assert grid.x.shape == (nx,) and grid.y.shape == (ny,)
    assert grid.x.dtype == grid.y.dtype == np.float64
    x, y = rasterio.transform.xy(grid.transform, [0, ny - 1], [0, nx - 1])
    np.testing.assert_allclose(grid.x[[0, -1]], x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(grid.y[[0, -1]], y, rtol=0, atol=1e-9)
    assert (np.diff(grid.x) == 80).all() and (np.diff(grid.y) == -80).all()
    assert (grid.x % 80 == 40).all() and (grid.y % 80 == 40).all()
    box = GeoBox(grid.shape, grid.transform, f"EPSG:{grid.lattice.epsg}")
    assert box.shape == grid.shape and box.crs.epsg == grid.lattice.epsg
    assert box.affine == grid.transform
    np.testing.assert_array_equal(box.coords["x"].values, grid.x)
    window = grid.window_at(0, 1)
    left, _, _, top = grid.lattice.core_bounds(window)
    assert (grid.x[24] - 40, grid.y[0] + 40) == (left, top)
    assert (grid.wx[1], grid.wy[0]) == (left + 960, top - 960)
    row0, col0, row1, col1 = grid.extent
    assert (row1 - row0) // 24 == grid.cores.row1 - grid.cores.row0
    assert grid.place_in_status(Window(grid.cores.row0, grid.cores.col0)) == (row0 // 24, col0 // 24)
    assert (col1 - col0) // 24 == grid.cores.col1 - grid.cores.col0


def test_zone_edge_splits_a_box_and_each_cube_keeps_to_its_own_band() -> None:
    grids = grids_for((11.9, 48.0, 12.1, 48.1), 10)
    assert [grid.name for grid in grids] == ["utm32", "utm33"]
    for grid in grids:
        ((first, _, last, _),) = grid.parts
        assert (first, last) == ((11.9, 12.0) if grid.name == "utm32" else (12.0, 12.1))
        for window in grid.requested_windows():
            west, south, east, north = grid.lattice.lonlat_bounds(grid.lattice.core_bounds(window))
            assert east > first and west < last and north > 48.0 and south < 48.1


def test_equator_splits_north_and_south() -> None:
    grids = grids_for((36.6, -0.1, 36.8, 0.1), 10)
    assert [(grid.name, grid.lattice.epsg) for grid in grids] == [("utm37", 32637), ("utm37s", 32737)]
    north, south = grids
    assert north.cores.row1 == 0 and min(north.y[north.extent.row0 : north.extent.row1]) == 40
    assert south.cores.row0 == -5209  # northing 10 000 000 is the equator


@pytest.mark.parametrize(
    ("lon", "lat", "zone"),
    [(5.0, 60.0, 32), (2.9, 60.0, 31), (5.0, 55.9, 31), (5.0, 64.1, 31), (8.9, 73.0, 31), (9.1, 73.0, 33),
     (20.9, 78.0, 33), (21.1, 78.0, 35), (32.9, 75.0, 35), (33.1, 75.0, 37), (41.9, 83.9, 37), (42.1, 80.0, 38),
     (-179.9, 10.0, 1), (179.9, 10.0, 60), (11.0, 71.9, 32), (9.5, 72.1, 33)],
)  # fmt: skip
def test_zones_with_norway_and_svalbard(lon: float, lat: float, zone: int) -> None:
    ((epsg, _),) = zones_of((lon - 0.01, lat - 0.01, lon + 0.01, lat + 0.01))
    assert epsg == 32600 + zone


def test_zone_bands_tile_the_world_between_80_south_and_84_north() -> None:
    lons, lats = np.arange(-179.97, 180, 1.5), np.arange(-79.9, 84, 1.9)
    lon, lat = (a.ravel() for a in np.meshgrid(lons, lats))
    count = np.zeros(lon.shape, dtype=int)
    for zone in range(1, 61):
        for south in (False, True):
            for w, s, e, n in zone_bands(zone_epsg(zone, south=south)):
                count += (lon >= w) & (lon < e) & (lat >= s) & (lat < n)
    assert (count == 1).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(-180, 170), st.floats(-80, 80), st.floats(0.01, 30), st.floats(0.01, 4))
def test_zone_parts_are_the_box_without_overlap(west: float, south: float, width: float, height: float) -> None:
    bbox = (west, south, min(west + width, 180.0), south + height)
    parts = zones_of(bbox)
    area = sum((e - w) * (n - s) for _, (w, s, e, n) in parts)
    assert area == pytest.approx((bbox[2] - bbox[0]) * (bbox[3] - bbox[1]), rel=1e-6)


def test_antimeridian_box_is_its_two_halves() -> None:
    whole = grids_for((179.95, -17.0, -179.9, -16.9), 10)
    halves = grids_for([(-180.0, -17.0, -179.9, -16.9), (179.95, -17.0, 180.0, -16.9)], 10)
    assert [grid.name for grid in whole] == ["utm01s", "utm60s"]
    assert whole == halves
    for grid in whole:
        west, _, east, _ = grid.lonlat_bounds_with_halo()
        assert west > 179 and east < -179  # the halo crosses
        assert grid.search_boxes() == split_antimeridian(grid.lonlat_bounds_with_halo())
        assert len(grid.search_boxes()) == 2


@settings(deadline=None, max_examples=40)
@given(small_boxes())
def test_search_box_holds_every_window_with_its_halo(bbox: BBox) -> None:
    for grid in grids_for(bbox, 10):
        back = Transformer.from_crs(grid.lattice.epsg, 4326, always_xy=True)
        boxes = grid.search_boxes()
        windows = list(grid.requested_windows())
        for window in windows[:: max(len(windows) // 20, 1)] + windows[-1:]:
            left, bottom, right, top = grid.lattice.source_bounds(window)
            x = np.array([left, right, right, left, (left + right) / 2, (left + right) / 2])
            y = np.array([bottom, bottom, top, top, bottom, top])
            lon, lat = back.transform(x, y)
            inside = np.zeros(len(x), dtype=bool)
            for w, s, e, n in boxes:
                inside |= (lon >= w) & (lon <= e) & (lat >= s) & (lat <= n)
            assert inside.all()


@given(EPSGS, st.floats(200_000, 800_000), st.floats(1_000_000, 8_000_000))
def test_lonlat_is_continuous_and_goes_back(epsg: int, x: float, y: float) -> None:
    lon, lat = to_lonlat(epsg, x, y)
    back = to_zone(epsg, lon, lat)
    np.testing.assert_allclose([back[0], back[1]], [x, y], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"core_px": 196}, "multiple of the cell"), ({"shard_px": 2000}, "multiple of the core"),
     ({"halo_px": -1}, "halo -1"),
     ({"epsg": 4326}, "no WGS 84 UTM zone"), ({"resolution": 0}, "resolution 0")],
)  # fmt: skip
def test_impossible_lattices_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Lattice(**{"epsg": 32632, "resolution": 10, **options})


def test_boxes_beyond_utm_or_without_ground_are_refused() -> None:
    with pytest.raises(InputError, match="84 N"):
        grids_for((10, 83.9, 11, 84.5), 10)
    with pytest.raises(InputError, match="no ground"):
        grids_for((10, 50, 10, 51), 10)


def test_names() -> None:
    assert [zone_name(epsg) for epsg in (32601, 32660, 32701)] == ["utm01", "utm60", "utm01s"]


@given(st.sampled_from([1, 8, 16, 192]), st.integers(1, 6), st.integers(0, 70), st.integers(1, 4))
def test_a_lattice_comes_back_from_its_document(cell: int, core: int, halo: int, shard: int) -> None:
    lattice = Lattice(32632, 10, cell, core * cell, halo, shard * core * cell)
    assert Lattice.from_dict(lattice.to_dict()) == lattice
    assert ("stride" in lattice.to_dict()) == lattice.halo_is_cells == (halo % cell == 0)
    if not lattice.halo_is_cells:
        with pytest.raises(InputError, match="not whole cells"):
            lattice.halo  # noqa: B018


def test_one_thread_at_a_time_asks_a_prepared_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """GEOS is not safe there: without the lock, runs of two units on threads aborted now and then."""
    inside, most = [0], [0]
    plain = shapely.intersects

    def slow(*given: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        found = plain(*given)
        inside[0] -= 1
        return found

    monkeypatch.setattr(shapely, "intersects", slow)
    (held,) = grids_for(BRNO, 10, core_px=192 * 2)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: held.requested(Window(held.cores.row0, held.cores.col0)), range(4)))
    assert most == [1] and len(set(found)) == 1
