"""Bounds what an actor holds, whatever the number of units and of windows in each: as a formula."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from rich.filesize import decimal

from eocube.plan.plan import Plan
from eocube.raster.opening import BLOCK_CACHE, CURL_CACHE
from eocube.run.options import Limits
from eocube.run.pool import UNITS_PER_ACTOR
from eocube.run.unit import STRIP

log = logging.getLogger(__name__)

_READING = 4
"""Windows' worth of arrays that a thread works with while it reads one: raw, warped, their masks."""
SHARD_COPIES = 5
"""Copies of a shard's values at most while it is put together and written: stored, packed, the object's parts."""
_OPEN_RASTERS = 96 * 64 * 2**10
"""Bytes of the headers of the rasters that a reading thread keeps open."""


def window_bytes(plan: Plan) -> int:
    """Bytes of one window's pixels at their native sampling, halo included, with its mask."""
    lattice, sensor = plan.grid.lattice, plan.sensor
    item = np.dtype(sensor.dtype).itemsize
    groups = sensor.groups(lattice.metres).items()
    return sum(len(bands) * lattice.group_size(sampling) ** 2 * item for sampling, bands in groups) + lattice.core**2


def actor_bytes(plan: Plan, limits: Limits, *, batch: int = 1, units: int = UNITS_PER_ACTOR) -> int:
    """Upper bound of the host memory that an actor's units take, in bytes, beside the encoder and the libraries.

        units x ((ahead + STRIP + (encode_threads + 3) x batch) x window + 5 x channels x cells^2 x bytes a value)
        + read_threads x (4 x window + open rasters) + GDAL's two caches

    Per unit, `ahead` windows (STRIP a reading thread, if that is more) are read and not yet taken, `encode_threads + 2`
    batches wait for the encoder or for being put into the shard, one is being gathered; windows that were read as one
    are let go as one. `cells` are those along a shard.
    Nothing in it grows with the number of units. Beside it an actor holds the plan itself, some kB a scene.
    """
    window = window_bytes(plan)
    product = plan.product
    value = np.dtype(product.storage.dtype).itemsize
    shard = SHARD_COPIES * product.channels * plan.grid.lattice.shard**2 * value
    held = max(limits.ahead, STRIP * limits.read_threads) + STRIP + (limits.encode_threads + 3) * batch
    reading = limits.read_threads * (_READING * window + _OPEN_RASTERS)
    return units * (held * window + shard) + reading + BLOCK_CACHE + CURL_CACHE


SHARE = 0.5
"""Share of the memory there is that an actor's units are planned with: the encoder and the libraries take the rest."""


def fitted(plan: Plan, limits: Limits, available: int | None, *, batch: int = 1) -> Limits:
    """Limits with fewer threads and less read ahead where an actor's units would not fit into a share of the memory.

    Which windows are encoded how does not depend on them, so that the same bytes come out. The least there is where
    even that does not fit: then it is said, with what would.

    Args:
        plan: of the cube.
        limits: as asked for.
        available: bytes that this process may use (`eocube.run.memory_limit`); None where that is not known.
        batch: windows that are encoded at once.
    """
    if available is None:
        return limits
    room, asked = SHARE * available, limits
    while actor_bytes(plan, limits, batch=batch) > room:
        less = replace(limits, read_threads=max(1, limits.read_threads // 2), ahead=max(1, limits.ahead // 2))
        if less == limits:
            less = replace(limits, encode_threads=max(1, limits.encode_threads // 2))
        if less == limits:
            break
        limits = less
    needs = actor_bytes(plan, limits, batch=batch)
    if needs > room:
        log.warning(
            "an encoding actor may need %s beside the encoder, and this machine or container has %s of memory: give "
            "it more, or run fewer actors on it", decimal(needs), decimal(available),
        )  # fmt: skip
    elif limits != asked:
        log.info("fewer threads for %s of memory: %s", decimal(available), limits)
    return limits
