"""Gives stored values to training: patches of any number of cubes, by index or in seeded orders, never pixels again."""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eocube.cube.stored_values import StoredCube, Values, cubes_at
from eocube.cube.window_index import Ground, Index, Ints, Split, Unit, cell_there, grounds, make_index
from eocube.errors import InputError
from eocube.store.receipts import State

Normalise = Literal["moments"] | Callable[[Values], Values] | None
Urls = str | PathLike[str] | Sequence[str | PathLike[str]]

NEXT = "next"
"""`pair` of this pairs each time with the next one that has the same ground, in the same cube."""
_KEPT = 4  # units that `read` keeps for who reads neighbours one after the other
_LEAST_STD = 1e-6


@dataclass(frozen=True, slots=True)
class LatentPatch:
    """A square of stored values.

    `values` (C, side, side) are float32 with NaN where there is none, or int32 codes with -1; `valid` (side, side)
    uint8 is the percent of each cell's source pixels that are there, 0 where no window is ok. `pair` is the same ground
    at another resolution or time.
    """

    index: int
    values: Values
    valid: NDArray[np.uint8]
    time: np.datetime64
    """Start of the acquisition, UTC."""
    space_id: str
    ground: Ground
    pair: LatentPatch | None = None


@dataclass(frozen=True, slots=True)
class OpenUnit:
    """A unit's values as stored, (C, cells, cells) each: its own, and those of its pair."""

    values: Values
    paired: Values | None = None


class CubeWindows:
    """Patches of stored values of any number of cubes, local or remote, that mean the same thing.

    A patch is a square of `side` cells; patches tile each shard, overlapping where `side` does not divide it, and never
    reach over a shard's edge, so that each object is read once an epoch (`eocube.cube.window_stream`). Only what a
    cube's log had when it was opened is seen: open a cube that grows again to see more.

    Memory: 8 bytes a patch, some 200 a unit, and what the logs say of windows that lack source pixels; `read` keeps the
    last four units. Pickles without connections, so that one listing serves many workers. Thread-safe.

    Args:
        urls: of one cube or several; all zones of those that have several.
        side: cells a side.
        states: how windows may have ended that a patch lies on. A patch has one ok window at least; on windows of other
            states its values are NaN (or -1).
        split: a rule and the split wanted of it, such as `(BlockSplit(50_000, 5_000, {"train": 0.9, "test": 0.1}),
            "train")` with `model.training.sources.splits.BlockSplit`: the same blocks of ground for every source of
            training data.
        seed: of every order.
        normalise: "moments" takes off each channel's mean and divides by its spread, by the moments in all the cubes'
            logs; or a function of (C, side, side), which must pickle to travel to workers.
        pair: "next" pairs each time with the next that has the same ground; of a chain of three times or more each
            epoch gives every other pair, so that no object is read twice. URLs of other cubes, in the order of `urls`,
            pair the same ground and time at another resolution (or in another space).
        storage_options: fsspec options, of which each URL takes what its protocol knows.

    Raises:
        InputError: cubes of different spaces; a side, state, split or pairing that does not fit; no patch.
        StoreError: a cube that cannot be opened.
    """

    def __init__(
        self,
        urls: Urls,
        *,
        side: int,
        states: Sequence[str] = ("ok",),
        split: Split | None = None,
        seed: int = 0,
        normalise: Normalise = None,
        pair: Literal["next"] | Urls | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        cubes = cubes_at(urls, storage_options)
        self._consecutive = isinstance(pair, str) and pair == NEXT
        partners = () if pair is None or self._consecutive else cubes_at(pair, storage_options)
        if partners and len(partners) != len(cubes):
            raise InputError(f"pair: {len(partners)} cubes for {len(cubes)}: name one for each, in the same order")
        self.seed = seed
        self.index: Index = make_index(
            cubes, side=side, states=states, split=split, partners=partners, consecutive=self._consecutive
        )
        self._normalise = _normaliser(normalise, cubes)
        self._normalise_pair = _normaliser(normalise, partners) if partners else self._normalise
        self._forget()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def side(self) -> int:
        """Cells a side of a patch."""
        return self.index.side

    @property
    def channels(self) -> int:
        """Values a cell."""
        return int(self.index.cubes[0].channels)

    @property
    def space_id(self) -> str:
        """That of all the cubes."""
        return self.index.cubes[0].space_id

    @property
    def places(self) -> list[Ground]:
        """Where each patch lies, in the order of `read`: what `BlockSplit.select` takes."""
        found: list[Ground] = []
        for k, unit in enumerate(self.index.units):
            here = slice(self.index.starts[k], self.index.starts[k + 1])
            found += grounds(self.index.cubes[unit.cube], self.index.rows[here], self.index.cols[here], self.side)
        return found

    @property
    def unit_bytes(self) -> int:
        """Bytes in memory of what is opened together: the objects of one block at one time, pairs included."""
        block, sides = self.index.block, self._sides
        return sum((block // cube.cell // cube.side) ** 2 * cube.shard_bytes for cube in sides)

    @property
    def patch_bytes(self) -> int:
        """Bytes of a patch as `read` gives it, its pair included."""
        metres = self.side * self.index.cubes[0].cell
        return sum((metres // cube.cell) ** 2 * (4 * cube.channels + 1) for cube in self._sides)

    @property
    def _sides(self) -> tuple[StoredCube, ...]:
        """A cube for a patch, and one for its pair where it has one."""
        own = self.index.cubes[:1]
        return own * 2 if self._consecutive else own + self.index.partners[:1]

    def read(self, index: int) -> LatentPatch | None:
        """One patch; None where no source pixel is valid.

        Reads the objects it lies in, unless it was among the last ones read; `window_stream` reads each once.

        Raises:
            IndexError: no such patch.
            StoreError: what it lies in cannot be read, is damaged, or lacks what the log has as ok.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index}: there are {len(self)}")
        number = int(self.index.unit_of(np.array([index]))[0])
        with self._lock:
            opened = self._kept.get(number)
        if opened is None:
            opened = self.open_unit(number)
            with self._lock:
                self._kept[number] = opened
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return self.cut(index, opened)

    # -- what the stream is made of

    def open_unit(self, number: int) -> OpenUnit:
        """Read all that a unit's patches lie in: every object once. StoreError as `read`."""
        unit, block = self.index.units[number], self.index.block
        cube = self.index.cubes[unit.cube]
        own = _mosaic(cube, unit.time, (unit.row, unit.col), block)
        if self._consecutive:
            return OpenUnit(own, _mosaic(cube, unit.later, (unit.row, unit.col), block))
        if not self.index.partners:
            return OpenUnit(own)
        other = self.index.partners[unit.cube]
        return OpenUnit(own, _mosaic(other, unit.later, cell_there(cube, other, unit.row, unit.col), block))

    def cut(self, index: int, opened: OpenUnit) -> LatentPatch | None:
        """A patch out of its open unit; None where no source pixel is valid, in it or in its pair."""
        unit = self.index.units[int(self.index.unit_of(np.array([index]))[0])]
        cube = self.index.cubes[unit.cube]
        row, col = int(self.index.rows[index]), int(self.index.cols[index])
        paired = None
        if opened.paired is not None:
            other, at, side = cube, (row, col), self.side
            if self.index.partners:
                other = self.index.partners[unit.cube]
                at, side = cell_there(cube, other, row, col), self.side * cube.cell // other.cell
            corner = (unit.row, unit.col) if other is cube else cell_there(cube, other, unit.row, unit.col)
            paired = _patch(other, unit.later, at, corner, side, opened.paired, index, self._normalise_pair)
            if paired is None:
                return None
        return _patch(
            cube, unit.time, (row, col), (unit.row, unit.col), self.side, opened.values, index, self._normalise, paired
        )

    # -- orders

    def order(self, epoch: int, rank: int = 0, world: int = 1, open_units: int = 8) -> Ints:
        """The patches of one of `world` workers in one epoch, in the order in which they are given.

        Units come in a shuffled order, each whole to one worker, dealt out so that workers have about as many patches.
        A patch's place is its unit's number in that order plus chance times `open_units`: so the patches of as many
        units mix, and never more units than that are open at once.

        Raises:
            InputError: no such worker, or fewer units than workers.
        """
        if not 0 <= rank < world or open_units < 1:
            raise InputError(
                f"worker {rank} of {world} with {open_units} open units: workers count from 0, units from 1"
            )
        units = np.random.default_rng([self.seed, epoch]).permutation(self.index.turns(epoch))
        mine = self._dealt(units, rank, world)
        starts = self.index.starts
        patches = np.concatenate([np.arange(starts[u], starts[u + 1]) for u in mine])
        place = np.repeat(np.arange(len(mine)), [starts[u + 1] - starts[u] for u in mine])
        chance = np.random.default_rng([self.seed, epoch, rank, world, 1]).random(len(patches))
        found: Ints = patches[np.argsort(place + open_units * chance, kind="stable")]
        return found

    def _dealt(self, units: Ints, rank: int, world: int) -> list[int]:
        """One worker's units: each goes to who has the fewest patches so far."""
        if len(units) < world:
            raise InputError(
                f"{len(units)} shards for {world} workers: each reads whole ones, so take {max(1, len(units))} or fewer"
            )
        sizes = np.diff(self.index.starts)
        heap = [(0, k) for k in range(world)]
        mine = []
        for unit in units:
            has, who = heapq.heappop(heap)
            heapq.heappush(heap, (has + int(sizes[unit]), who))
            if who == rank:
                mine.append(int(unit))
        return mine

    @property
    def fingerprint(self) -> str:
        """Hash of the patches and the seed: what a saved place in an order is a place in."""
        return f"{self.index.fingerprint}-{self.seed}"

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, OpenUnit] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


@dataclass(frozen=True, slots=True)
class _ByMoments:
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def __call__(self, values: Values) -> Values:
        return (values - self.mean) / self.std


def _normaliser(normalise: Normalise, cubes: Sequence[StoredCube]) -> Callable[[Values], Values] | None:
    if normalise is None or callable(normalise):
        return normalise
    if normalise != "moments":
        raise InputError(f'normalise {normalise!r}: None, "moments" or a function')
    total = cubes[0].moments
    for cube in cubes[1:]:
        total = total.merge(cube.moments)
    if total.count == 0:
        raise InputError(
            f"{cubes[0].url} has no moments to normalise by: take normalise=None or a function of your own"
        )
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (total.mean, total.std))
    return _ByMoments(mean, np.maximum(std, np.float32(_LEAST_STD)))


def _mosaic(cube: StoredCube, time: int, corner: tuple[int, int], block: int) -> Values:
    """(C, cells, cells) of a block, as stored: its shards side by side, fill where the log has none that is ok."""
    per = block // (cube.side * cube.cell)
    row, col = corner[0] // cube.side, corner[1] // cube.side
    if per == 1:
        return cube.read((time, row, col))
    found = np.full((cube.channels, per * cube.side, per * cube.side), cube.fill, cube.dtype)
    for i in range(per):
        for j in range(per):
            states = cube.states.get((time, row + i, col + j))
            if states is not None and (states == State.OK).any():
                box = np.s_[:, i * cube.side : (i + 1) * cube.side, j * cube.side : (j + 1) * cube.side]
                found[box] = cube.read((time, row + i, col + j))
    return found


def _patch(
    cube: StoredCube,
    time: int,
    at: tuple[int, int],
    corner: tuple[int, int],
    side: int,
    stored: Values,
    index: int,
    normalise: Callable[[Values], Values] | None,
    pair: LatentPatch | None = None,
) -> LatentPatch | None:
    """Cut one side of a patch; None where no source pixel is valid."""
    valid = cube.valid(time, *at, side)
    if not valid.any():
        return None
    y, x = at[0] - corner[0], at[1] - corner[1]
    values = cube.storage.unpack(stored[:, y : y + side, x : x + side])
    if normalise is not None:
        values = normalise(values)
    ground = grounds(cube, np.array([at[0]]), np.array([at[1]]), side)[0]
    return LatentPatch(index, values, valid, cube.times[time], cube.space_id, ground, pair)


__all__ = ["NEXT", "CubeWindows", "Ground", "LatentPatch", "OpenUnit", "Split", "Unit"]
