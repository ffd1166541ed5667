"""Plans a cube that is made from another: finer cells on the parent's lattice, its ground, its times, its product."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eocube.errors import InputError
from eocube.ground.grid import BBox, CoreRange, CubeGrid, Lattice, by_zone
from eocube.plan.plan import Plan, TimeStep
from eocube.products.super_resolved import Derivation

SHARD_CORES = 5
"""The parent's cores along a shard, where that divides its own: 9.6 km of 2.5 m from a cube of 10 m."""


def finer_lattice(lattice: Lattice, scale: int) -> Lattice:
    """The lattice whose cells are `scale` times smaller: `scale` x `scale` of them in each of these, edges in common.

    Windows have as many pixels as the parent's, so that its decoder sees what it is used to; a shard holds whole cores
    of the parent.
    """
    together = max(n for n in range(1, SHARD_CORES + 1) if lattice.cores_per_shard % n == 0)
    return replace(
        lattice, resolution=lattice.resolution / scale, shard_px=lattice.core_px * scale * together
    )  # fmt: skip


def finer_grid(parent: CubeGrid, scale: int, boxes: Sequence[BBox] = ()) -> CubeGrid | None:
    """The parent's ground, whole cores of it, on the finer lattice; with `boxes` only cores that touch one of them.

    None where the boxes share no ground with what the parent was asked for.
    """
    parts = parent.parts
    if boxes:
        own = by_zone(boxes).get(parent.lattice.epsg, [])
        parts = tuple(sorted(met for a in own for b in parent.parts if (met := _meet(a, b)) is not None))
        if not parts:
            return None
    try:
        cores = CubeGrid.over(parent.lattice, parts, region=parent.region).cores if boxes else parent.cores
    except InputError:  # ground of no width
        return None
    lattice = finer_lattice(parent.lattice, scale)
    fine, n = CoreRange(*(edge * scale for edge in cores)), lattice.cores_per_shard
    row0, col0 = fine.row0 // n, fine.col0 // n
    rows, cols = -(-fine.row1 // n) - row0, -(-fine.col1 // n) - col0
    return CubeGrid(lattice, row0, col0, rows, cols, fine, parts, parent.together * scale, parent.region)


def _meet(a: BBox, b: BBox) -> BBox | None:
    west, south, east, north = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (west, south, east, north) if west < east and south < north else None


def derived_plan(
    parent: Plan,
    derivation: Derivation,
    grid: CubeGrid,
    times: Collection[int],
    request: Mapping[str, Any],
    numerics: Mapping[str, Any],
) -> Plan:
    """The plan of a cube that is made from a parent's, at the times of these indices.

    Scenes go along as what they are of the parent: whose ground and time it is. None of them is read.
    """
    steps = tuple(parent.times[i] for i in sorted(times))
    used = {i for step in steps for i in step.scene_ids}
    scenes = tuple(scene for scene in parent.scenes if scene.id in used)
    return Plan(
        parent.product, grid, steps, scenes, request, numerics=numerics, derived=derivation,
    )  # fmt: skip


def parents_time(parent: Plan, step: TimeStep) -> int:
    """The index of a time step among the parent's, which may have grown since. KeyError where it has it no more."""
    try:
        return parent.times.index(step)
    except ValueError:
        raise KeyError(f"{step} is no time of the parent") from None


def coarse_cores(grid: CubeGrid, scale: int, row: int, col: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(n, n, 2): row and column on the zone's lattice of the parent's cores that a shard of the arrays holds."""
    n = grid.lattice.cores_per_shard // scale
    place = grid.lattice_shard(row, col)
    rows, cols = np.mgrid[place.row * n : (place.row + 1) * n, place.col * n : (place.col + 1) * n]
    return np.stack([rows, cols], axis=-1)
