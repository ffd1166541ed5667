"""Puts the values of a shard's windows together as they are stored, and counts what they are: many windows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eocube.ground.grid import CubeGrid, Window
from eocube.products.spec import Product
from eocube.products.storage import Storage
from eocube.store.histogram import Histogram
from eocube.store.moments import Moments

Values = npt.NDArray[Any]

TOGETHER = 25
"""Windows that are packed at once: an array operation of one costs as much in asking for it as in doing it."""


class ShardValues:
    """One shard's array, filled window by window.

    Args:
        product: what the values are.
        grid: of the cube.
        storage: how values are stored.
    """

    def __init__(self, product: Product, grid: CubeGrid, storage: Storage) -> None:
        self._product, self._grid, self._storage = product, grid, storage
        side = grid.lattice.shard
        self._array = np.full((product.channels, side, side), storage.fill, dtype=storage.dtype)
        self._waiting: list[tuple[Window, Values]] = []
        self._summaries: dict[Window, Moments | Histogram] = {}

    def add(self, window: Window, values: Values) -> None:
        """A window's values (C, core, core), in the real type that they are packed in."""
        self._waiting.append((window, values))
        if len(self._waiting) >= TOGETHER:
            self._pack()

    def keep(self, window: Window, stored: Values) -> None:
        """A window's stored values (C, core, core) as they are."""
        self._place(window, stored)
        if self._product.summary != "none":
            self._summaries[window] = self._summary(stored)

    def whole(self) -> Values:
        """The shard's array (C, side, side), with all that was added."""
        self._pack()
        return self._array

    def summary(self, windows: Sequence[Window]) -> Mapping[str, Any]:
        """The receipt's fields for the values of its windows, merged in the order given."""
        self._pack()
        given = [self._summaries[w] for w in windows if w in self._summaries]
        if self._product.summary == "histogram":
            return {"histogram": Histogram.merged(part for part in given if isinstance(part, Histogram))}
        if self._product.summary == "moments":
            return {"moments": Moments.merged(part for part in given if isinstance(part, Moments))}
        return {}

    def _pack(self) -> None:
        if not self._waiting:
            return
        windows, values = zip(*self._waiting, strict=True)
        self._waiting = []
        packed = self._storage.pack(np.stack(values, axis=1))
        for k, window in enumerate(windows):
            self._place(window, packed[:, k])
        if self._product.summary == "moments":
            self._summaries.update(zip(windows, Moments.of_each(self._real(packed)), strict=True))
        elif self._product.summary == "histogram":
            self._summaries.update({w: self._summary(packed[:, k]) for k, w in enumerate(windows)})

    def _place(self, window: Window, stored: Values) -> None:
        row, col = self._grid.place_in_shard(window)
        core = self._grid.lattice.core
        self._array[:, row : row + core, col : col + core] = stored

    def _summary(self, stored: Values) -> Moments | Histogram:
        if self._product.summary == "histogram":
            return Histogram.of(self._storage.unpack(stored))
        return Moments.of(self._real(stored))

    def _real(self, stored: Values) -> Values:
        """Stored values as numbers; half floats as float64 by torch, which is far faster at that than numpy."""
        if stored.dtype.kind == "f" and stored.dtype.itemsize == 2:
            return np.asarray(torch.from_numpy(stored).double().numpy())
        return self._storage.unpack(stored)


def as_packed(values: torch.Tensor, storage: Storage) -> Values:
    """A window's values on the host in the real type that they are packed in: torch is far faster at that than numpy.

    That which is stored, where it is real; else half floats, as encoders on a GPU give them, as float32.
    """
    if np.dtype(storage.dtype).kind == "f":
        return np.asarray(values.to(torch.from_numpy(np.empty(0, storage.dtype)).dtype).numpy())
    return np.asarray((values.float() if values.dtype.itemsize == 2 else values).numpy())
