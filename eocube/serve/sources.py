"""Reads the scenes again that a cube was made of, window by window, for its pixels to be compared with theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from eocube.net.storage_options import scoped
from eocube.plan.plan import Plan
from eocube.report.fidelity import truth_pixels
from eocube.report.info import plan_of
from eocube.report.source_pixels import read_windows
from eocube.serve.cube import Bounds, ServedCube
from eocube.serve.keeping import Kept
from eocube.serve.pool import LatestFirst, Leave
from eocube.serve.raster import MARGIN, Raster

Floats = npt.NDArray[np.float32]
_EMPTY = np.empty((0, 0, 0), np.float32)
"""A window of which the sources have nothing, or cannot be read."""


class Sources:
    """A cube's sources on the decoded grid, in physical units; windows that were read are kept.

    Args:
        cube: whose.
        kept: where windows are kept.
        pool: threads that read.
        allow_local: let the plan of a cube from elsewhere lead to files of this machine.
    """

    def __init__(self, cube: ServedCube, kept: Kept, pool: LatestFirst, *, allow_local: bool) -> None:
        self.cube, self._kept, self._pool = cube, kept, pool
        self._plan: Plan = plan_of(cube.url, None, cube.options)
        self._truth = truth_pixels(self._plan)
        self._options: Mapping[str, Any] = scoped(cube.options, cube.url, trusted=allow_local)

    @property
    def there(self) -> bool:
        """Whether the cube was made of scenes, not of another cube."""
        return self._plan.derived is None

    def core(self, time: int, row: int, col: int) -> Floats | None:
        """(bands, core, core) pixels of a window's core, NaN where some band has none; None without any."""
        found = self._cores(time, [(row, col)], None)[row, col]
        return found if found.size else None

    def raster(self, time: int, bounds: Bounds, bands: Sequence[str], leave: Leave | None = None) -> Raster | None:
        """The sources' pixels of some bands around bounds in metres of the zone; None where the cube has no ground."""
        frame = self.cube.frame
        more = MARGIN * frame.pixel
        grown = (bounds[0] - more, bounds[1] - more, bounds[2] + more, bounds[3] + more)
        rows, cols = frame.blocks_in(grown, frame.core)
        if not rows or not cols:
            return None
        found = self._cores(time, [(i, j) for i in rows for j in cols], leave)
        side = frame.core * frame.stride
        chosen = [self.cube.info.sensor.band_names.index(band) for band in bands]
        out = np.full((len(chosen), len(rows) * side, len(cols) * side), np.nan, np.float32)
        for (i, j), core in found.items():
            if core.size:
                top, left = (i - rows.start) * side, (j - cols.start) * side
                out[:, top : top + side, left : left + side] = core[chosen]
        left_m, top_m = frame.left + cols.start * frame.core_m, frame.top - rows.start * frame.core_m
        return Raster(out, left_m, top_m, frame.pixel, frame.epsg)

    def _cores(
        self, time: int, places: Sequence[tuple[int, int]], leave: Leave | None
    ) -> dict[tuple[int, int], Floats]:
        found: dict[tuple[int, int], Floats] = {}
        left: dict[tuple[str, str, int, int, int], Callable[[], Floats]] = {}
        for row, col in places:
            key = ("source", self.cube.key, time, row, col)
            kept = self._kept.get(key)
            if kept is not None:
                found[row, col] = kept
            else:
                left[key] = partial(self._read, time, row, col)
        if left:
            for key, made in self._pool.all(left, leave).items():
                found[key[-2], key[-1]] = made
        return found

    def _read(self, time: int, row: int, col: int) -> Floats:
        window = self._plan.grid.window_at(row, col)
        for core in read_windows(self._plan, self._truth, time, [window], storage_options=self._options):
            made = np.asarray(core.values, np.float32)
            break
        else:
            made = _EMPTY
        self._kept.put(("source", self.cube.key, time, row, col), made, made.nbytes)
        return made
