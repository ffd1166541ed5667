"""Puts a raster of a cube's zone under a web mercator tile: bilinear, or whole squares where they are looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject

from eocube.errors import InputError
from eocube.serve.cube import EQUATOR, TILE, Bounds

Floats = npt.NDArray[np.float32]

FINEST = 24
"""The last zoom whose tiles are drawn."""
SQUARES = 4.0
"""Pixels of a tile along one of the cube, from which on the cube's pixels are drawn as squares."""
MARGIN = 3
"""Pixels of a raster around a tile's ground that resampling looks at."""
MERCATOR = CRS.from_epsg(3857)


@dataclass(frozen=True, slots=True)
class Raster:
    """(layers, H, W) float32 on a square grid of a zone, NaN where nothing is."""

    data: Floats
    left: float
    top: float
    pixel: float
    epsg: int

    @property
    def transform(self) -> Affine:
        """From columns and rows to metres."""
        return Affine(self.pixel, 0, self.left, 0, -self.pixel, self.top)


@dataclass(frozen=True, slots=True)
class TilePlace:
    """A tile of web mercator, `size` pixels a side."""

    z: int
    x: int
    y: int
    size: int = TILE

    def __post_init__(self) -> None:
        if not 0 <= self.z <= FINEST:
            raise InputError(f"zoom {self.z}: tiles are drawn from 0 to {FINEST}")
        if not (0 <= self.x < 2**self.z and 0 <= self.y < 2**self.z):
            raise InputError(f"tile {self.z}/{self.x}/{self.y}: columns and rows go from 0 to {2**self.z - 1}")

    @property
    def bounds(self) -> Bounds:
        """Metres of web mercator."""
        side = EQUATOR / 2**self.z
        left, top = self.x * side - EQUATOR / 2, EQUATOR / 2 - self.y * side
        return left, top - side, left + side, top

    @property
    def transform(self) -> Affine:
        """From columns and rows to metres of web mercator."""
        left, _, _, top = self.bounds
        step = EQUATOR / 2**self.z / self.size
        return Affine(step, 0, left, 0, -step, top)

    @property
    def latitude(self) -> float:
        """Degrees, of its centre."""
        _, bottom, _, top = self.bounds
        return math.degrees(2 * math.atan(math.exp((bottom + top) / EQUATOR * math.pi)) - math.pi / 2)

    @property
    def ground_pixel(self) -> float:
        """Metres on the ground along one of its pixels, at its centre."""
        return float(EQUATOR / 2**self.z / self.size * math.cos(math.radians(self.latitude)))

    def bounds_in(self, epsg: int) -> Bounds:
        """Metres of a zone around the tile; all of the plane where the tile reaches beyond what the zone has."""
        found = _from_mercator(epsg).transform_bounds(*self.bounds, densify_pts=9)
        if all(math.isfinite(v) for v in found) and found[0] <= found[2] and found[1] <= found[3]:
            return float(found[0]), float(found[1]), float(found[2]), float(found[3])
        return -math.inf, -math.inf, math.inf, math.inf


def drawn(raster: Raster, tile: TilePlace, *, squares: bool = False) -> Floats:
    """(layers, size, size) of a raster under a tile, NaN where nothing is.

    Bilinear over what is there, with a kernel as wide as a tile's pixel where the raster is finer; the nearest value
    with `squares`, and where the raster's pixels are `SQUARES` and more of the tile's.
    """
    out = np.full((raster.data.shape[0], tile.size, tile.size), np.nan, np.float32)
    squares = squares or raster.pixel >= SQUARES * tile.ground_pixel
    # What is whole needs no mask, which takes GDAL as long again; beyond it `out` stays as it is.
    holes = not np.isfinite(raster.data).all()
    masked = {"src_nodata": np.nan, "dst_nodata": np.nan} if holes else {}
    reproject(
        np.ascontiguousarray(raster.data, np.float32), out, src_transform=raster.transform, src_crs=_crs(raster.epsg),
        dst_transform=tile.transform, dst_crs=MERCATOR, init_dest_nodata=False, tolerance=0.05,
        resampling=Resampling.nearest if squares else Resampling.bilinear, **masked,
    )  # fmt: skip
    return out


@lru_cache(64)
def _crs(epsg: int) -> CRS:
    return CRS.from_epsg(epsg)


@lru_cache(64)
def _from_mercator(epsg: int) -> Transformer:
    return Transformer.from_crs(3857, epsg, always_xy=True)
