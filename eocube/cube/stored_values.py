"""Opens one cube for training: which windows are ok, by its log, and its values, shard by shard."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.errors import InputError, StoreError
from eocube.net.storage_options import options_for
from eocube.products.storage import Storage
from eocube.store.existing import zones_of
from eocube.store.moments import Moments
from eocube.store.receipts import State, unpack_mask
from eocube.store.store import CubeStore

Values = NDArray[Any]
Shard = tuple[int, int, int]
"""Time, row and column of a shard in the cube's array."""


class StoredCube:
    """One cube as its commit log has it at this moment: windows that are finished later are not seen.

    Reads from many threads. Pickles without its connection.

    Args:
        url: of one cube, not of a root over several zones (`cubes_at` opens those).
        storage_options: fsspec options.

    Raises:
        StoreError: no cube there, or a damaged one.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url, self._options = url, storage_options
        self._lock = threading.Lock()
        self._store: CubeStore | None = None
        store = self._opened()
        spec, document = store.values, store.document
        assert spec.shards is not None
        grid = document["grid"]
        self.epsg = int(str(grid["crs"]).rpartition(":")[2])
        self.cell, self.left, self.top = round(grid["transform"][0]), *map(round, grid["transform"][2::3])
        """Metres: a cell's side, and the easting and northing of the array's upper left corner."""
        self.core, self.side, self.channels = store.core, spec.shards[2], spec.shape[1]
        """Cells a side of a core and of a shard, values a cell."""
        self.dtype, self.fill = np.dtype(spec.dtype), spec.fill
        self.space_id = str(document["space_id"])
        self.times: NDArray[np.datetime64] = store.times
        self.storage: Storage = store.storage
        self.moments = Moments(0, (), ())
        self.states: dict[Shard, NDArray[np.uint8]] = {}
        """(cores, cores) of each shard that the log has: how its windows ended."""
        self._masks: dict[tuple[int, int, int], str] = {}
        cores = self.side // self.core
        for receipt in store.receipts():
            states = np.zeros((cores, cores), np.uint8)
            for window in receipt.windows:
                states[window.row % cores, window.col % cores] = window.state
                if window.state is State.OK and window.valid_mask is not None:
                    self._masks[receipt.time, window.row, window.col] = window.valid_mask
            if receipt.moments is not None:
                self.moments = self.moments.merge(receipt.moments)
            self.states[receipt.time, *receipt.shard] = states

    @property
    def shard_bytes(self) -> int:
        """Bytes of a shard in memory, as it is stored."""
        return int(self.channels * self.side**2 * self.dtype.itemsize)

    def read(self, shard: Shard) -> Values:
        """(C, side, side) as stored, in one request.

        Raises:
            StoreError: it cannot be read or is damaged, or it lacks a window that the log has as ok: never fill in the
                place of values.
        """
        found = self._opened().read_shard(*shard)
        cores = self.side // self.core
        there = self.storage.there(found).all(axis=0)
        whole = there.reshape(cores, self.core, cores, self.core).all(axis=(1, 3))
        lost = np.argwhere((self.states[shard] == State.OK) & ~whole)
        if len(lost):
            time, row, col = shard
            raise StoreError(
                f"{self.url}: shard {row}, {col} of {self.times[time]}Z lacks values of {len(lost)} windows that "
                f"the log has as ok: `eocube verify {self.url}` says what is damaged"
            )
        return found

    def valid(self, time: int, row: int, col: int, side: int) -> NDArray[np.uint8]:
        """(side, side) percent of each cell's source pixels that are there, 0 where no window is ok.

        `row` and `col` are the upper left cell's in the cube's array.
        """
        core, cores = self.core, self.side // self.core
        first, last = (row // core, col // core), ((row + side - 1) // core, (col + side - 1) // core)
        shape = tuple((b - a + 1) * core for a, b in zip(first, last, strict=True))
        found = np.zeros(shape, np.uint8)
        for r in range(first[0], last[0] + 1):
            for c in range(first[1], last[1] + 1):
                states = self.states.get((time, r // cores, c // cores))
                if states is None or states[r % cores, c % cores] != State.OK:
                    continue
                mask = self._masks.get((time, r, c))
                y, x = (r - first[0]) * core, (c - first[1]) * core
                found[y : y + core, x : x + core] = 100 if mask is None else unpack_mask(mask, core)
        y, x = row - first[0] * core, col - first[1] * core
        return np.ascontiguousarray(found[y : y + side, x : x + side])

    def _opened(self) -> CubeStore:
        with self._lock:
            if self._store is None:
                self._store = CubeStore.open(self.url, storage_options=self._options)
            return self._store

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_store")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._store = threading.Lock(), None


def cubes_at(
    urls: str | PathLike[str] | Sequence[str | PathLike[str]], storage_options: Mapping[str, Any] | None
) -> tuple[StoredCube, ...]:
    """The cubes at some URLs, in their order, every zone of those that have several.

    Raises:
        InputError: no URL, or cubes whose values mean different things.
        StoreError: no cube at one of them.
    """
    listed = [urls] if isinstance(urls, (str, PathLike)) else list(urls)
    if not listed:
        raise InputError("no cube: give the URL of one that eocube made, or several")
    cubes = []
    for url in [fspath(one) for one in listed]:
        options = options_for(url, storage_options)
        zones = zones_of(url, options)
        cubes += [StoredCube(one, options) for one in ([f"{url.rstrip('/')}/{zone}" for zone in zones] or [url])]
    first = cubes[0]
    for cube in cubes[1:]:
        if cube.space_id != first.space_id:
            raise InputError(
                f"{cube.url} has space id {cube.space_id}, {first.url} {first.space_id}: their values mean different "
                "things; train on cubes of one space"
            )
    return tuple(cubes)
