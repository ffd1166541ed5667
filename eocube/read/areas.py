"""Covers windows by few rectangles of windows that are read as one, and says where each window lies in its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from eocube.ground.lattice import Lattice, Window
from eocube.raster.opening import Raster
from eocube.raster.warp import PixelGrid, Region, on_grid

FILLED = 0.5
"""Share of a rectangle's windows that must be wanted for it to be read whole; else it is cut where that saves most."""

Part = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True, slots=True)
class Area:
    """A half-open rectangle of windows: rows [row0, row1), columns [col0, col1)."""

    row0: int
    col0: int
    row1: int
    col1: int

    @classmethod
    def around(cls, windows: Iterable[Window]) -> Area:
        """The smallest that holds some windows."""
        rows, cols = zip(*((w.row, w.col) for w in windows), strict=True)
        return cls(min(rows), min(cols), max(rows) + 1, max(cols) + 1)

    @property
    def count(self) -> int:
        """Windows in it."""
        return (self.row1 - self.row0) * (self.col1 - self.col0)

    @property
    def corners(self) -> tuple[Window, Window]:
        """Its north-western and south-eastern windows."""
        return Window(self.row0, self.col0), Window(self.row1 - 1, self.col1 - 1)


def areas(windows: Sequence[Window]) -> list[tuple[Area, list[Window]]]:
    """Rectangles over all of some windows, each with its own, in the order of its first one."""
    if not windows:
        return []
    around = Area.around(windows)
    best = around.count
    parts: tuple[list[Window], list[Window]] | None = None
    if len(windows) < FILLED * around.count:
        sides: tuple[tuple[Literal["row", "col"], int, int], ...] = (
            ("row", around.row0, around.row1), ("col", around.col0, around.col1)
        )  # fmt: skip
        for axis, start, stop in sides:
            for cut in range(start + 1, stop):
                two = partition(windows, axis, cut)
                if all(two) and (size := sum(Area.around(half).count for half in two)) < best:
                    best, parts = size, two
    if parts is None:
        return [(around, list(windows))]
    return [found for part in parts for found in areas(part)]


def partition(windows: Sequence[Window], axis: Literal["row", "col"], cut: int) -> tuple[list[Window], list[Window]]:
    """Windows before a row or column, and the others."""
    before = [w for w in windows if getattr(w, axis) < cut]
    return before, [w for w in windows if getattr(w, axis) >= cut]


def halves(windows: Sequence[Window]) -> tuple[list[Window], list[Window]]:
    """Windows in two, across the longer side of what holds them; of more than one, neither is empty."""
    area = Area.around(windows)
    if area.row1 - area.row0 >= area.col1 - area.col0:
        return partition(windows, "row", (area.row0 + area.row1) // 2)
    return partition(windows, "col", (area.col0 + area.col1) // 2)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an area's windows lie in one array of a sampling: `size` pixels a window, `step` from one to the next."""

    area: Area
    sampling: int
    size: int
    step: int
    grid: PixelGrid
    """Of the north-western window."""

    @classmethod
    def of_group(cls, lattice: Lattice, area: Area, sampling: int) -> Layout:
        """Windows with halo and margin, as `Lattice.group_bounds` has them: they overlap."""
        left, _, _, top = lattice.group_bounds(area.corners[0], sampling)
        size, step = lattice.group_size(sampling), lattice.core_px * lattice.metres // sampling
        return cls(area, sampling, size, step, PixelGrid(lattice.epsg, left, top, float(sampling), size))

    @classmethod
    def of_cores(cls, lattice: Lattice, area: Area, sampling: int) -> Layout:
        """Cores alone, side by side."""
        left, _, _, top = lattice.core_bounds(area.corners[0])
        size = lattice.core * lattice.cell // sampling
        return cls(area, sampling, size, size, PixelGrid(lattice.epsg, left, top, float(sampling), size))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the array."""
        high, wide = self.area.row1 - self.area.row0, self.area.col1 - self.area.col0
        return (high - 1) * self.step + self.size, (wide - 1) * self.step + self.size

    def of(self, window: Window) -> Part:
        """A window's part of the array."""
        row, col = (window.row - self.area.row0) * self.step, (window.col - self.area.col0) * self.step
        return slice(row, row + self.size), slice(col, col + self.size)

    def around(self, windows: Iterable[Window]) -> Part:
        """The part that holds some windows."""
        first, last = Area.around(windows).corners
        (rows, cols), (rows1, cols1) = self.of(first), self.of(last)
        return slice(rows.start, rows1.stop), slice(cols.start, cols1.stop)

    def grid_of(self, window: Window) -> PixelGrid:
        """A window's own grid, to the bit as it would be laid out alone where metres are whole numbers."""
        rows, cols = self.of(window)
        left, top = self.grid.left + cols.start * self.grid.side, self.grid.top - rows.start * self.grid.side
        return PixelGrid(self.grid.epsg, left, top, self.grid.side, self.size)


def origin_in(raster: Raster, crs: str, layout: Layout, windows: Sequence[Window]) -> tuple[int, int] | None:
    """(row, column) of the raster's pixel that is the layout's first; None unless the windows' grids are the file's."""
    first, last = Area.around(windows).corners
    start, end = (on_grid(layout.grid_of(window), raster.transform, crs) for window in (first, last))
    if start is None or end is None:
        return None
    (rows, cols), (rows1, cols1) = layout.of(first), layout.of(last)
    if (end[0] - start[0], end[1] - start[1]) != (rows1.start - rows.start, cols1.start - cols.start):
        return None
    return start[0] - rows.start, start[1] - cols.start


def region_around(origin: tuple[int, int], layout: Layout, windows: Sequence[Window]) -> Region:
    """The raster's pixels under windows; perhaps beyond its edges."""
    rows, cols = layout.around(windows)
    return Region(rows.start + origin[0], cols.start + origin[1], rows.stop + origin[0], cols.stop + origin[1])


def shifted(region: Region, origin: tuple[int, int]) -> tuple[slice, slice]:
    """Where a region of the raster lies in the layout's array."""
    return slice(region.row0 - origin[0], region.row1 - origin[0]), slice(
        region.col0 - origin[1], region.col1 - origin[1]
    )


def within(region: Region, outer: Region) -> tuple[slice, slice]:
    """Where a region lies in what was read of another that holds it."""
    return shifted(region, (outer.row0, outer.col0))
