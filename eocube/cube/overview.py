"""Makes a cube's overview: decodes what has none yet, shard by shard, and the levels above what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eocube.cube.colours import picture_bands
from eocube.cube.opening import open as open_cube
from eocube.errors import InputError
from eocube.net.objects import Objects
from eocube.net.storage_options import options_for
from eocube.store.document import CubeInfo
from eocube.store.existing import zones_of
from eocube.store.fence import Fence
from eocube.store.overview import FOLDER, Floats, Overview, halved, made_bytes, made_key, made_of
from eocube.store.receipts import Receipt
from eocube.store.store import CubeStore

TOGETHER = 16
"""Shards after which it is noted what was made: what a killed run does again at most."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class OverviewMade:
    """What making an overview came to."""

    url: str
    shards: int
    """Decoded now."""
    kept: int
    """That had theirs."""
    bytes: int
    """Written now."""
    levels: int


def overview_of(ds: xr.Dataset, store: CubeStore) -> Overview:
    """The overview that a cube has or would have. InputError for one that is not decoded."""
    info: CubeInfo = ds.eocube.info
    if not info.product.decodes:
        raise InputError(f"{info.product.array} cubes ({info.product.kind}) are not decoded: there is nothing to see")
    spec = store.values
    assert spec.shards is not None
    side = spec.shards[2]
    grid = store.document["grid"]
    return Overview(
        picture_bands(info.sensor), info.sensor.unit, spec.shape[0], (spec.shape[2] // side, spec.shape[3] // side),
        side, tuple(map(float, grid["transform"])), int(str(grid["crs"]).rpartition(":")[2]),
    )  # fmt: skip


def make_overviews(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    group: str | None = None,
    again: bool = False,
    progress: Progress | None = None,
    fence: Fence | None = None,
    stop: Callable[[], bool] | None = None,
    workers: int | None = None,
) -> Iterator[OverviewMade]:
    """Make, or bring up to date, the overview of a cube, of each zone in turn.

    Only shards that were encoded since theirs was made are decoded; killed at any moment, the same call goes on.

    Args:
        url: of the cube.
        storage_options: fsspec options of it.
        group: one zone alone.
        again: make all of it again.
        progress: called with shards done and all.
        fence: of a run that holds the store; whatever is written asks it.
        stop: asked before each shard; what is left when it says so is for another call.
        workers: threads that decode; by default as many as there are cores.

    Raises:
        StoreError: no cube there, or one that cannot be written to.
        InputError: a cube that is not decoded.
    """
    options = options_for(url, storage_options)
    zones = (group,) if group is not None else zones_of(url, options) or (None,)
    for zone in zones:
        own = url if zone is None else f"{url.rstrip('/')}/{zone}"
        ds = open_cube(url, dict(options) or None, group=zone)
        store = CubeStore.open(own, storage_options=options, fence=fence)
        yield _make(own, ds, store, again, progress, stop or (lambda: False), workers)


def _make(
    url: str,
    ds: xr.Dataset,
    store: CubeStore,
    again: bool,
    progress: Progress | None,
    stop: Callable[[], bool],
    workers: int | None,
) -> OverviewMade:
    plan, target = overview_of(ds, store), store.target
    wanted: dict[int, dict[tuple[int, int], str]] = {time: {} for time in range(plan.times)}
    had = {time: {} if again else made_of(target, time) for time in wanted}
    status = ds["status"].values
    for receipt in store.receipts():
        place, known = (receipt.shard.row, receipt.shard.col), had[receipt.time]
        if receipt.sha256 is None:
            continue
        if known.get(place) == receipt.sha256 or _told(receipt, status):
            wanted[receipt.time][place] = receipt.sha256
        elif place in known:
            wanted[receipt.time][place] = known[place]
    missing = {
        time: [place for place, sha256 in shards.items() if had[time].get(place) != sha256]
        for time, shards in wanted.items()
    }
    for key, data in plan.metadata().items():
        target.put(key, data)
    everything = sum(map(len, missing.values()))
    done = written = 0
    for time, places in missing.items():
        gone = [place for place in had[time] if place not in wanted[time]]
        now = {place: had[time][place] for place in wanted[time] if place not in places}
        parts = [places[first : first + TOGETHER] for first in range(0, len(places), TOGETHER)] or [[]]
        for part in parts if places or gone else ():
            changed = set(gone)
            for row, col in part:
                if stop():
                    break
                written += put(plan, target, 0, time, row, col, decoded(ds, plan, time, row, col, workers))
                now[row, col] = wanted[time][row, col]
                changed.add((row, col))
                done += 1
                if progress is not None:
                    progress(done, everything)
            for row, col in gone:
                target.delete(plan.key(0, time, row, col))
            if changed:
                written += raise_levels(plan, target, time, changed)
                target.put(made_key(time), made_bytes(now))
    kept = sum(map(len, wanted.values())) - everything
    return OverviewMade(url, done, kept, written, plan.levels)


def _told(receipt: Receipt, status: NDArray[np.uint8]) -> bool:
    """Whether the arrays beside the values know of a shard yet: before, they do not say where it has pixels."""
    return all(status[receipt.time, w.row, w.col] == w.state for w in receipt.windows)


def decoded(ds: xr.Dataset, plan: Overview, time: int, row: int, col: int, workers: int | None = None) -> Floats:
    """(bands, block, block) means of a shard's decoded pixels, by its own values alone."""
    side = plan.side
    cut = ds.isel(
        time=[time], y=slice(row * side, (row + 1) * side), x=slice(col * side, (col + 1) * side)
    )  # fmt: skip
    given = {} if workers is None else {"num_workers": workers}
    pixels = cut.eocube.decode(list(plan.bands), crop=False).isel(time=0).compute(**given).values
    return halved(np.asarray(pixels, np.float32), plan.cells * ds.eocube.info.stride)


def raise_levels(plan: Overview, target: Objects, time: int, changed: set[tuple[int, int]]) -> int:
    """Make the objects above changed ones of level 0 from those they cover; bytes written."""
    written = 0
    for level in range(1, plan.levels):
        down, across = plan.blocks(level - 1)
        changed = {(row // 2, col // 2) for row, col in changed}
        for row, col in sorted(changed):
            parts = {
                (i, j): plan.read(target, level - 1, time, 2 * row + i, 2 * col + j)
                for i in range(2)
                for j in range(2)
                if 2 * row + i < down and 2 * col + j < across
            }
            written += put(plan, target, level, time, row, col, plan.above(parts))
    return written


def put(plan: Overview, target: Objects, level: int, time: int, row: int, col: int, pixels: Floats) -> int:
    """Write an object, or remove it where there is nothing in it; bytes written."""
    key, data = plan.key(level, time, row, col), plan.encode(pixels)
    if data is None:
        target.delete(key)
        return 0
    target.put(key, data)
    return len(data)


def has_overview(store: CubeStore) -> bool:
    """Whether a store has an overview, of any time."""
    return store.target.get(f"{FOLDER}/zarr.json") is not None
