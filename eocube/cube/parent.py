"""Reads the cube that another is made from: how its windows ended, by its log, and its latents over any ground."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.errors import SourceError, StoreError
from eocube.ground.grid import CoreRange, Window
from eocube.plan.plan import Plan
from eocube.products.identity import digest
from eocube.store.receipts import Receipt, State, WindowResult
from eocube.store.store import CubeStore

Latents = NDArray[np.float32]
_KEPT = 6
"""Shards that are kept in memory, stored as they are: the four about a corner, and the next ones."""


class ParentCube:
    """One cube, of one zone, as its log has it at this moment. Safe to read from several threads at once.

    Rows and columns of cores and cells are those of the zone's lattice, whatever the cube's arrays begin with.

    Args:
        url: of the cube.
        storage_options: fsspec options.

    Raises:
        StoreError: no cube there, a cube a zone, or a damaged one.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self.store = CubeStore.open(url, storage_options=storage_options)
        (text,) = CubeStore.stored_plans(url, storage_options=storage_options)
        self.plan = Plan.from_json(text)
        self._latest = self.store.log.latest()
        self._held = {(r.time, *r.shard) for r in self._latest}
        self._lock = threading.Lock()
        self._receipts: OrderedDict[tuple[int, int, int], Receipt] = OrderedDict()
        self._shards: OrderedDict[tuple[int, int, int], NDArray[Any]] = OrderedDict()
        self.bytes_read = 0
        """Bytes of the objects read so far."""

    def result(self, time: int, row: int, col: int) -> WindowResult | None:
        """How a window ended; None where the cube has no such place, or its log no word of it."""
        grid = self.plan.grid
        shard = grid.shard_of(Window(row, col))
        receipt = self._receipt(time, *shard)
        if receipt is None:
            return None
        return self._by_place(receipt).get(tuple(grid.place_in_status(Window(row, col))))

    def state(self, time: int, row: int, col: int) -> State:
        """The state of a window: `outside` where nobody asked for it, `not_attempted` where the log is silent."""
        if not self.plan.grid.requested(Window(row, col)):
            return State.OUTSIDE
        result = self.result(time, row, col)
        return State.NOT_ATTEMPTED if result is None else result.state

    def latents(self, time: int, top: int, left: int, height: int, width: int) -> Latents:
        """(C, height, width) float32 from a cell of the lattice on, NaN where no window is ok.

        Raises:
            SourceError: a shard is missing or damaged: what cannot be read is never taken for nodata.
        """
        grid, lattice = self.plan.grid, self.plan.grid.lattice
        side, core = lattice.shard, lattice.core
        out = np.full((self.plan.product.channels, height, width), np.nan, np.float32)
        for row in range(top // side, (top + height - 1) // side + 1):
            for col in range(left // side, (left + width - 1) // side + 1):
                place = (time, row - grid.shard_row0, col - grid.shard_col0)
                if place not in self._held:
                    continue
                stored = self._shard(*place)
                y0, x0 = max(top, row * side), max(left, col * side)
                y1, x1 = min(top + height, (row + 1) * side), min(left + width, (col + 1) * side)
                part = stored[:, y0 - row * side : y1 - row * side, x0 - col * side : x1 - col * side]
                out[:, y0 - top : y1 - top, x0 - left : x1 - left] = self.store.storage.unpack(part)
        for row in range(top // core, (top + height - 1) // core + 1):
            for col in range(left // core, (left + width - 1) // core + 1):
                if self.state(time, row, col) is not State.OK:
                    y, x = row * core - top, col * core - left
                    out[:, max(0, y) : max(0, y + core), max(0, x) : max(0, x + core)] = np.nan
        return out

    def digest(self, times: Collection[int], cores: CoreRange) -> str:
        """A digest of the log on the shards in which a box of cores lies, at some times: states and hashes."""
        n, grid = self.plan.grid.lattice.cores_per_shard, self.plan.grid
        said = []
        for receipt in (r for t in sorted(times) for r in self._latest.of_times(t, t + 1)):
            row, col = receipt.shard.row + grid.shard_row0, receipt.shard.col + grid.shard_col0
            if cores.row0 // n <= row <= (cores.row1 - 1) // n and cores.col0 // n <= col <= (cores.col1 - 1) // n:
                step = self.plan.times[receipt.time]
                states = [[w.row, w.col, int(w.state)] for w in receipt.windows]
                said.append([step.time, step.group, row, col, receipt.sha256, states])
        return digest(sorted(said))

    def _receipt(self, *place: int) -> Receipt | None:
        key = (place[0], place[1], place[2])
        if key not in self._held:
            return None
        with self._lock:
            if key not in self._receipts:
                self._receipts[key] = self._latest.of(*key)
                while len(self._receipts) > 4 * _KEPT:
                    self._receipts.popitem(last=False)
            return self._receipts[key]

    @staticmethod
    def _by_place(receipt: Receipt) -> dict[tuple[int, ...], WindowResult]:
        return {(w.row, w.col): w for w in receipt.windows}

    def _shard(self, *place: int) -> NDArray[Any]:
        key = (place[0], place[1], place[2])
        with self._lock:
            if key in self._shards:
                self._shards.move_to_end(key)
                return self._shards[key]
        receipt = self._receipt(*key)
        assert receipt is not None
        found = self._read(receipt)
        with self._lock:
            self._shards[key] = found
            while len(self._shards) > _KEPT:
                self._shards.popitem(last=False)
        return found

    def _read(self, receipt: Receipt) -> NDArray[Any]:
        spec, key = self.store.values, self.store.shard_key(receipt.time, *receipt.shard)
        assert spec.shards is not None
        if receipt.sha256 is None:
            return np.full(spec.shards[1:], spec.fill, spec.dtype)
        try:
            data = self.store.target.get(key)
        except StoreError as error:
            raise SourceError(str(error), item=self.url, asset=key) from error
        if data is None or hashlib.sha256(data).hexdigest() != receipt.sha256:
            what = "is missing" if data is None else "is not what was logged"
            raise SourceError(f"{self.url}: {key} {what}: eocube repair mends it", item=self.url, asset=key)
        with self._lock:
            self.bytes_read += len(data)
        found: NDArray[Any] = spec.codec.decode(data)[0]
        return found
