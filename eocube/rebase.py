"""Room north or west of a store: its shards get new keys, its log a line that says so, while nobody can open it.

Rows and columns count from the array's north-western corner, so ground beyond it renames every shard. Objects cannot be
renamed all at once; therefore the root's zarr.json goes first and comes back last: until then there is no store to
open, rather than one with latents in the wrong places. A killed move is gone on with by the same command, from a note
of the rows (or columns) done: they move outermost first, so that none lands on one that has still to go.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from eocube.commit_log import FOLDER, CommitLog, segment_key
from eocube.commits import with_check
from eocube.errors import StoreError
from eocube.grid import CubeGrid
from eocube.layout import LATENT, ROOT
from eocube.target import Target

NOTE = f"{FOLDER}/moving.json"
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Move:
    """A move under way: by how many shards, how far it has come, and the number of the log's segment that tells it."""

    plan: str
    """Hash of the plan that it makes room for."""
    rows: int
    cols: int
    cores: int
    """Cores along a shard."""
    segment: int
    left: int
    """Old shard rows (columns, where `rows` is 0) that are still to move."""


def room_before(was: tuple[float, float], grid: CubeGrid) -> tuple[int, int]:
    """Shard rows and columns that a grid has before the north-western corner `was`, (easting, northing) in metres."""
    side = grid.lattice.shard * grid.lattice.cell
    return round((grid.transform.f - was[1]) / side), round((was[0] - grid.transform.c) / side)


def begin(target: Target, plan_hash: str, grid: CubeGrid, shape: tuple[int, int], room: tuple[int, int]) -> None:
    """Note the move and take the store's root away. `shape` is that of the store's shards before, (rows, columns)."""
    rows, cols = room
    if rows < 0 or cols < 0:
        raise StoreError(f"{target} would lose ground in the north or west: ask for a --bbox that holds the store's")
    move = Move(
        plan_hash, rows, cols, grid.lattice.cores_per_shard, CommitLog(target).next_number(), shape[0 if rows else 1]
    )
    target.put(NOTE, json.dumps(asdict(move)).encode())
    target.delete(ROOT)


def under_way(target: Target) -> Move | None:
    """The move that was begun and not finished."""
    data = target.get(NOTE)
    if data is None:
        return None
    try:
        return Move(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{target.at(NOTE)} is damaged: {error}") from error


def finish(target: Target, plan_hash: str) -> bool:
    """Do what is left of a move that was begun; False when none was."""
    move = under_way(target)
    if move is None:
        return False
    if move.plan != plan_hash:
        raise StoreError(f"{target} is being extended for another request: run that one again first")
    axis, step = (2, move.rows) if move.rows else (3, move.cols)
    by_layer: dict[int, list[tuple[int, ...]]] = {}
    for key in target.keys(f"{LATENT}/c"):
        index = tuple(int(part) for part in key.split("/")[2:])
        by_layer.setdefault(index[axis], []).append(index)
    assert step > 0
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="move") as pool:
        for layer in range(move.left - 1, -1, -1):
            names = [
                (_key(t, z, r, c), _key(t, z, r + move.rows, c + move.cols)) for t, z, r, c in by_layer.get(layer, ())
            ]
            list(pool.map(lambda pair: target.move(*pair), names))
            move = replace(move, left=layer)
            if names:
                target.put(NOTE, json.dumps(asdict(move)).encode())
    line = {"shift": [move.rows, move.cols], "windows": [move.rows * move.cores, move.cols * move.cores]}
    if not target.create(segment_key(move.segment), (with_check(line) + "\n").encode()):
        raise StoreError(f"{target.at(segment_key(move.segment))} was written while the store moved: two runs at once")
    return True


def forget(target: Target) -> None:
    """Remove the note, once the store has its root again."""
    target.delete(NOTE)


def _key(*index: int) -> str:
    return "/".join([LATENT, "c", *map(str, index)])
