"""Lays the lattice of a zone: cells, cores and windows, and the ground they cover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, floor
from typing import NamedTuple

import numpy as np

from eocube.errors import InputError
from eocube.ground.zones import BBox, ring, to_lonlat, zone_name

Bounds = tuple[float, float, float, float]
"""(left, bottom, right, top) in metres of the zone."""

# Samplings coarser than the store's resolution that a sensor may bring along; they decide how far a window reaches.
_COARSE_SAMPLINGS = (20, 60)
# Projected edges are chords between points this far apart: at most about 3 m off.
_METRE_STEP = 2000.0


class CoreRange(NamedTuple):
    """Half-open box of core indices: rows [row0, row1), columns [col0, col1)."""

    row0: int
    col0: int
    row1: int
    col1: int


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """One window, named by its core's row and column on the zone's lattice (rows grow southwards)."""

    row: int
    col: int


class StatusPlace(NamedTuple):
    """A window's row and column in the status arrays, and in all others of one value a core."""

    row: int
    col: int


class ShardPlace(NamedTuple):
    """A shard's row and column in the store's arrays."""

    row: int
    col: int


class LatticeShard(NamedTuple):
    """A shard's row and column on the zone's lattice: the same for every store that holds its ground."""

    row: int
    col: int


class CellPlace(NamedTuple):
    """A core's first cell, as row and column within its shard."""

    row: int
    col: int


@dataclass(frozen=True, slots=True)
class Lattice:
    """The cells of one zone. Columns count eastwards from easting 0, rows southwards from northing 0.

    Cell row r spans northings -(r + 1) * cell .. -r * cell, so rows are negative north of northing 0. `resolution` is
    in metres; the sides of cells, cores and shards and the width of the halo are in pixels of that. A core is whole
    cells, a shard whole cores; a halo need not be whole cells. Pixels may be parts of a metre (2.5 m), cells are whole
    metres: every edge of a cell is then exact, and so is a pixel's wherever a power of two of them makes a metre.
    """

    epsg: int
    resolution: float
    cell_px: int = 8
    core_px: int = 192
    halo_px: int = 32
    shard_px: int = 1920

    def __post_init__(self) -> None:
        zone_name(self.epsg)
        object.__setattr__(self, "resolution", whole_metres(self.resolution))
        if not self.resolution > 0 or self.cell_px < 1 or self.core_px < 1 or self.halo_px < 0:
            raise InputError(
                f"resolution {self.resolution}, cell {self.cell_px} px and core {self.core_px} px must be 1 or more "
                f"and halo {self.halo_px} px 0 or more"
            )
        if not float(self.resolution * self.cell_px).is_integer():
            raise InputError(f"cells of {self.cell_px} px at {self.resolution} m are not whole metres")
        if self.core_px % self.cell_px:
            raise InputError(f"core {self.core_px} px must be a multiple of the cell, {self.cell_px} px")
        if self.shard_px < self.core_px or self.shard_px % self.core_px:
            raise InputError(f"shard {self.shard_px} px must be a multiple of the core, {self.core_px} px")

    @property
    def cell(self) -> int:
        """Side of a cell, metres."""
        return round(self.resolution * self.cell_px)

    @property
    def metres(self) -> int:
        """`resolution` where scenes are read. InputError where pixels are parts of a metre, as none is read at."""
        if self.resolution != int(self.resolution):
            raise InputError(
                f"scenes are read at whole metres, not at {self.resolution} m: such cubes come from others"
            )
        return int(self.resolution)

    @property
    def stride(self) -> int:
        """Side of a cell in pixels of `resolution`."""
        return self.cell_px

    @property
    def core(self) -> int:
        """Side of a core in cells."""
        return self.core_px // self.cell_px

    @property
    def halo(self) -> int:
        """Width of the halo in cells. InputError where it is not whole cells: then nothing is made beyond the core."""
        if not self.halo_is_cells:
            raise InputError(f"a halo of {self.halo_px} px is not whole cells of {self.cell_px} px")
        return self.halo_px // self.cell_px

    @property
    def halo_is_cells(self) -> bool:
        """Whether the halo is whole cells."""
        return self.halo_px % self.cell_px == 0

    @property
    def shard(self) -> int:
        """Side of a shard in cells."""
        return self.shard_px // self.cell_px

    @property
    def window_px(self) -> int:
        """Side of a window in pixels of `resolution`."""
        return self.core_px + 2 * self.halo_px

    @property
    def cores_per_shard(self) -> int:
        """Cores along a shard's side."""
        return self.shard_px // self.core_px

    @property
    def name(self) -> str:
        """The zone's name: "utm32", or "utm32s" in the south."""
        return zone_name(self.epsg)

    def core_bounds(self, window: Window) -> Bounds:
        """The core's (left, bottom, right, top) in metres."""
        side = self.core_px * self.resolution
        return (
            float(window.col * side),
            float(-(window.row + 1) * side),
            float((window.col + 1) * side),
            float(-window.row * side),
        )

    def window_bounds(self, window: Window) -> Bounds:
        """The core with its halo: (left, bottom, right, top) in metres."""
        return grow(self.core_bounds(window), self.halo_px * self.resolution)

    def margin(self, sampling: int) -> int:
        """Metres that a group of this sampling reaches beyond the window on each side.

        The smallest that puts the group's edge on a multiple of `sampling` from the zone's origin and covers the
        (sampling - resolution) / 2 that bilinear upsampling looks beyond the outermost pixel centre.
        """
        halo, side = round(self.halo_px * self.resolution), round(self.core_px * self.resolution)
        if sampling < self.resolution or side % sampling:
            raise InputError(
                f"a group of {sampling} m does not fit cores of {side} m at {self.resolution} m; "
                "choose a resolution that divides it"
            )
        least = ceil((sampling - self.resolution) / 2)
        return least + (-(halo + least)) % sampling

    def group_size(self, sampling: int) -> int:
        """Side in pixels of a window's group of this sampling (256, 130 and 44 for 10, 20 and 60 m by default)."""
        return int((self.window_px * self.resolution + 2 * self.margin(sampling)) // sampling)

    def group_bounds(self, window: Window, sampling: int) -> Bounds:
        """The ground that a window's group of this sampling covers, metres."""
        return grow(self.window_bounds(window), self.margin(sampling))

    def source_bounds(self, window: Window) -> Bounds:
        """All ground of which pixels may enter the window, whatever the sensor's coarser samplings. Metres."""
        return grow(self.window_bounds(window), self.reach)

    @property
    def reach(self) -> int:
        """Metres beyond a window's own edge from which pixels may enter it."""
        side = self.core_px * self.resolution
        return max((self.margin(g) for g in _COARSE_SAMPLINGS if g > self.resolution and side % g == 0), default=0)

    def cores_over(self, bounds: Bounds) -> CoreRange:
        """The cores that share ground (not just an edge) with a box of metres."""
        left, bottom, right, top = bounds
        side = self.core_px * self.resolution
        return CoreRange(floor(-top / side), floor(left / side), ceil(-bottom / side), ceil(right / side))

    def lonlat_bounds(self, bounds: Bounds) -> BBox:
        """Geographic box around a box of metres; longitudes continuous around the zone's central meridian."""
        left, bottom, right, top = bounds
        edge = ring(left, bottom, right, top, _METRE_STEP)
        if left < 500_000.0 < right:  # a parallel's extreme lies on the central meridian
            edge = np.concatenate([edge, [(500_000.0, bottom), (500_000.0, top)]])
        lon, lat = to_lonlat(self.epsg, edge[:, 0], edge[:, 1])
        return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())

    def to_dict(self) -> dict[str, float]:
        """JSON-able form, read back by `from_dict`: in cells where all are whole, as every store of latents has it."""
        if not self.halo_is_cells:
            return asdict(self)
        return {
            "epsg": self.epsg, "resolution": self.resolution, "stride": self.cell_px, "core": self.core,
            "halo": self.halo, "shard": self.shard,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> Lattice:
        """The lattice that `to_dict` wrote."""
        if "stride" not in data:
            return cls(int(data["epsg"]), data["resolution"], *(int(data[name]) for name in _SIDES))
        cell = int(data["stride"])
        core, halo, shard = (int(data[name]) * cell for name in ("core", "halo", "shard"))
        return cls(int(data["epsg"]), float(data["resolution"]), cell, core, halo, shard)


_SIDES = ("cell_px", "core_px", "halo_px", "shard_px")


def whole_metres(resolution: float) -> float:
    """The same number, an int where it is whole: documents and their digests say 10, never 10.0."""
    return int(resolution) if float(resolution).is_integer() else float(resolution)


def grow(bounds: Bounds, by: float) -> Bounds:
    """A box of metres, `by` wider on each side."""
    return bounds[0] - by, bounds[1] - by, bounds[2] + by, bounds[3] + by
