"""Rasters lie under tiles where they belong, to a small part of a pixel, by pyproj's arithmetic and not GDAL's."""

from __future__ import annotations

import numpy as np
import pytest
from pyproj import Transformer

from eocube.errors import InputError
from eocube.serve.cube import EQUATOR
from eocube.serve.raster import Raster, TilePlace, drawn
from tests.eocube.serve.running import tile_at


def centres(tile: TilePlace) -> tuple[np.ndarray, np.ndarray]:
    """Web mercator metres of a tile's pixel centres, by the definition of the tiling."""
    step = EQUATOR / 2**tile.z / tile.size
    at = np.arange(tile.size) + 0.5
    x = -EQUATOR / 2 + (tile.x * tile.size + at) * step
    y = EQUATOR / 2 - (tile.y * tile.size + at) * step
    return np.meshgrid(x, y)


@pytest.mark.parametrize(("z", "size"), [(12, 256), (13, 256), (14, 256), (14, 512), (15, 256)])
def test_a_ramp_of_eastings_and_northings_says_where_each_pixel_is(z: int, size: int) -> None:
    lon, lat = 11.51, 48.106
    place = TilePlace(z, *tile_at(lon, lat, z), size)
    x0, y0 = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon, lat)
    left, top = round(x0 / 10) * 10 - 12000.0, round(y0 / 10) * 10 + 12000.0
    east = left + (np.arange(2400) + 0.5) * 10
    north = top - (np.arange(2400) + 0.5) * 10
    ramp = np.stack(np.meshgrid(east - x0, north - y0)).astype(np.float32)
    got = drawn(Raster(ramp, left, top, 10.0, 32632), place)
    want = Transformer.from_crs(3857, 32632, always_xy=True).transform(*centres(place))
    assert np.isfinite(got).all()
    off = np.abs(got - np.stack(want) + np.array([x0, y0])[:, None, None])
    # Metres, of pixels of 10, where half a pixel would be 5; GDAL's wider kernels further out weigh unevenly.
    assert off.max() < (0.08 * place.ground_pixel if z < 14 else 0.1)


def test_close_by_pixels_are_squares_and_each_is_the_one_that_holds_the_centre() -> None:
    lon, lat = 11.51, 48.106
    place = TilePlace(17, *tile_at(lon, lat, 17))
    x0, y0 = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon, lat)
    left, top = np.floor(x0 / 10) * 10 - 1000, np.ceil(y0 / 10) * 10 + 1000
    numbers = np.arange(200 * 200, dtype=np.float32).reshape(1, 200, 200)
    got = drawn(Raster(numbers, left, top, 10.0, 32632), place)[0]
    x, y = Transformer.from_crs(3857, 32632, always_xy=True).transform(*centres(place))
    across, down = (x - left) / 10, (top - y) / 10
    clear = (np.abs(across - np.rint(across)) > 0.06) & (np.abs(down - np.rint(down)) > 0.06)
    want = np.floor(down) * 200 + np.floor(across)
    assert (got[clear] == want[clear]).all() and clear.mean() > 0.7


def test_a_hole_stays_a_hole_and_beyond_the_raster_is_nothing() -> None:
    lon, lat = 11.51, 48.106
    place = TilePlace(14, *tile_at(lon, lat, 14))
    x0, y0 = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon, lat)
    data = np.ones((2, 40, 40), np.float32)
    data[0, 10:20, 10:20] = np.nan
    got = drawn(Raster(data, x0 - 200, y0 + 200, 10.0, 32632), place)
    assert np.nanmin(got) == np.nanmax(got) == 1.0
    first, second = np.isfinite(got).sum(axis=(1, 2))
    assert 0 < first < second < place.size**2


@pytest.mark.parametrize(("z", "x", "y"), [(-1, 0, 0), (25, 0, 0), (3, 8, 0), (3, 0, 8), (0, 0, -1)])
def test_what_is_no_tile_is_refused(z: int, x: int, y: int) -> None:
    with pytest.raises(InputError):
        TilePlace(z, x, y)


def test_the_whole_world_and_its_far_side_draw_nothing_and_raise_nothing() -> None:
    data = np.ones((1, 50, 50), np.float32)
    raster = Raster(data, 690_000.0, 5_330_000.0, 10.0, 32632)
    for place in (TilePlace(0, 0, 0), TilePlace(1, 0, 1), TilePlace(3, 0, 7)):
        place.bounds_in(32632)
        assert drawn(raster, place).shape == (1, 256, 256)
