"""Lists the patches of stored cubes: where they lie, which are of a split, what they are paired with, what is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eocube.cube.stored_values import StoredCube
from eocube.errors import InputError
from eocube.ground.zones import to_lonlat
from eocube.store.receipts import STATES, State

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
EVERY = -1
"""The turn of a unit that is read every epoch."""


@dataclass(frozen=True, slots=True)
class Ground:
    """A patch's square: its centre in degrees and half its side in metres."""

    lon: float
    lat: float
    half: float


class SplitRule(Protocol):
    """Gives ground to splits; `model.training.sources.splits.BlockSplit` is one."""

    def split_of(self, place: Ground, /) -> str | None:
        """The split of a square, None where another split's ground is too near."""
        ...

    def check(self, split: str, /) -> None:
        """ValueError for a split that it does not know."""
        ...


Split = tuple[SplitRule, str]
"""A rule and the split that is wanted of it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is opened together: one block of ground at one time, and what it is paired with."""

    cube: int
    time: int
    row: int
    """Upper left cell in the cube's array."""
    col: int
    later: int = -1
    """The second time of a pair of times, in the same cube; or the paired cube's time of the same moment."""
    turn: int = EVERY
    """0 or 1: read in even or in odd epochs alone, so that pairs of times that share an object never meet."""


@dataclass(frozen=True, slots=True)
class Index:
    """The patches, sorted by unit. `partners` has the paired cube of each cube, none where patches stand alone.

    A block is `block` metres a side: the largest shard of the cubes at hand, so that every object lies in one block.
    """

    cubes: tuple[StoredCube, ...]
    partners: tuple[StoredCube, ...]
    side: int
    block: int
    units: tuple[Unit, ...]
    starts: Ints
    """(units + 1,): where each unit's patches begin."""
    rows: NDArray[np.int32]
    """(patches,): upper left cell in the cube's array."""
    cols: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)

    def unit_of(self, patches: Ints) -> Ints:
        """The units that patches are of."""
        return np.searchsorted(self.starts, patches, side="right") - 1

    def ground(self, patch: int) -> Ground:
        """Where a patch lies."""
        unit = self.units[int(self.unit_of(np.array([patch]))[0])]
        return grounds(self.cubes[unit.cube], self.rows[patch : patch + 1], self.cols[patch : patch + 1], self.side)[0]

    def turns(self, epoch: int) -> Ints:
        """The units that an epoch reads."""
        wanted = (EVERY, epoch % 2)
        return np.array([k for k, unit in enumerate(self.units) if unit.turn in wanted], np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash of all that the patches are."""
        said = [(c.space_id, c.epsg, c.left, c.top, c.cell, c.side) for c in (*self.cubes, *self.partners)]
        digest = hashlib.blake2b(repr((said, self.side, self.block)).encode(), digest_size=12)
        for unit in self.units:
            times = self.cubes[unit.cube].times
            digest.update(repr((unit, str(times[unit.time]))).encode())
        for part in (self.starts, self.rows, self.cols):
            digest.update(part.tobytes())
        return digest.hexdigest()


def make_index(
    cubes: tuple[StoredCube, ...],
    *,
    side: int,
    states: Sequence[str],
    split: Split | None,
    partners: tuple[StoredCube, ...] = (),
    consecutive: bool = False,
) -> Index:
    """The patches of `side` cells whose windows all ended in one of `states`, one of them at least ok.

    Raises:
        InputError: a side, state, split or pairing that does not fit these cubes, or no patch at all.
    """
    try:
        allowed = frozenset(State.named(name) for name in states)
        if split is not None:
            split[0].check(split[1])
    except ValueError as error:
        raise InputError(str(error)) from None
    if State.OK not in allowed:
        raise InputError(f"states {', '.join(states) or 'none'}: ok must be among them, only ok windows have values")
    block, step = _block(cubes, partners, side)
    units: list[Unit] = []
    starts, rows, cols = [0], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for number, cube in enumerate(cubes):
        cells = block // cube.cell
        places = positions(cells, side, step)
        chosen: dict[tuple[int, int], Flags] = {}
        for unit in _units(number, cube, block, consecutive):
            fits = _fits(cube, unit.time, (unit.row, unit.col), cells, side, places, allowed)
            if consecutive:
                fits &= _fits(cube, unit.later, (unit.row, unit.col), cells, side, places, allowed)
            elif partners:
                other = partners[number]
                same = np.flatnonzero(other.times == cube.times[unit.time])
                if not len(same):
                    continue
                unit = Unit(unit.cube, unit.time, unit.row, unit.col, int(same[0]))
                corner, places_there = cell_there(cube, other, unit.row, unit.col), places * cube.cell // other.cell
                fits &= _fits(
                    other,
                    unit.later,
                    corner,
                    block // other.cell,
                    side * cube.cell // other.cell,
                    places_there,
                    allowed,
                )
            if split is not None and fits.any():
                at = unit.row, unit.col
                if at not in chosen:
                    chosen[at] = _of_split(cube, at, places, side, split)
                fits &= chosen[at]
            down, across = np.nonzero(fits)
            if len(down):
                units.append(unit)
                rows.append((unit.row + places[down]).astype(np.int32))
                cols.append((unit.col + places[across]).astype(np.int32))
                starts.append(starts[-1] + len(down))
    if not units:
        raise InputError(_none(cubes, side, split, partners, consecutive))
    return Index(
        cubes, partners, side, block, tuple(units), np.array(starts, np.int64), np.concatenate(rows),
        np.concatenate(cols),
    )  # fmt: skip


def positions(cells: int, side: int, step: int = 1) -> Ints:
    """Where patches begin along a block: as few as cover all of it, evenly spread, at multiples of `step` cells.

    Where `side` does not divide the block, neighbours overlap.
    """
    count = -(-cells // side)
    even = np.arange(count) * ((cells - side) / max(1, count - 1))
    return (np.floor(even / step + 0.5) * step).astype(np.int64)


def grounds(cube: StoredCube, rows: NDArray[Any], cols: NDArray[Any], side: int) -> list[Ground]:
    """The squares of patches, by their upper left cells in a cube's array."""
    half = side * cube.cell / 2
    lon, lat = to_lonlat(cube.epsg, cube.left + cols * cube.cell + half, cube.top - rows * cube.cell - half)
    return [Ground(float(x), float(y), half) for x, y in zip(lon, lat, strict=True)]


def cell_there(cube: StoredCube, other: StoredCube, row: int, col: int) -> tuple[int, int]:
    """A cell's upper left corner as (row, column) of another cube's array, which has an edge there."""
    south, east = cube.top - row * cube.cell, cube.left + col * cube.cell
    return (other.top - south) // other.cell, (east - other.left) // other.cell


def _block(cubes: tuple[StoredCube, ...], partners: tuple[StoredCube, ...], side: int) -> tuple[int, int]:
    """(metres a side of a block, cells of which patches begin at a multiple)."""
    first = cubes[0]
    if side < 1:
        raise InputError(f"patches of {side} cells: 1 or more")
    if partners and [c.epsg for c in cubes] != [c.epsg for c in partners]:
        raise InputError("pair: name the cubes in the order of the first ones, each of the same zone as its partner")
    shards = {c.side * c.cell for c in (*cubes, *partners)}
    block = max(shards)
    cells = {c.cell for c in cubes}, {c.cell for c in partners}
    if any(block % shard for shard in shards) or any(len(c) > 1 for c in cells):
        raise InputError(
            f"cubes with shards of {' and '.join(map(str, sorted(shards)))} m do not go together: "
            "the larger must be a multiple of the smaller, and all of one side of a pair have the same cells"
        )
    step = lcm(first.cell, *cells[1]) // first.cell if partners else 1
    if side % step:
        raise InputError(f"patches of {side} cells do not begin where the paired cube's cells do: multiples of {step}")
    if side * first.cell > block:
        raise InputError(
            f"patches of {side} cells are larger than a shard of {block // first.cell}: take a smaller side"
        )
    return block, step


def _units(number: int, cube: StoredCube, block: int, consecutive: bool) -> list[Unit]:
    """A cube's blocks with an ok window, by time and place; or the pairs of times that follow each other in a block."""
    shard = cube.side * cube.cell
    per = block // shard
    first = (-cube.top // shard, cube.left // shard)  # shards count from the zone's origin, and blocks with them
    found: dict[tuple[int, int], set[int]] = {}
    for (time, row, col), states in cube.states.items():
        if (states == State.OK).any():
            at = tuple(((k + n) // per * per - k) * cube.side for k, n in zip(first, (row, col), strict=True))
            found.setdefault((at[0], at[1]), set()).add(time)
    if not consecutive:
        return [Unit(number, t, *at) for t, at in sorted((t, at) for at, times in found.items() for t in times)]
    pairs = []
    for at, times in sorted(found.items()):
        chain = sorted(times, key=lambda t: (cube.times[t], t))
        turns = [EVERY if len(chain) == 2 else k % 2 for k in range(len(chain) - 1)]
        pairs += [Unit(number, a, *at, b, k) for a, b, k in zip(chain, chain[1:], turns, strict=False)]
    return pairs


def _fits(
    cube: StoredCube, time: int, corner: tuple[int, int], cells: int, side: int, places: Ints, allowed: frozenset[State]
) -> Flags:
    """(places, places): whether all windows under the patch are allowed and one is ok."""
    per, cores = cells // cube.side, cube.side // cube.core
    states = np.full((cells // cube.core,) * 2, State.NOT_ATTEMPTED, np.uint8)
    row, col = corner[0] // cube.side, corner[1] // cube.side
    for i in range(per):
        for j in range(per):
            one = cube.states.get((time, row + i, col + j))
            if one is not None:
                states[i * cores : (i + 1) * cores, j * cores : (j + 1) * cores] = one
    low, high = places // cube.core, (places + side - 1) // cube.core + 1

    def count(flags: Flags) -> Ints:
        total = np.zeros((len(states) + 1,) * 2, np.int64)
        total[1:, 1:] = flags.cumsum(0).cumsum(1)
        found: Ints = (
            total[np.ix_(high, high)] - total[np.ix_(low, high)] - total[np.ix_(high, low)] + total[np.ix_(low, low)]
        )
        return found

    fits: Flags = (count(~np.isin(states, [int(s) for s in allowed])) == 0) & (count(states == State.OK) > 0)
    return fits


def _of_split(cube: StoredCube, at: tuple[int, int], places: Ints, side: int, split: Split) -> Flags:
    rows, cols = np.meshgrid(at[0] + places, at[1] + places, indexing="ij")
    squares = grounds(cube, rows.ravel(), cols.ravel(), side)
    return np.array([split[0].split_of(ground) == split[1] for ground in squares]).reshape(rows.shape)


def _none(
    cubes: tuple[StoredCube, ...], side: int, split: Split | None, partners: tuple[StoredCube, ...], consecutive: bool
) -> str:
    where = cubes[0].url if len(cubes) == 1 else f"{len(cubes)} cubes"
    ok = sum(int((states == State.OK).sum()) for cube in cubes for states in cube.states.values())
    why = [f"{where}: no patch of {side} cells, of {ok} {STATES[State.OK]} windows"]
    if split is not None:
        why.append(f"in split {split[1]}: blocks of the split may be too large for the region, or its margin too wide")
    if partners:
        why.append("that the paired cube has at the same time")
    if consecutive:
        why.append("at two times")
    return " ".join(why)
