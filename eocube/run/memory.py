"""Bounds what an actor holds, whatever the number of units and of windows in each: as a formula."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from rich.filesize import decimal

from eocube.errors import InputError
from eocube.ground.lattice import Lattice
from eocube.plan.plan import Plan
from eocube.products.spec import Product
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


_GATHERED = 4
"""Copies of a batch's pixels on a GPU: two that are gathered, two that the network's buffers hold."""
_PINNED = 2
"""Bytes of pinned memory for each that is asked for: torch rounds up to powers of two."""


def window_bytes(product: Product, lattice: Lattice) -> int:
    """Bytes of one window's pixels at their native sampling, halo included, with its mask."""
    item = np.dtype(product.sensor.dtype).itemsize
    groups = _groups(product, lattice)
    return sum(bands * lattice.group_size(sampling) ** 2 * item for sampling, bands in groups) + lattice.core**2


def _groups(product: Product, lattice: Lattice) -> list[tuple[int, int]]:
    return [(sampling, len(bands)) for sampling, bands in product.sensor.groups(lattice.metres).items()]


def windows_at_once(lattice: Lattice, limits: Limits, batch: int) -> int:
    """Windows of a shard that are read as one: the whole batches in as many rows as the limits allow, one at least."""
    across = lattice.cores_per_shard
    rows = min(limits.rows or across, across)
    return across**2 if rows == across else min(across**2, max(batch, rows * across // batch * batch))


def area_bytes(product: Product, lattice: Lattice, windows: int) -> int:
    """Bytes of the pixels, without overlaps, of so many windows that are read as one."""
    across = lattice.cores_per_shard
    rows = windows // across if windows % across == 0 else windows // across + 2
    area = Area(0, 0, min(rows, across), across)
    item = np.dtype(product.sensor.dtype).itemsize
    shapes = ((Layout.of_group(lattice, area, s).shape, bands) for s, bands in _groups(product, lattice))
    return sum(bands * high * wide * item for (high, wide), bands in shapes)


def _values_bytes(product: Product, lattice: Lattice, windows: int) -> int:
    """Bytes of the encoder's values of so many windows, halo included, as float32."""
    cells = lattice.core + 2 * (lattice.halo if lattice.halo_is_cells else 0)
    return windows * product.channels * cells**2 * 4


def actor_bytes(plan: Plan, limits: Limits, *, batch: int = 1, gpu: bool = False, units: int = UNITS_PER_ACTOR) -> int:
    """Upper bound of the host memory that an actor's units take, in bytes, beside the encoder and the libraries.

        units x (3 x area + (windows + (encode_threads + 3) x batch) x window + 5 x channels x cells^2 x bytes a value)
        + read_threads x (4 x window + open rasters) + GDAL's two caches

    Per unit, `rows` rows of windows are read as one (whole batches of them): `area` without their overlaps, in up to
    three copies; of windows with gaps, and of those read alone, each has its own pixels. `encode_threads + 2` batches
    wait for the encoder or for being put into the shard, one is being gathered. `cells` are those along a shard.
    On a GPU nothing is gathered here; what crosses, area + windows x window, lies once more in pinned memory, and so
    do the values that come back, both rounded up to powers of two.
    Nothing in it grows with the number of units. Beside it an actor holds the plan itself, some kB a scene.
    """
    product, lattice = plan.product, plan.grid.lattice
    window = window_bytes(product, lattice)
    value = np.dtype(product.storage.dtype).itemsize
    shard = SHARD_COPIES * product.channels * lattice.shard**2 * value
    windows = windows_at_once(lattice, limits, batch)
    area = area_bytes(product, lattice, windows)
    if gpu:
        values = _values_bytes(product, lattice, windows)
        held = windows * window + _PINNED * (area + windows * window + values)
    else:
        held = (windows + (limits.encode_threads + 3) * batch) * window
    reading = limits.read_threads * (_READING * window + _OPEN_RASTERS)
    return units * (_AREA_COPIES * area + held + shard) + reading + BLOCK_CACHE + CURL_CACHE


def card_bytes(product: Product, lattice: Lattice, limits: Limits, *, batch: int, units: int = UNITS_PER_ACTOR) -> int:
    """Upper bound of a GPU's memory that an actor's units take, in bytes, beside the network.

        units x (area + windows x window) + 4 x batch x window + 2 x the values of a batch

    What is read as one lies there once, windows with gaps and those read alone beside it; two batches are gathered and
    two in the network's buffers, and the values of two are on their way back.
    """
    windows, window = windows_at_once(lattice, limits, batch), window_bytes(product, lattice)
    held = area_bytes(product, lattice, windows) + windows * window
    return units * held + _GATHERED * batch * window + 2 * _values_bytes(product, lattice, batch)


SHARE = 0.5
"""Share of the memory there is that an actor's units are planned with: the encoder and the libraries take the rest."""


def fitted(plan: Plan, limits: Limits, available: int | None, *, batch: int = 1, card: int | None = None) -> Limits:
    """Limits with fewer threads and rows read at once where an actor's units would not fit into a share of the memory.

    Which windows are encoded how does not depend on them, so that the same bytes come out. The least there is where
    even that does not fit: then it is said, with what would.

    Args:
        plan: of the cube.
        limits: as asked for; their `memory` counts before what is available.
        available: bytes that this process may use (`eocube.run.memory_limit`); None where that is not known.
        batch: windows that are encoded at once.
        card: bytes of a GPU that this process may use; None where it uses none.

    Raises:
        InputError: the GPU does not hold what units take of it.
    """
    asked, gpu = limits, card is not None
    if card is not None:
        limits = _on_card(plan, limits, batch, card)
    if limits.memory is None and available is None:
        return limits
    room = limits.memory or SHARE * (available or 0) / limits.mates
    while actor_bytes(plan, limits, batch=batch, gpu=gpu) > room:
        rows = limits.rows or plan.grid.lattice.cores_per_shard
        less = replace(limits, read_threads=max(1, limits.read_threads // 2), rows=max(1, rows // 2))
        if less == limits:
            less = replace(limits, encode_threads=max(1, limits.encode_threads // 2))
        if less == limits:
            break
        limits = less
    needs = actor_bytes(plan, limits, batch=batch, gpu=gpu)
    if needs > room:
        log.warning(
            "an encoding actor may need %s beside the encoder, and %s: give it more, or run fewer actors on it",
            decimal(needs), f"--memory leaves it {decimal(limits.memory)}" if limits.memory else
            f"this machine or container has {decimal(available or 0)} of memory",
        )  # fmt: skip
    elif limits != asked:
        log.info("fewer threads for %s of memory: %s", decimal(int(room)), limits)
    return limits


def _on_card(plan: Plan, limits: Limits, batch: int, card: int) -> Limits:
    """Limits with fewer rows read at once where units would take more than a share of what there is of a GPU."""
    product, lattice = plan.product, plan.grid.lattice
    room = int(SHARE * card)
    while (needs := card_bytes(product, lattice, limits, batch=batch)) > min(limits.memory or room, room):
        less = replace(limits, rows=max(1, (limits.rows or lattice.cores_per_shard) // 2))
        if less == limits and needs > room:
            raise InputError(
                f"an actor's units take {decimal(needs)} of the GPU beside the network, in batches of {batch}, and "
                f"{decimal(room)} of its memory is there for them: give each actor more of a GPU (--gpus-per-actor), "
                "or free what others hold there"
            )
        if less == limits:
            break
        limits = less
    return limits


def card_memory(share: float) -> int:
    """Bytes of this process's GPU that it may use: a share of it, of what is free now.

    Below a whole one torch is held to the share: what would go beyond runs out of memory here, not in a neighbour.
    """
    import torch

    free, total = torch.cuda.mem_get_info()
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share)
    return min(free, int(total * min(1.0, share)))
