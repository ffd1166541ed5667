"""Bounds what an actor holds, whatever the number of units and of windows in each: as a formula."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from rich.filesize import decimal

from eocube.plan.plan import Plan
from eocube.raster.opening import BLOCK_CACHE, CURL_CACHE
from eocube.read.areas import Area, Layout
from eocube.run.options import Limits
from eocube.run.pool import UNITS_PER_ACTOR

log = logging.getLogger(__name__)

_READING = 4
"""Windows' worth of arrays that a thread works with while it reads one: raw, warped, their masks."""
_AREA_COPIES = 3
"""Copies of an area's pixels at most while it is read: as they travel, as they were stored, which of them are there."""
SHARD_COPIES = 5
"""Copies of a shard's values at most while it is put together and written: stored, packed, the object's parts."""
_OPEN_RASTERS = 96 * 64 * 2**10
"""Bytes of the headers of the rasters that a reading thread keeps open."""


def window_bytes(plan: Plan) -> int:
    """Bytes of one window's pixels at their native sampling, halo included, with its mask."""
    lattice, sensor = plan.grid.lattice, plan.sensor
    item = np.dtype(sensor.dtype).itemsize
    pixels = sum(len(bands) * lattice.group_size(sampling) ** 2 * item for sampling, bands in _groups(plan))
    return pixels + lattice.core**2


def _groups(plan: Plan) -> list[tuple[int, tuple[int, ...]]]:
    return [(sampling, tuple(bands)) for sampling, bands in plan.sensor.groups(plan.grid.lattice.metres).items()]


def area_bytes(plan: Plan, limits: Limits) -> int:
    """Bytes of the pixels, without overlaps, of the rows of windows that are read as one."""
    lattice, sensor = plan.grid.lattice, plan.sensor
    across = lattice.cores_per_shard
    area = Area(0, 0, min(limits.rows or across, across), across)
    item = np.dtype(sensor.dtype).itemsize
    shapes = ((Layout.of_group(lattice, area, s).shape, len(bands)) for s, bands in _groups(plan))
    return sum(bands * high * wide * item for (high, wide), bands in shapes)


def actor_bytes(plan: Plan, limits: Limits, *, batch: int = 1, units: int = UNITS_PER_ACTOR) -> int:
    """Upper bound of the host memory that an actor's units take, in bytes, beside the encoder and the libraries.

        units x (3 x area + (windows + (encode_threads + 3) x batch) x window + 5 x channels x cells^2 x bytes a value)
        + read_threads x (4 x window + open rasters) + GDAL's two caches

    Per unit, `rows` rows of windows are read as one: `area` without their overlaps, in up to three copies; of windows
    with gaps, and of those read alone, each has its own pixels. `encode_threads + 2` batches wait for the encoder or
    for being put into the shard, one is being gathered. `cells` are those along a shard.
    Nothing in it grows with the number of units. Beside it an actor holds the plan itself, some kB a scene.
    """
    window = window_bytes(plan)
    product = plan.product
    value = np.dtype(product.storage.dtype).itemsize
    lattice = plan.grid.lattice
    shard = SHARD_COPIES * product.channels * lattice.shard**2 * value
    across = lattice.cores_per_shard
    held = across * min(limits.rows or across, across) + (limits.encode_threads + 3) * batch
    reading = limits.read_threads * (_READING * window + _OPEN_RASTERS)
    return (
        units * (_AREA_COPIES * area_bytes(plan, limits) + held * window + shard) + reading + BLOCK_CACHE + CURL_CACHE
    )


SHARE = 0.5
"""Share of the memory there is that an actor's units are planned with: the encoder and the libraries take the rest."""


def fitted(plan: Plan, limits: Limits, available: int | None, *, batch: int = 1) -> Limits:
    """Limits with fewer threads and rows read at once where an actor's units would not fit into a share of the memory.

    Which windows are encoded how does not depend on them, so that the same bytes come out. The least there is where
    even that does not fit: then it is said, with what would.

    Args:
        plan: of the cube.
        limits: as asked for; their `memory` counts before what is available.
        available: bytes that this process may use (`eocube.run.memory_limit`); None where that is not known.
        batch: windows that are encoded at once.
    """
    if limits.memory is None and available is None:
        return limits
    room, asked = limits.memory or SHARE * (available or 0), limits
    while actor_bytes(plan, limits, batch=batch) > room:
        rows = limits.rows or plan.grid.lattice.cores_per_shard
        less = replace(limits, read_threads=max(1, limits.read_threads // 2), rows=max(1, rows // 2))
        if less == limits:
            less = replace(limits, encode_threads=max(1, limits.encode_threads // 2))
        if less == limits:
            break
        limits = less
    needs = actor_bytes(plan, limits, batch=batch)
    if needs > room:
        log.warning(
            "an encoding actor may need %s beside the encoder, and %s: give it more, or run fewer actors on it",
            decimal(needs), f"--memory leaves it {decimal(limits.memory)}" if limits.memory else
            f"this machine or container has {decimal(available or 0)} of memory",
        )  # fmt: skip
    elif limits != asked:
        log.info("fewer threads for %s of memory: %s", decimal(int(room)), limits)
    return limits
