"""Cuts what was read of a shard into batches where these are encoded: views on a CPU, gathered on a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eocube.products.base import Pixels
from eocube.read.window_pixels import Cut, WindowPixels
from model.crossing import Array, Arrived, Crossing, in_place
from model.pixels import as_bits


@dataclass(frozen=True, slots=True, eq=False)
class _Arrays:
    """Arrays that some windows are parts of, and where these are: of every slot, row and column, and if at all."""

    arrays: tuple[Mapping[int, Array], ...]
    """What travels: one of (C_g, H, W) a sampling, or one a window."""
    steps: Mapping[int, int] | None
    """Pixels from one window to the next; None where each window has its own array."""
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    here: NDArray[np.bool_]


class ShardBatches:
    """Windows of a shard, or of a part of it, in batches of `size`.

    A window's batch and its place in it follow from its place in the shard, and every batch has the same form: places
    of windows that are not there are blank. So a window's pixels come at the same place of the same form whoever else
    is there, and by either way.

    On a CPU one window a batch is a view of what was read, more are stacked. To a device what was read crosses at once,
    each pixel of overlapping windows once, and batches are gathered there.

    Args:
        windows: pixels by their place in the shard.
        size: windows a batch.
        crossing: the way to the device.
    """

    def __init__(self, windows: Mapping[int, WindowPixels], size: int, crossing: Crossing) -> None:
        self._windows, self._size = windows, size
        self.first = min(windows, default=0) // size * size
        """The place of the first batch's first window."""
        self.places = (max(windows, default=self.first) // size + 1) * size - self.first
        """Places in all batches together."""
        self._sources: list[_Arrays] = []
        self._views: list[dict[int, Tensor]] = []
        self._index: list[tuple[Tensor, Tensor, Tensor]] = []
        self._arrived = Arrived(())
        if windows and crossing.copies:
            self._cross(crossing)

    def _cross(self, crossing: Crossing) -> None:
        self._sources = list(self._laid_out())
        samplings = list(next(iter(self._windows.values())).groups)
        sizes = {s: g.shape[1:] for s, g in next(iter(self._windows.values())).groups.items()}
        travel = [[arrays[s] for arrays in source.arrays] for source in self._sources for s in samplings]
        travel += [[index] for source in self._sources for index in (source.rows, source.cols, source.here)]
        self._arrived = crossing.take(travel)
        there = iter(self._arrived.tensors)
        for source in self._sources:
            self._views.append({s: _windows_of(next(there), source.steps, s, sizes[s]) for s in samplings})
        for _ in self._sources:
            rows, cols, here = (next(there)[0] for _ in range(3))
            self._index.append((rows, cols, here))

    def _laid_out(self) -> list[_Arrays]:
        """The arrays that windows are cut of, each once, and those of windows that have their own."""
        cut: dict[int, list[tuple[int, Cut]]] = {}
        own: list[int] = []
        for place, pixels in sorted(self._windows.items()):
            if pixels.cut is None:
                own.append(place)
            else:
                cut.setdefault(id(pixels.cut.arrays), []).append((place, pixels.cut))
        found = []
        for some in cut.values():
            of = some[0][1]
            at = {place: (c.row, c.col) for place, c in some}
            found.append(_Arrays((of.arrays,), of.steps, *self._index_of(at)))
        if own:
            at = {place: (k, 0) for k, place in enumerate(own)}
            found.append(_Arrays(tuple(self._windows[place].groups for place in own), None, *self._index_of(at)))
        return found

    def _index_of(
        self, at: Mapping[int, tuple[int, int]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        where, here = np.zeros((2, self.places), np.int64), np.zeros(self.places, np.bool_)
        slots = [place - self.first for place in at]
        where[:, slots] = np.array(list(at.values())).T
        here[slots] = True
        return where[0], where[1], here

    def window(self, place: int) -> Pixels:
        """One window alone: {sampling: (1, C_g, H_g, W_g)}, where batches are. To be left as it is."""
        if not self._views:
            return {s: in_place(group)[None] for s, group in self._windows[place].groups.items()}
        self._arrived.await_here()
        slot = place - self.first
        (source,) = (k for k, source in enumerate(self._sources) if source.here[slot])
        row, col = int(self._sources[source].rows[slot]), int(self._sources[source].cols[slot])
        return {s: view[row, col][None] for s, view in self._views[source].items()}

    def batch(self, number: int, only: Collection[int] | None = None) -> Pixels:
        """A batch of the shard, counted from the shard's first: {sampling: (size, C_g, H_g, W_g)}, on the device.

        Args:
            number: which one.
            only: places in the shard; those of all other windows are blank too.
        """
        if not self._views:
            return self.window(number) if self._size == 1 else self._stacked(number, only)
        start = number * self._size - self.first
        at = slice(start, start + self._size)
        self._arrived.await_here()
        wanted = np.ones(self._size, np.bool_)
        if only is not None:
            wanted[:] = False
            wanted[[place % self._size for place in only]] = True
        given = [k for k, source in enumerate(self._sources) if (source.here[at] & wanted).any()]
        whole = len(given) == 1 and bool((self._sources[given[0]].here[at] & wanted).all())
        found: dict[int, Tensor] = {}
        for sampling in self._views[0]:
            taken: Tensor | None = None
            for k in given:
                rows, cols, here = (index[at] for index in self._index[k])
                view = self._views[k][sampling]
                some = as_bits(view)[rows, cols]
                if not whole:
                    if only is not None:
                        here = here & torch.from_numpy(wanted).to(here.device)
                    some = torch.where(here[:, None, None, None], some, 0 if taken is None else taken)
                taken = some
            assert taken is not None
            found[sampling] = taken.view(self._views[0][sampling].dtype)
        return found

    def _stacked(self, number: int, only: Collection[int] | None) -> Pixels:
        places = range(number * self._size, (number + 1) * self._size)
        there = {p: self._windows[p] for p in places if p in self._windows and (only is None or p in only)}
        forms = next(iter(self._windows.values())).groups
        found = {s: np.zeros((self._size, *group.shape), group.dtype) for s, group in forms.items()}
        for place, pixels in there.items():
            for sampling, group in pixels.groups.items():
                found[sampling][place % self._size] = group
        return {sampling: torch.from_numpy(batch) for sampling, batch in found.items()}


def _windows_of(there: Tensor, steps: Mapping[int, int] | None, sampling: int, size: tuple[int, ...]) -> Tensor:
    """(1, C, H, W) of overlapping windows, or (N, C, h, w) of single ones, as (rows, columns, C, h, w): a view."""
    if steps is None:
        return there[:, None]
    high, wide = size
    return there[0].unfold(1, high, steps[sampling]).unfold(2, wide, steps[sampling]).permute(1, 2, 0, 3, 4)
