"""Says which part of a zone's lattice one cube covers: a bbox, and ground reserved around it, as shards and windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from eocube.errors import InputError
from eocube.ground.lattice import (
    Bounds,
    CellPlace,
    CoreRange,
    Lattice,
    LatticeShard,
    ShardPlace,
    StatusPlace,
    Window,
    grow,
)
from eocube.ground.regions import Region
from eocube.ground.zones import BBox, ring, split_antimeridian, to_zone, zones_of

__all__ = ["BBox", "Bounds", "CoreRange", "CubeGrid", "Lattice", "Window", "grids_for", "zones_of"]

# Projected edges are chords between points this far apart (degrees): at most about 0.1 m off.
_DEGREE_STEP = 0.02
# GEOS builds a prepared geometry's index at its first use, and shapely lets other threads run meanwhile: two that ask
# an area first at once damage the heap (seen: 2 of 20 runs of two units on threads aborted).
_PREPARED = Lock()
# Search boxes are widened by this many degrees (about 10 m) to cover what the chords of their own edges leave.
_SEARCH_PAD = 1e-4


@dataclass(frozen=True, slots=True)
class CubeGrid:
    """What one store covers: whole shards of the lattice, and which of their cores are asked for.

    `shard_row0` and `shard_col0` are lattice shard indices of the array's first shard, the north-western corner of the
    store, which never changes; `cores` is the box of requested core indices; `parts` are the bbox's longitude/latitude
    rectangles inside the zone's own ground: a core is requested when it shares ground with one of them, the others end
    `outside`. The arrays may reach further than `cores`: over ground reserved for growth.

    `region` cuts the parts: ground is what they share with its outline, as `Region.wkb` has it; empty where the
    rectangles are all that was asked for.

    `together` cores a side are asked for as one, from multiples of it on: 4 in a cube made from another with cores four
    times as wide, so that both hold the same ground.
    """

    lattice: Lattice
    shard_row0: int
    shard_col0: int
    shard_rows: int
    shard_cols: int
    cores: CoreRange
    parts: tuple[BBox, ...]
    together: int = 1
    region: str = ""

    @classmethod
    def over(cls, lattice: Lattice, parts: Iterable[BBox], extent: Iterable[BBox] = (), region: str = "") -> CubeGrid:
        """The cube over longitude/latitude rectangles of the lattice's own zone, or what a region has of them.

        Its arrays hold the rectangles of `extent` as well, none of whose cores is requested for that.
        """
        boxes = tuple(sorted((float(w), float(s), float(e), float(n)) for w, s, e, n in parts))
        left, bottom, right, top = (float(v) for v in shapely.bounds(_area(lattice.epsg, boxes, region)))
        outer = lattice.cores_over((left, bottom, right, top))
        rows, cols = np.nonzero(_mask(lattice, outer, boxes, region=region))
        if not len(rows):
            raise InputError(f"bbox covers no ground in {lattice.name}; give it some width and height")
        cores = CoreRange(
            outer.row0 + int(rows.min()),
            outer.col0 + int(cols.min()),
            outer.row0 + int(rows.max()) + 1,
            outer.col0 + int(cols.max()) + 1,
        )
        held = _with(lattice, cores, extent)
        n = lattice.cores_per_shard
        row0, col0 = held.row0 // n, held.col0 // n
        return cls(
            lattice, row0, col0, -(-held.row1 // n) - row0, -(-held.col1 // n) - col0, cores, boxes, region=region
        )

    def anchored_at(self, stored: CubeGrid) -> CubeGrid:
        """The same cores asked for, in the arrays of a store, which grow south and east as far as these reach.

        Its first shard stays the first, so that every shard keeps its key and every window its place.

        Raises:
            InputError: cores north or west of the store's corner, or another lattice.
        """
        n = self.lattice.cores_per_shard
        row0, col0 = stored.shard_row0, stored.shard_col0
        if self.lattice != stored.lattice:
            raise InputError(f"{self.lattice} is not the store's {stored.lattice}")
        if self.cores.row0 < row0 * n or self.cores.col0 < col0 * n:
            raise InputError("cores asked for lie north or west of the store's corner, which never moves")
        row1 = max(self.shard_row0 + self.shard_rows, row0 + stored.shard_rows)
        col1 = max(self.shard_col0 + self.shard_cols, col0 + stored.shard_cols)
        return replace(self, shard_row0=row0, shard_col0=col0, shard_rows=row1 - row0, shard_cols=col1 - col0)

    @property
    def name(self) -> str:
        """The zone's name: "utm32", or "utm32s" in the south."""
        return self.lattice.name

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) in latent pixels."""
        return self.shard_rows * self.lattice.shard, self.shard_cols * self.lattice.shard

    @property
    def windows_shape(self) -> tuple[int, int]:
        """(nwy, nwx): cores in the arrays."""
        n = self.lattice.cores_per_shard
        return self.shard_rows * n, self.shard_cols * n

    @property
    def transform(self) -> Affine:
        """Affine transform of the latent pixels: array (column, row) corner to metres."""
        cell, shard = self.lattice.cell, self.lattice.shard
        return Affine(cell, 0.0, self.shard_col0 * shard * cell, 0.0, -cell, -self.shard_row0 * shard * cell)

    @property
    def x(self) -> NDArray[np.float64]:
        """Eastings of the latent pixels' centres, metres."""
        return self._centres(self.transform.c, self.shape[1], self.lattice.cell)

    @property
    def y(self) -> NDArray[np.float64]:
        """Northings of the latent pixels' centres, metres, falling."""
        return self._centres(self.transform.f, self.shape[0], -self.lattice.cell)

    @property
    def wx(self) -> NDArray[np.float64]:
        """Eastings of the cores' centres, metres."""
        return self._centres(self.transform.c, self.windows_shape[1], self.lattice.core_px * self.lattice.resolution)

    @property
    def wy(self) -> NDArray[np.float64]:
        """Northings of the cores' centres, metres, falling."""
        return self._centres(self.transform.f, self.windows_shape[0], -self.lattice.core_px * self.lattice.resolution)

    @staticmethod
    def _centres(start: float, count: int, step: float) -> NDArray[np.float64]:
        return start + (np.arange(count, dtype=np.float64) + 0.5) * step

    @property
    def extent(self) -> CoreRange:
        """The box of requested cores in latent pixels of the array, half-open."""
        n, core = self.lattice.cores_per_shard, self.lattice.core
        row0, col0 = self.shard_row0 * n, self.shard_col0 * n
        box = self.cores
        return CoreRange(
            (box.row0 - row0) * core, (box.col0 - col0) * core, (box.row1 - row0) * core, (box.col1 - col0) * core
        )

    @property
    def requested_mask(self) -> NDArray[np.bool_]:
        """(nwy, nwx) read-only: which cores of the arrays are asked for."""
        n = self.lattice.cores_per_shard
        row0, col0 = self.shard_row0 * n, self.shard_col0 * n
        rows, cols = self.windows_shape
        held = CoreRange(row0, col0, row0 + rows, col0 + cols)
        return _mask_within(self.lattice, held, self.cores, self.parts, self.together, self.region)

    def requested(self, window: Window) -> bool:
        """Whether the window's core shares ground with the bbox inside the zone's own ground."""
        box = self.cores
        row, col = window.row - box.row0, window.col - box.col0
        inside = 0 <= row < box.row1 - box.row0 and 0 <= col < box.col1 - box.col0
        return inside and bool(_mask(self.lattice, box, self.parts, self.together, self.region)[row, col])

    def place_in_status(self, window: Window) -> StatusPlace:
        """Row and column of the window in the status arrays (and all others of one value a core)."""
        n = self.lattice.cores_per_shard
        return StatusPlace(window.row - self.shard_row0 * n, window.col - self.shard_col0 * n)

    def window_at(self, row: int, col: int) -> Window:
        """The window at a place of the status arrays; the inverse of `place_in_status`."""
        n = self.lattice.cores_per_shard
        return Window(row + self.shard_row0 * n, col + self.shard_col0 * n)

    def place_in_shard(self, window: Window) -> CellPlace:
        """Where the core's cells begin within its shard."""
        n, core = self.lattice.cores_per_shard, self.lattice.core
        return CellPlace(window.row % n * core, window.col % n * core)

    def shard_of(self, window: Window) -> ShardPlace:
        """The shard of the arrays that holds the window's core."""
        n = self.lattice.cores_per_shard
        return ShardPlace(window.row // n - self.shard_row0, window.col // n - self.shard_col0)

    def lattice_shard(self, srow: int, scol: int) -> LatticeShard:
        """Where a shard of the arrays lies on the zone's lattice."""
        return LatticeShard(srow + self.shard_row0, scol + self.shard_col0)

    def shard_bounds(self, srow: int, scol: int) -> Bounds:
        """The ground of an array shard: (left, bottom, right, top) in metres."""
        side = self.lattice.shard * self.lattice.cell
        row, col = self.lattice_shard(srow, scol)
        return float(col * side), float(-(row + 1) * side), float((col + 1) * side), float(-row * side)

    def windows_of_shard(self, srow: int, scol: int) -> tuple[Window, ...]:
        """All windows of an array shard, row-major, whether requested or not."""
        if not (0 <= srow < self.shard_rows and 0 <= scol < self.shard_cols):
            raise InputError(f"shard ({srow}, {scol}) is not in {self.shard_rows} x {self.shard_cols} shards")
        n = self.lattice.cores_per_shard
        return tuple(self.window_at(srow * n + i, scol * n + j) for i in range(n) for j in range(n))

    def shards(self) -> Iterator[ShardPlace]:
        """Shards of the arrays with at least one requested core, row-major."""
        n = self.lattice.cores_per_shard
        rows, cols = self.shard_rows, self.shard_cols
        wanted = self.requested_mask.reshape(rows, n, cols, n).any(axis=(1, 3))
        return (ShardPlace(int(i), int(j)) for i, j in zip(*np.nonzero(wanted), strict=True))

    def requested_windows(self) -> Iterator[Window]:
        """All requested windows, row-major over the whole cube."""
        return (self.window_at(int(i), int(j)) for i, j in zip(*np.nonzero(self.requested_mask), strict=True))

    def lonlat_bounds_with_halo(self) -> BBox:
        """The box to search scenes in: it holds every pixel that may enter any requested window.

        So the scenes found for a window do not depend on the bbox it was asked for by. In degrees, within -180..180;
        west > east when the halo crosses the antimeridian (`search_boxes` splits it there).
        """
        side = self.lattice.core_px * self.lattice.resolution
        box = self.cores
        outer = (float(box.col0 * side), float(-box.row1 * side), float(box.col1 * side), float(-box.row0 * side))
        grown = grow(outer, self.lattice.halo_px * self.lattice.resolution + self.lattice.reach)
        west, south, east, north = self.lattice.lonlat_bounds(grown)
        west, east = west - _SEARCH_PAD, east + _SEARCH_PAD
        south, north = max(south - _SEARCH_PAD, -90.0), min(north + _SEARCH_PAD, 90.0)
        return (west + 360.0 if west < -180.0 else west, south, east - 360.0 if east > 180.0 else east, north)

    def search_boxes(self) -> tuple[BBox, ...]:
        """`lonlat_bounds_with_halo` as one box, or two at the antimeridian."""
        return split_antimeridian(self.lonlat_bounds_with_halo())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_dict`."""
        return {
            "lattice": self.lattice.to_dict(),
            "shard_row0": self.shard_row0,
            "shard_col0": self.shard_col0,
            "shard_rows": self.shard_rows,
            "shard_cols": self.shard_cols,
            "cores": list(self.cores),
            "parts": [list(part) for part in self.parts],
            **({} if self.together == 1 else {"together": self.together}),
            **({"region": self.region} if self.region else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CubeGrid:
        """The grid that `to_dict` wrote."""
        return cls(
            Lattice.from_dict(data["lattice"]),
            int(data["shard_row0"]),
            int(data["shard_col0"]),
            int(data["shard_rows"]),
            int(data["shard_cols"]),
            CoreRange(*(int(v) for v in data["cores"])),
            tuple((float(w), float(s), float(e), float(n)) for w, s, e, n in data["parts"]),
            int(data.get("together", 1)),
            str(data.get("region", "")),
        )


def grids_for(
    bbox: BBox | Iterable[BBox],
    resolution: float,
    extent: Iterable[BBox] = (),
    region: Region | None = None,
    **lattice: int,
) -> list[CubeGrid]:
    """One cube grid for each UTM zone and hemisphere that a bbox (or several) has ground in, sorted by zone.

    With a region its boxes are the bbox, and zones in which it has no ground are left out. The arrays hold the
    zone's part of `extent` too. `lattice` goes on to `Lattice`: cell_px, core_px, ...
    InputError when the box leaves UTM or is empty.
    """
    boxes: list[BBox] = []
    for item in [bbox] if isinstance(bbox, tuple) and not isinstance(bbox[0], tuple) else bbox:
        west, south, east, north = item  # type: ignore[misc]
        boxes.append((float(west), float(south), float(east), float(north)))
    parts, reserved = by_zone(boxes), by_zone(extent)
    outline = ""
    if region is not None:
        parts, outline = {epsg: own for epsg, own in parts.items() if region.meets(tuple(own))}, region.wkb
    if not parts:
        raise InputError(f"bbox {boxes} covers no ground; give it some width and height")
    return [
        CubeGrid.over(Lattice(epsg, resolution, **lattice), own, reserved.get(epsg, ()), outline)
        for epsg, own in parts.items()
    ]


def by_zone(boxes: Iterable[BBox]) -> dict[int, list[BBox]]:
    """The parts of boxes that lie in each zone's own ground, by EPSG code; of one box in order of zone."""
    parts: dict[int, list[BBox]] = {}
    for box in boxes:
        for epsg, part in zones_of(box):
            parts.setdefault(epsg, []).append(part)
    return parts


def _with(lattice: Lattice, cores: CoreRange, parts: Iterable[BBox]) -> CoreRange:
    """The box of cores that holds these and the ground of parts."""
    boxes = tuple(sorted(parts))
    if not boxes:
        return cores
    left, bottom, right, top = (float(v) for v in shapely.bounds(_area(lattice.epsg, boxes)))
    more = lattice.cores_over((left, bottom, right, top))
    return CoreRange(*map(min, cores[:2], more[:2]), *map(max, cores[2:], more[2:]))


@lru_cache(maxsize=16)
def _area(epsg: int, parts: tuple[BBox, ...], region: str = "") -> shapely.Geometry:
    """The parts, or what a region has of them, as one geometry in metres of the zone."""
    if region:
        within = shapely.union_all([shapely.box(*part) for part in parts])
        edges = shapely.segmentize(shapely.intersection(shapely.from_wkb(region), within), _DEGREE_STEP)
        area = shapely.make_valid(shapely.transform(edges, lambda c: np.column_stack(to_zone(epsg, c[:, 0], c[:, 1]))))
        shapely.prepare(area)
        return area
    polygons = []
    for part in parts:
        edge = ring(*part, _DEGREE_STEP)
        x, y = to_zone(epsg, edge[:, 0], edge[:, 1])
        polygons.append(shapely.Polygon(np.column_stack([x, y])))
    area = shapely.union_all(polygons)
    shapely.prepare(area)
    return area


@lru_cache(maxsize=16)
def _mask(
    lattice: Lattice, box: CoreRange, parts: tuple[BBox, ...], together: int = 1, region: str = ""
) -> NDArray[np.bool_]:
    """Which cores of a box share ground with the parts: boolean (rows, columns), read-only.

    With `together`, of which the box's edges are multiples, those of a square in which any core would.
    """
    if together > 1:
        wide = replace(lattice, core_px=lattice.core_px * together, shard_px=lattice.core_px * together)
        mask = _mask(wide, CoreRange(*(edge // together for edge in box)), parts, region=region)
        mask = np.repeat(np.repeat(mask, together, 0), together, 1)
        mask.flags.writeable = False
        return mask
    area = _area(lattice.epsg, parts, region)
    side = float(lattice.core * lattice.cell)
    left = np.arange(box.col0, box.col1, dtype=np.float64)[None, :] * side
    top = -np.arange(box.row0, box.row1, dtype=np.float64)[:, None] * side
    squares = shapely.box(left, top - side, left + side, top)
    with _PREPARED:
        mask = shapely.intersects(area, squares)
        # An edge or a corner in common is no ground in common.
        mask[mask] = ~shapely.touches(area, squares[mask])
    mask.flags.writeable = False
    return np.asarray(mask, dtype=np.bool_)


@lru_cache(maxsize=16)
def _mask_within(
    lattice: Lattice,
    box: CoreRange,
    cores: CoreRange,
    parts: tuple[BBox, ...],
    together: int = 1,
    region: str = "",
) -> NDArray[np.bool_]:
    """The mask of a box's cores when those of the parts lie all within `cores`: reserved ground costs no geometry."""
    mask = np.zeros((box.row1 - box.row0, box.col1 - box.col0), np.bool_)
    rows = slice(cores.row0 - box.row0, cores.row1 - box.row0)
    mask[rows, cores.col0 - box.col0 : cores.col1 - box.col0] = _mask(lattice, cores, parts, together, region)
    mask.flags.writeable = False
    return mask
