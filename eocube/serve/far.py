"""Shows a cube from afar by the overview that its store keeps, where it has one of the date and the bands asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from eocube.cube.overview import has_overview, overview_of
from eocube.serve.cube import Bounds
from eocube.serve.decoding import Stored
from eocube.serve.keeping import Kept
from eocube.serve.raster import Raster
from eocube.store.overview import Floats, Overview, made_of

NEAREST = 0.5
"""Of a pixel of level 0: what a tile's pixel must have on the ground at least for an overview to be better than a
preview of every cell."""
READERS = 8
"""Objects that are read at once."""
MOST_BLOCKS = 200
"""Objects under one tile at most: there are more only where the coarsest level is too fine, which it never is."""


class FarView:
    """A cube's overview; of a store without one, nothing."""

    def __init__(self, stored: Stored, kept: Kept) -> None:
        self._stored, self._kept, self.cube = stored, kept, stored.cube
        self._lock = threading.Lock()
        self._made: dict[int, frozenset[tuple[int, int]]] = {}

    @cached_property
    def there(self) -> bool:
        """Whether the store has an overview. Looked for once."""
        return self.cube.info.product.decodes and has_overview(self._stored.store)

    @cached_property
    def plan(self) -> Overview:
        """Where its pixels are."""
        return overview_of(self.cube.ds, self._stored.store)

    def serves(self, time: int, bands: Sequence[str], ground_pixel: float) -> bool:
        """Whether a tile of some bands whose pixels are so large on the ground is drawn from the overview."""
        if not self.there or not set(bands) <= set(self.plan.bands):
            return False
        return ground_pixel >= NEAREST * self.plan.pixel(0) and bool(self._shards(time))

    def raster(self, time: int, bands: Sequence[str], bounds: Bounds, ground_pixel: float) -> Raster | None:
        """The overview around bounds in metres of the zone, on the coarsest level that is as fine as a tile's pixel."""
        plan, frame = self.plan, self.cube.frame
        level = 0
        while level + 1 < plan.levels and plan.pixel(level + 1) <= ground_pixel:
            level += 1
        cells = plan.block * plan.cells * 2**level
        rows, cols = frame.blocks_in(bounds, cells)
        if not rows or not cols or len(rows) * len(cols) > MOST_BLOCKS:
            return None
        chosen = [plan.bands.index(band) for band in bands]
        block = plan.block
        out = np.full((len(chosen), len(rows) * block, len(cols) * block), np.nan, np.float32)
        places = [(i, j) for i in rows for j in cols]
        with ThreadPoolExecutor(READERS) as pool:
            parts = pool.map(lambda place: self._block(level, time, *place), places)
            for (i, j), part in zip(places, parts, strict=True):
                if part.size:
                    top, left = (i - rows.start) * block, (j - cols.start) * block
                    out[:, top : top + block, left : left + block] = part[chosen]
        left_m, top_m = frame.left + cols.start * cells * frame.cell, frame.top - rows.start * cells * frame.cell
        return Raster(out, left_m, top_m, plan.pixel(level), frame.epsg)

    def _block(self, level: int, time: int, row: int, col: int) -> Floats:
        def read() -> tuple[Floats, int]:
            found = self.plan.read(self._stored.store.target, level, time, row, col)
            made = np.empty((0, 0, 0), np.float32) if found is None else found
            return made, made.nbytes

        return self._kept.once(("far", self.cube.key, level, time, row, col), read)

    def _shards(self, time: int) -> frozenset[tuple[int, int]]:
        with self._lock:
            if time not in self._made:
                self._made[time] = frozenset(made_of(self._stored.store.target, time))
            return self._made[time]
