"""Chooses which windows of a cube are decoded again as they are made, and which borders are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from eocube.ground.grid import CubeGrid, Window

SEAM_SHARE = 0.25
"""Share of the sampled windows whose border with a neighbour is measured too: it costs a second decoding."""


@dataclass(frozen=True, slots=True)
class Border:
    """The border of two neighbouring windows of a shard; `second` lies east (axis -1) or south (-2) of `first`."""

    first: Window
    second: Window
    axis: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Windows to decode again, and by window the borders it takes part in."""

    windows: frozenset[Window] = frozenset()
    borders: Mapping[Window, tuple[Border, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, grid: CubeGrid, fraction: float) -> Sample:
        """The sample of a grid: `fraction` (0..1) of its requested windows, at least one unless it is 0.

        A window is drawn by a hash of its place on the zone's lattice, so that neither the box asked for nor the order
        of the work changes what is drawn (but for the one that is always there). Where a border is measured, the
        neighbour is decoded and scored as well.
        """
        if fraction <= 0:
            return cls()
        rows, cols = np.nonzero(grid.requested_mask)
        per_shard = grid.lattice.cores_per_shard
        top, left = grid.shard_row0 * per_shard, grid.shard_col0 * per_shard
        drawn = _uniform(rows + top, cols + left, 1)
        taken = (drawn < fraction) | (drawn == drawn.min())
        seams = taken & ((_uniform(rows + top, cols + left, 2) < SEAM_SHARE) | (drawn == drawn.min()))
        windows = {Window(int(r) + top, int(c) + left) for r, c in zip(rows[taken], cols[taken], strict=True)}
        borders: dict[Window, list[Border]] = {}
        found: set[Border] = set()
        for r, c in zip(rows[seams], cols[seams], strict=True):
            border = _border(grid, Window(int(r) + top, int(c) + left))
            if border is None or border in found:
                continue
            found.add(border)
            for side in (border.first, border.second):
                windows.add(side)
                borders.setdefault(side, []).append(border)
        return cls(frozenset(windows), {w: tuple(b) for w, b in borders.items()})


def _border(grid: CubeGrid, window: Window) -> Border | None:
    """A border of the window with a requested neighbour of its own shard; None where it has none."""
    row, col = window.row, window.col
    for first, second, axis in (
        (window, Window(row, col + 1), -1),
        (window, Window(row + 1, col), -2),
        (Window(row, col - 1), window, -1),
        (Window(row - 1, col), window, -2),
    ):
        other = second if first == window else first
        if grid.requested(other) and grid.shard_of(other) == grid.shard_of(window):
            return Border(first, second, axis)
    return None


def _uniform(rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) by place: the finaliser of splitmix64 (Steele, Lea, Flood 2014) over both indices."""
    with np.errstate(over="ignore"):
        x = (rows.astype(np.uint64) << np.uint64(32)) ^ (cols.astype(np.uint64) & np.uint64(0xFFFFFFFF))
        x += np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        for _ in range(2):  # once more, since neighbours differ in few bits
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
    return np.asarray(x >> np.uint64(11), dtype=np.float64) / 2.0**53
