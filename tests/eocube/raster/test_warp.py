"""Resampling: the right ground to a thousandth of a number, gaps that neither bleed nor shrink, mirrored edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from eocube.raster.warp import PixelGrid, average, bilinear, mirror_gaps, nearest, place, region_of

SIZE = 300
OFF = Affine(10, 0, 399960 + 3.7, 0, -10, 5300040 + 4.1)
GRID = PixelGrid(32633, 400800.0, 5299200.0, 10.0, 128)


def picture(bands: int = 2, size: int = SIZE) -> NDArray[np.float64]:
    return np.random.default_rng(1).uniform(1000, 6000, (bands, size, size)).astype(np.float32).astype(np.float64)


def warp(values: NDArray[np.float64], transform: Affine, crs: str, grid: PixelGrid) -> NDArray[np.float64]:
    """`bilinear` on a source that lies in memory."""
    at = place(grid, transform, crs)
    region = region_of(at, grid, *values.shape[1:])
    padded = np.pad(values, ((0, 0), (2, 2), (2, 2)), constant_values=np.nan)
    part = padded[:, region.row0 + 2 : region.row1 + 2, region.col0 + 2 : region.col1 + 2]
    return bilinear(part, at, region)


def by_gdal(
    tmp_path: Path, values: NDArray[np.float64], transform: Affine, epsg: int, grid: PixelGrid
) -> NDArray[np.float64]:
    path = tmp_path / "source.tif"
    with rasterio.open(path, "w", driver="GTiff", width=values.shape[2], height=values.shape[1], count=len(values),
                       dtype="float32", crs=f"EPSG:{epsg}", transform=transform, nodata=0) as target:  # fmt: skip
        target.write(np.nan_to_num(values).astype(np.float32))
    with rasterio.open(path) as source, WarpedVRT(
        source, crs=f"EPSG:{grid.epsg}", transform=grid.transform, width=grid.size, height=grid.size,
        resampling=Resampling.bilinear, XSCALE="1", YSCALE="1", src_nodata=0, nodata=0,
    ) as vrt:  # fmt: skip
        found = vrt.read().astype(np.float64)
        return np.where(found == 0, np.nan, found)


def exactly(values: NDArray[np.float64], transform: Affine, epsg: int, grid: PixelGrid) -> NDArray[np.float64]:
    """Bilinear by the definition, every pixel centre projected by PROJ."""
    steps = np.arange(grid.size) + 0.5
    x, y = np.meshgrid(grid.left + steps * grid.side, grid.top - steps * grid.side)
    if epsg != grid.epsg:
        x, y = Transformer.from_crs(grid.epsg, epsg, always_xy=True).transform(x, y)
    col, row = (x - transform.c) / transform.a - 0.5, (y - transform.f) / transform.e - 0.5
    j, i = np.floor(col).astype(int), np.floor(row).astype(int)
    u, v = col - j, row - i
    upper = values[:, i, j] * (1 - u) + values[:, i, j + 1] * u
    lower = values[:, i + 1, j] * (1 - u) + values[:, i + 1, j + 1] * u
    return np.asarray(upper * (1 - v) + lower * v)


def test_off_grid_equals_warped_vrt_and_the_definition(tmp_path: Path) -> None:
    values = picture()
    ours = warp(values, OFF, "EPSG:32633", GRID)
    assert np.abs(ours - exactly(values, OFF, 32633, GRID)).max() < 1e-6
    assert np.abs(ours - by_gdal(tmp_path, values, OFF, 32633, GRID)).max() < 1e-3


def test_gaps_equal_warped_vrt(tmp_path: Path) -> None:
    values = picture(1)
    values[0, 120:140, 100:120] = np.nan
    values[0, 150, 150] = np.nan
    values[0, :, 180:] = np.nan
    ours = warp(values, OFF, "EPSG:32633", GRID)
    theirs = by_gdal(tmp_path, values, OFF, 32633, GRID)
    assert (np.isnan(ours) == np.isnan(theirs)).all() and np.isnan(ours).any()
    seen = np.isfinite(ours)
    assert np.abs(ours[seen] - theirs[seen]).max() < 1e-3
    assert ours[seen].min() >= 1000  # nodata (0) never bled in


def test_other_zone_equals_the_definition() -> None:
    values = picture(1, 900)
    x, y = Transformer.from_crs(32633, 32632, always_xy=True).transform(404000.0, 5295500.0)
    grid = PixelGrid(32632, round(x / 10) * 10.0 - 1280, round(y / 10) * 10.0 + 1280, 10.0, 256)
    ours = warp(values, OFF, "EPSG:32633", grid)
    # A thousandth of a number in pictures of noise (slopes of 5000 a pixel) is two ten-millionths of a pixel.
    assert np.abs(ours - exactly(values, OFF, 32633, grid)).max() < 1e-3


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([10.0, 20.0, 60.0, 120.0]), st.integers(1, 60), st.floats(-2.9, 2.9), st.floats(-79, 83))
def test_projected_places_are_exact(side: float, zone: int, east: float, lat: float) -> None:
    epsg, other = 32600 + zone, 32600 + zone % 60 + 1
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(6 * zone - 183 + east, lat)
    grid = PixelGrid(epsg, round(x / side) * side, round(y / side) * side, side, 256)
    for crs in (f"EPSG:{other}", "EPSG:4326", "EPSG:3857"):
        at = place(grid, Affine.identity(), crs)
        steps = np.arange(256) + 0.5
        xs, ys = np.meshgrid(grid.left + steps * side, grid.top - steps * side)
        true = Transformer.from_crs(epsg, crs, always_xy=True).transform(xs, ys)
        tolerance = 1e-11 if crs == "EPSG:4326" else 2e-6
        if crs != f"EPSG:{other}" and abs(true[0]).max() > (179 if crs == "EPSG:4326" else 1.99e7):
            continue  # the box crosses the antimeridian, where those two jump
        assert np.abs(at.cols + 0.5 - true[0]).max() < tolerance
        assert np.abs(at.rows + 0.5 - true[1]).max() < tolerance


def test_same_grid_is_recognised_and_a_centimetre_is_no_shift() -> None:
    assert place(GRID, Affine(10, 0, 399960, 0, -10, 5300040), "EPSG:32633").exact == (84, 84)
    assert place(GRID, Affine(10, 0, 399960.005, 0, -10, 5300040), "EPSG:32633").exact == (84, 84)
    assert place(GRID, Affine(10, 0, 399960.02, 0, -10, 5300040), "EPSG:32633").exact is None
    assert place(GRID, Affine(20, 0, 399960, 0, -20, 5300040), "EPSG:32633").exact is None
    assert place(GRID, Affine(10, 0, 399960, 0, -10, 5300040), "EPSG:32632").exact is None


def test_average_is_the_mean_of_what_is_valid() -> None:
    values = picture(2)
    values[1, 100:102, 100:102] = np.nan
    values[1, 104, 104] = np.nan
    transform = Affine(10, 0, 400000, 0, -10, 5300000)
    grid = PixelGrid(32633, 400960.0, 5299000.0, 20.0, 64)
    at = place(grid, transform, "EPSG:32633")
    assert at.ratio == 2.0
    region = region_of(at, grid, SIZE, SIZE)
    ours = average(
        values[:, region.row0 : region.row1, region.col0 : region.col1], transform, "EPSG:32633", region, grid
    )
    blocks = values[:, 100:228, 96:224].reshape(2, 64, 2, 64, 2)
    counts = np.isfinite(blocks).sum(axis=(2, 4))
    means = np.nansum(blocks, axis=(2, 4)) / np.maximum(counts, 1)
    assert (np.isnan(ours) == (counts == 0)).all() and np.isnan(ours).sum() == 1
    assert np.nanmax(np.abs(ours - np.where(counts > 0, means, np.nan))) < 1e-3


def test_nearest_takes_the_pixel_that_the_centre_falls_into() -> None:
    classes = np.arange(SIZE * SIZE, dtype=np.int64).reshape(1, SIZE, SIZE)
    at = place(GRID, OFF, "EPSG:32633")
    region = region_of(at, GRID, SIZE, SIZE)
    ours = nearest(classes[:, region.row0 : region.row1, region.col0 : region.col1], at, region)[0]
    col, row = (400800 + 35 - OFF.c) / 10, (OFF.f - 5299200 + 75) / 10
    assert ours[7, 3] == int(row) * SIZE + int(col)


def test_a_swath_edge_is_mirrored_and_what_cannot_be_mirrored_takes_its_nearest() -> None:
    row = np.arange(10.0)
    bands = np.tile(row, (2, 10, 1))
    valid = np.ones(bands.shape, dtype=bool)
    valid[0, :, 6:] = False
    valid[1, :, :] = False
    valid[1, :, 8:] = True
    mirror_gaps(bands, valid)
    np.testing.assert_array_equal(bands[0, 4], [0, 1, 2, 3, 4, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(bands[1, 4], [8, 8, 8, 8, 8, 8, 8, 9, 8, 9])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
def test_filled_pixels_come_from_valid_ones(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    valid = rng.random((3, 12, 12)) < share
    bands = np.where(valid, rng.uniform(1, 2, valid.shape), -1.0)
    before = bands.copy()
    mirror_gaps(bands, valid)
    for band, old, seen in zip(bands, before, valid, strict=True):
        np.testing.assert_array_equal(band[seen], old[seen])
        assert not seen.any() or np.isin(band, old[seen]).all()


@pytest.mark.parametrize("far", [(10_000, 0), (0, -10_000), (-2570, 2570)])
def test_grids_off_the_source_need_none_of_it(far: tuple[int, int]) -> None:
    grid = PixelGrid(32633, OFF.c + far[0] * 3.0, OFF.f + far[1] * 3.0, 10.0, 256)
    assert region_of(place(grid, OFF, "EPSG:32633"), grid, SIZE, SIZE).inside(SIZE, SIZE) is None
