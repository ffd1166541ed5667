"""Gives stored pairs to training and evaluation: by index, or in batches of a seeded order that resumes to the row."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.errors import InputError
from eocube.pairs.pair_store import PairStore
from eocube.store.receipts import State

Values = NDArray[Any]
Pair = dict[str, Any]
Shards = dict[str, Values]
_VALUES = ("lr", "hr", "lr_up", "lr_sharp")
_SCALARS = ("id", "place", "level", "split", "lr_space", "hr_space", "resolution", "side", "flip", "epsg", "bounds",
            "transform")  # fmt: skip
CACHE = 2 * 2**30
_OWN = ("_lock", "_pool", "_kept", "_most", "_moments", "_taken")  # a process's own, not pickled


class PairWindows:
    """The rows of one split of a pair store, of those that ended ok.

    `read(i)` gives a row as a dict: its arrays float32 (values raw or normalised; pixels in their sensor's unit, NaN
    where there is none), cut to the row's own size, and what the tables say of it. `draw(n)` gives the next batch, the
    arrays stacked, as a dict of the same names; all rows of a batch have one side, and what the tables say are lists.

    Whole shards are read, ahead on a thread, and kept as stored within `cache_bytes`. Within an epoch shards come in a
    random order and the rows of `open_units` of them mix, so that a store larger than the cache is read once an epoch;
    its training rows lie in a random order already. Rows of sides that do not fill a batch wait for the next epoch.
    Pickles without its connection and its cache. `read` may be called from several threads, `draw` from one.

    Args:
        url: of the store; local or any fsspec URL.
        split: "train", "val" or "test"; None takes all rows.
        seed: of the order.
        arrays: those to read; None takes all there are.
        side: only pairs of this side in high-resolution pixels; None takes all.
        normalise: take the training rows' mean off each channel of the values and divide by their spread, each array
            by its own.
        rank, world: this worker, and how many share the rows of `draw`.
        storage_options: fsspec options.

    Raises:
        InputError: no such array or worker, or a split without rows.
        StoreError: no finished pair store there.
    """

    def __init__(
        self,
        url: str | PathLike[str],
        split: str | None = "train",
        seed: int = 0,
        *,
        arrays: Sequence[str] | None = None,
        side: int | None = None,
        normalise: bool = False,
        rank: int = 0,
        world: int = 1,
        open_units: int = 8,
        cache_bytes: int = CACHE,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url, self.split, self.seed, self.normalise = str(url), split, seed, normalise
        self.rank, self.world, self._open_units, self._cache_bytes = rank, world, open_units, cache_bytes
        self.store = PairStore.open(url, storage_options=storage_options)
        self.arrays = self.store.arrays if arrays is None else tuple(arrays)
        if unknown := [name for name in self.arrays if name not in self.store.arrays]:
            raise InputError(
                f"{url} has no {unknown[0]}: it has {', '.join(self.store.arrays)}"
                + ("; encode it with --pixels" if unknown[0].endswith("image") else "")
            )
        if not 0 <= rank < world or open_units < 1:
            raise InputError(
                f"worker {rank} of {world} with {open_units} open units: workers count from 0, units from 1"
            )
        tables = self.store.tables
        wanted = tables["status"] == State.OK
        if split is not None:
            wanted &= tables["split"] == split
        if side is not None:
            wanted &= tables["side"] == side
        self.rows: NDArray[np.int64] = np.flatnonzero(wanted)
        """Rows of the store, in its order."""
        if not len(self.rows):
            splits = ", ".join(f"{n} {s}" for s, n in self.store.document["splits"].items())
            raise InputError(f"{url} has no pair of split {split!r}{_of(side)}: it has {splits}")
        self._sides: dict[int, int] = {int(r): int(tables["side"][r]) for r in self.rows}
        self._go_to(0, 0, {})
        self._pool: ThreadPoolExecutor | None = None
        self._begin()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def statistics(self) -> Mapping[str, Mapping[str, Any]]:
        """{"lr" | "hr" | "lr_up" | "lr_sharp": {"count", "mean", "std"}} of the training rows, whatever this split."""
        return self.store.statistics

    @property
    def sides(self) -> dict[int, int]:
        """High-resolution side in pixels -> rows that have it."""
        found, counts = np.unique(list(self._sides.values()), return_counts=True)
        return {int(s): int(n) for s, n in zip(found, counts, strict=True)}

    def read(self, index: int) -> Pair:
        """One row. IndexError where there is none of that number, StoreError where it cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index}: there are {len(self)}")
        row = int(self.rows[index])
        tables = self.store.tables
        found: Pair = {"row": row, **{name: tables[name][row] for name in _SCALARS}}
        for name in _SCALARS[:6]:
            found[name] = str(found[name])
        return found | self._arrays(row)

    def __iter__(self) -> Iterator[Pair]:
        return (self.read(index) for index in range(len(self)))

    # -- batches

    def draw(self, count: int) -> Pair:
        """The next `count` rows of the endless order, all of one side, stacked."""
        while True:
            for side, waiting in self._waiting.items():
                if len(waiting) >= count:
                    rows, self._waiting[side] = waiting[:count], waiting[count:]
                    return self._batch(rows)
            if self._position >= len(self._order):
                self._go_to(self._epoch + 1, 0, self._waiting)
            row = int(self._order[self._position])
            self._read_ahead()
            # Taken while its shard is open: it may wait for others of its side until long after.
            self._taken[row] = self._arrays(row)
            self._position += 1
            self._waiting.setdefault(self._sides[row], []).append(row)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the store in the order of an epoch, of all workers together."""
        per = self.store.per_unit
        units = np.unique(self.rows // per)
        chance = np.random.default_rng([self.seed, epoch])
        place = dict(zip(units.tolist(), chance.permutation(len(units)).tolist(), strict=True))
        where = np.array([place[int(r) // per] for r in self.rows]) + self._open_units * chance.random(len(self.rows))
        return self.rows[np.argsort(where, kind="stable")]

    def batches_per_epoch(self, count: int) -> int:
        """Batches that show this worker's share of the rows once, rounded down, 1 at least."""
        return max(1, len(self.rows) // self.world // count)

    @property
    def fingerprint(self) -> str:
        """Hash of the rows and the seed: what a saved place is a place in."""
        said = [self.store.document["notes"], self.store.document["encoder"], self.split, self.seed, self._open_units]
        digest = hashlib.blake2b(repr(said).encode(), digest_size=12)
        digest.update(self.rows.tobytes())
        return f"{digest.hexdigest()}-{self.rank}/{self.world}"

    def state_dict(self) -> dict[str, Any]:
        """All that the next draws depend on: plain numbers, lists and one hash."""
        waiting = {str(side): list(rows) for side, rows in self._waiting.items()}
        return {"data": self.fingerprint, "epoch": self._epoch, "position": self._position, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the very rows that would have come next. InputError where the state is of other pairs."""
        if state.get("data") != self.fingerprint:
            raise InputError(
                f"the saved place is of other pairs than {self.url}'s: resume with the same store, split, side, seed "
                "and number of workers"
            )
        self._taken.clear()
        waiting = {int(side): [int(r) for r in rows] for side, rows in state["waiting"].items()}
        self._go_to(int(state["epoch"]), int(state["position"]), waiting)

    def close(self) -> None:
        """Stop reading ahead and let go of what is kept. Drawing on reads it again."""
        pool = self._pool
        self._begin()
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _go_to(self, epoch: int, position: int, waiting: dict[int, list[int]]) -> None:
        self._epoch, self._position, self._waiting = epoch, position, waiting
        self._order = self.order(epoch)[self.rank :: self.world]
        self._ahead = position

    def _batch(self, rows: Sequence[int]) -> Pair:
        tables = self.store.tables
        parts = [self._taken.pop(row) if row in self._taken else self._arrays(row) for row in rows]
        stacked: Pair = {name: np.stack([part[name] for part in parts]) for name in self.arrays}
        return {"row": np.array(rows), **{name: tables[name][rows] for name in _SCALARS}, **stacked}

    def _read_ahead(self) -> None:
        """Begin to read what the next rows lie in, each unit once: as many rows as a unit has."""
        while self._ahead < min(len(self._order), self._position + self.store.per_unit):
            self._opened(int(self._order[self._ahead]) // self.store.per_unit)
            self._ahead += 1

    # -- shards

    def _arrays(self, row: int) -> Pair:
        unit, place = divmod(row, self.store.per_unit)
        opened = self._opened(unit).result()
        side = self._sides[row]
        found = {}
        for name in self.arrays:
            stored, full = opened[name][place], self.store.document["side"]
            n = stored.shape[-1] * side // full
            stored = stored[..., :n, :n]
            if name not in _VALUES:
                found[name] = self.store.physical(name, stored)
                continue
            values = stored.astype(np.float32)
            if self.normalise:
                mean, std = self._moments[name]
                values -= mean
                values /= std
            found[name] = values
        return found

    def _opened(self, unit: int) -> Future[Shards]:
        """A unit's shards, read on a thread; the ones unused for longest are let go of beyond the bound."""
        with self._lock:
            future = self._kept.get(unit)
            if future is None:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(2, thread_name_prefix="pairs")
                future = self._kept[unit] = self._pool.submit(self._read, unit)
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(unit)
            return future

    def _read(self, unit: int) -> Shards:
        return {name: self.store.shard(name, unit) for name in self.arrays}

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._pool = None
        self._kept: OrderedDict[int, Future[Shards]] = OrderedDict()
        self._taken: dict[int, Pair] = {}
        # Rows mix over `open_units` units; those that are read ahead reach a few further.
        self._most: int = max(2 * self._open_units + 2, self._cache_bytes // max(1, self.store.unit_bytes(self.arrays)))
        self._moments = {
            name: tuple(np.asarray(said[key], np.float32)[:, None, None] for key in ("mean", "std"))
            for name, said in self.statistics.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def _of(side: int | None) -> str:
    return "" if side is None else f" of {side} px a side"
