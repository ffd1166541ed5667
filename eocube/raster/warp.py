"""Brings pixels onto a window's grid: where each lies in the source, bilinear and average resampling, mirrored gaps."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, hypot, sqrt
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject

Floats = NDArray[np.float64]
Places = tuple[NDArray[np.intp], NDArray[np.intp]]

# A pixel edge this near (in pixels) to the grid's counts as on it: 1 cm at 10 m, far below any geolocation error.
_ON_GRID = 1e-3
# Above this many source pixels a target pixel (a side), pixels are averaged; up to it, bilinear.
DOWNSAMPLING = 1.5
# Nodes a side for the polynomial that stands for a map projection over one window (1e-7 m off over 30 km).
_NODES = 8
# rasterio 1.4's in-memory warp reports a missing transform now and then when several threads are in it.
_REPROJECT = threading.Lock()


@dataclass(frozen=True, slots=True)
class PixelGrid:
    """A square north-up grid of pixels in a zone: upper left corner and pixel side in metres."""

    epsg: int
    left: float
    top: float
    side: float
    size: int

    @property
    def transform(self) -> Affine:
        """Pixel (column, row) corner to metres."""
        return Affine(self.side, 0.0, self.left, 0.0, -self.side, self.top)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a grid's pixel centres lie in a source, in source pixels counted from the centre of its first one.

    `rows` and `cols` broadcast to the grid's shape. `ratio` is source pixels per grid pixel along a side. `exact` is
    (row, column) of the source pixel that is the grid's first pixel where the two grids are the same, else None.
    """

    rows: Floats
    cols: Floats
    ratio: float
    exact: tuple[int, int] | None


def place(grid: PixelGrid, transform: Affine, crs: str) -> Placement:
    """Locate a grid's pixels in a source with this transform and CRS ("EPSG:..." or WKT)."""
    steps = np.arange(grid.size, dtype=np.float64) + 0.5
    x, y = grid.left + steps * grid.side, grid.top - steps * grid.side
    if crs == f"EPSG:{grid.epsg}" and transform.b == 0 and transform.d == 0:
        cols = ((x - transform.c) / transform.a)[None, :] - 0.5
        rows = ((y - transform.f) / transform.e)[:, None] - 0.5
        return Placement(rows, cols, grid.side / sqrt(abs(transform.a * transform.e)), on_grid(grid, transform, crs))
    inverse = ~transform
    sx, sy = _project(grid, crs)
    cols = inverse.a * sx + inverse.b * sy + inverse.c - 0.5
    rows = inverse.d * sx + inverse.e * sy + inverse.f - 0.5
    mid = grid.size // 2
    near = slice(mid - 1, mid + 1)
    (c00, c01), (c10, _) = cols[near, near] if grid.size > 1 else np.zeros((2, 2))
    (r00, r01), (r10, _) = rows[near, near] if grid.size > 1 else np.eye(2)
    ratio = sqrt(hypot(c01 - c00, r01 - r00) * hypot(c10 - c00, r10 - r00))
    outside = ~(np.isfinite(rows) & np.isfinite(cols))
    rows[outside] = cols[outside] = -1e9
    return Placement(rows, cols, ratio if np.isfinite(ratio) else 1.0, None)


def on_grid(grid: PixelGrid, transform: Affine, crs: str) -> tuple[int, int] | None:
    """(row, column) of the source pixel that is the grid's first where the two grids are the same, else None."""
    if crs != f"EPSG:{grid.epsg}" or transform.b != 0 or transform.d != 0:
        return None
    if abs(transform.a - grid.side) > 1e-7 * grid.side or abs(transform.e + grid.side) > 1e-7 * grid.side:
        return None
    col, row = (grid.left - transform.c) / grid.side, (transform.f - grid.top) / grid.side
    if max(abs(col - round(col)), abs(row - round(row))) > _ON_GRID:
        return None
    return round(row), round(col)


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def _basis(size: int) -> tuple[Floats, Floats]:
    """Chebyshev nodes on (0, 1) and the Lagrange basis (size, nodes) at the centres of `size` equal pixels."""
    angles = (2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES)
    nodes = (1 - np.cos(angles)) / 2
    at = (np.arange(size) + 0.5) / size
    basis = np.ones((size, _NODES))
    for i in range(_NODES):
        for j in range(_NODES):
            if i != j:
                basis[:, i] *= (at - nodes[j]) / (nodes[i] - nodes[j])
    return nodes, basis


def _project(grid: PixelGrid, crs: str) -> tuple[Floats, Floats]:
    """The grid's pixel centres in another CRS, (size, size) each.

    A projection is smooth over a window: it is computed on 8 x 8 nodes and interpolated by the polynomial through
    them, which is as exact as computing it everywhere (see the test) and some hundred times faster.
    """
    nodes, basis = _basis(grid.size)
    extent = grid.side * grid.size
    x, y = np.meshgrid(grid.left + nodes * extent, grid.top - nodes * extent)
    found = _transformer(f"EPSG:{grid.epsg}", crs).transform(x, y)
    # Plain einsum, not a BLAS product: the same bits whatever the number of threads.
    sx, sy = (np.einsum("rj,cj->rc", np.einsum("ri,ij->rj", basis, np.asarray(v)), basis) for v in found)
    return sx, sy


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of source pixels, half-open; it may reach beyond the source."""

    row0: int
    col0: int
    row1: int
    col1: int

    def inside(self, height: int, width: int) -> Region | None:
        """The part within a source of this size, or None."""
        row0, col0 = max(self.row0, 0), max(self.col0, 0)
        row1, col1 = min(self.row1, height), min(self.col1, width)
        return Region(row0, col0, row1, col1) if row0 < row1 and col0 < col1 else None


def region_of(placement: Placement, grid: PixelGrid, height: int, width: int) -> Region:
    """The source pixels that resampling onto the grid needs; at most two beyond the source's own edge."""
    if placement.exact is not None:
        row, col = placement.exact
        return Region(row, col, row + grid.size, col + grid.size)
    reach = placement.ratio / 2 + 1 if placement.ratio > DOWNSAMPLING else 0.0
    rows, cols = np.clip(placement.rows, -1e6, 1e6), np.clip(placement.cols, -1e6, 1e6)
    row0, row1 = floor(rows.min() - reach), ceil(rows.max() + reach) + 2
    col0, col1 = floor(cols.min() - reach), ceil(cols.max() + reach) + 2
    return Region(
        min(max(row0, -2), height + 2),
        min(max(col0, -2), width + 2),
        max(min(row1, height + 2), -2),
        max(min(col1, width + 2), -2),
    )


def _local(placement: Placement, region: Region) -> tuple[Floats, Floats]:
    """Rows and columns within a region; what lies beyond it goes to its edge pixels, which are outside the source."""
    rows = np.clip(placement.rows - region.row0, 0.0, region.row1 - region.row0 - 2.0)
    cols = np.clip(placement.cols - region.col0, 0.0, region.col1 - region.col0 - 2.0)
    return rows, cols


def bilinear(values: Floats, placement: Placement, region: Region) -> Floats:
    """Bilinear interpolation between pixel centres: (N, h, w) of a region, NaN where invalid -> (N, size, size).

    Invalid pixels take no part: the weights of the others are scaled up. A pixel is invalid where the source pixel it
    falls into is, so an edge neither grows nor shrinks. That is what GDAL's warper does with one band and a nodata
    value, computed in float64.
    """
    rows, cols = _local(placement, region)
    row, col = np.floor(rows).astype(np.intp), np.floor(cols).astype(np.intp)
    down, right = rows - row, cols - col
    taps = (
        (row, col, (1 - down) * (1 - right)),
        (row, col + 1, (1 - down) * right),
        (row + 1, col, down * (1 - right)),
        (row + 1, col + 1, down * right),
    )
    valid = np.isfinite(values)
    if valid.all():
        return np.asarray(sum(values[:, r, c] * weight for r, c, weight in taps))
    filled = np.where(valid, values, 0.0)
    total = np.asarray(sum(filled[:, r, c] * weight for r, c, weight in taps))
    weights = np.asarray(sum(valid[:, r, c] * weight for r, c, weight in taps))
    seen = _nearest(valid, rows, cols)
    return np.where(seen, total / np.where(seen, weights, 1.0), np.nan)


def _nearest(values: NDArray[Any], rows: Floats, cols: Floats) -> NDArray[Any]:
    return values[:, np.floor(rows + 0.5).astype(np.intp), np.floor(cols + 0.5).astype(np.intp)]


def nearest(values: NDArray[Any], placement: Placement, region: Region) -> NDArray[Any]:
    """The source pixel that each grid pixel's centre falls into: for classes, which have no mean."""
    return _nearest(values, *_local(placement, region))


def average(values: Floats, transform: Affine, crs: str, region: Region, grid: PixelGrid) -> Floats:
    """Area-weighted mean of the valid source pixels under each grid pixel (GDAL's "average"), NaN where none is.

    `transform` is the whole source's; band by band, so that a gap in one is none in another.
    """
    source = np.ascontiguousarray(values, dtype=np.float32)
    out = np.full((len(source), grid.size, grid.size), np.nan, dtype=np.float32)
    a, b, c, d, e, f = transform[:6]
    left, top = a * region.col0 + b * region.row0 + c, d * region.col0 + e * region.row0 + f
    for band, target in zip(source, out, strict=True):
        with _REPROJECT:
            reproject(
                band,
                target,
                src_transform=Affine(a, b, left, d, e, top),
                src_crs=CRS.from_user_input(crs),
                dst_transform=grid.transform,
                dst_crs=CRS.from_epsg(grid.epsg),
                src_nodata=np.nan,
                dst_nodata=np.nan,
                resampling=Resampling.average,
                num_threads=1,
                tolerance=0.0,
            )
    return out.astype(np.float64)


def mirror_gaps(bands: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Fill a window's invalid pixels in place, as `mirror_sources` says; `bands` and `valid` are (C, H, W).

    Bands without any valid pixel stay as they are.
    """
    places: dict[bytes, tuple[Places, Places]] = {}
    for band, seen in zip(bands, valid, strict=True):
        if seen.all() or not seen.any():
            continue
        key = np.packbits(seen).tobytes()
        if key not in places:
            places[key] = mirror_sources(seen)
        gaps, sources = places[key]
        band[gaps] = band[sources]


def mirror_sources(there: NDArray[np.bool_]) -> tuple[Places, Places]:
    """For (H, W): the (rows, columns) where `there` is False, and those whose values stand in for them.

    The pixel p with the nearest pixel q that is there takes the value at 2q - p when that is there, else the one at q:
    the ground goes on in the way it ends, so that the network sees something plausible next to what is kept. Some pixel
    must be there.
    """
    from scipy.ndimage import distance_transform_edt  # a second of imports that most runs do without

    gaps = np.nonzero(~there)
    nearest: NDArray[Any] = distance_transform_edt(~there, return_distances=False, return_indices=True)
    near = nearest[:, gaps[0], gaps[1]]
    across = 2 * near - np.stack(gaps)
    height, width = there.shape
    usable = (across[0] >= 0) & (across[0] < height) & (across[1] >= 0) & (across[1] < width)
    usable &= there[across[0].clip(0, height - 1), across[1].clip(0, width - 1)]
    row, col = np.where(usable, across, near)
    return (gaps[0], gaps[1]), (row, col)
