"""A whole run in one process whose driver dies at any storage call: real plans, worker, log, lease and store.

Only the scenes and the encoder are stand-ins: pixels follow from ground and time, latents from pixels, so that every
latent of a store can be told from its coordinates alone. No Ray: a killed driver leaves what a killed actor does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from eocube.errors import SourceError
from eocube.ground.grid import CubeGrid, Window, grids_for
from eocube.net.objects import Objects
from eocube.plan.plan import Plan, build_plan
from eocube.products.base import Models
from eocube.products.eo_vae_document import Encoding, latents
from eocube.read.reader import WindowPixels
from eocube.run.extend import grow_plans
from eocube.run.options import Limits
from eocube.run.resume import Remaining
from eocube.run.unit import UnitRunner
from eocube.scenes.scene import Scene
from eocube.sensors import get_sensor
from eocube.store.fence import Fence
from eocube.store.lease import SETTLE, Lease
from eocube.store.receipts import State
from eocube.store.store import CubeStore

CORE, HALO, SHARD, CHANNELS, STRIDE = 6, 2, 12, 3, 8
SENSOR = get_sensor("S2L2A").subset(["B02"])
ENCODING = Encoding("stand-in", "stand-in", "00", CHANNELS, STRIDE, "fp32", "fp16")
WORLD = (10.0, 47.0, 13.0, 49.0)
WRITES = ("put", "create", "delete")


class Killed(BaseException):
    """The process is gone: nothing in it runs on."""


class Death:
    """Kills at the n-th writing storage call, before or after it takes effect; from then on no call gets through."""

    def __init__(self, at: int | None = None, *, after: bool = False) -> None:
        self.calls, self._at, self._after = 0, at, after
        self._lock = threading.Lock()
        self.dead = False

    @contextmanager
    def hanging_over(self) -> Iterator[Death]:
        """Every target made inside is under it."""
        with pytest.MonkeyPatch.context() as patch:
            for name in WRITES:
                patch.setattr(Objects, name, self._deadly(getattr(Objects, name)))
            yield self

    def _deadly(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **how: Any) -> Any:
            with self._lock:
                if self.dead:
                    raise Killed
                self.calls += 1
                mine = self.calls == self._at
                self.dead = mine
                if mine and not self._after:
                    raise Killed
                done = call(*args, **how)
                if mine:
                    raise Killed
                return done

        return guarded


def scene(day: int, *, bbox: tuple[float, float, float, float] = WORLD, name: str = "") -> Scene:
    """A scene of one datatake a day in August 2023, wide enough for everything unless said otherwise."""
    time = f"2023-08-{day:02d}T09:57:57Z"
    return Scene(
        f"S2A_{day:02d}{name}", "sentinel-2-l2a", time, "sentinel-2a", f"S2A_202308{day:02d}", time, 32632, bbox, None,
        None, None, (), None,
    )  # fmt: skip


def request_of(box: Sequence[float], days: tuple[int, int], **changes: Any) -> dict[str, Any]:
    first, last = (f"2023-08-{d:02d}T00:00:00+00:00" for d in days)
    return {"bbox": [list(box)], "datetime": [first, last], "catalog": "here", "max_cloud": None, **changes}


def plan_of(
    box: Sequence[float],
    scenes: Sequence[Scene],
    days: tuple[int, int] = (1, 31),
    extent: Sequence[float] | None = None,
    **changes: Any,
) -> Plan:
    """The plan of one zone's box, its arrays laid out over `extent` where there is one."""
    reserved = () if extent is None else (tuple(extent),)
    grid: CubeGrid = grids_for(tuple(box), 10, reserved, core_px=CORE * 8, halo_px=HALO * 8, shard_px=SHARD * 8)[0]  # type: ignore[arg-type]
    if extent is not None:
        changes["extent"] = [list(extent)]
    return build_plan(latents(SENSOR, ENCODING, grid.lattice), grid, scenes, request_of(box, days, **changes))


@dataclass
class Reader:
    """Stands in for the window reader: a pixel is a number of the window's place and the day; some windows fail."""

    failing: frozenset[tuple[int, int]] = frozenset()
    nodata: frozenset[tuple[int, int]] = frozenset()
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def read(self, scenes: Sequence[Scene], window: Window) -> WindowPixels:
        self.reads.append((scenes[0].group, window.row, window.col))
        if (window.row, window.col) in self.failing:
            raise SourceError("cut off", item=scenes[0].id, asset="blue")
        side = (CORE + 2 * HALO) * STRIDE
        there = (window.row, window.col) not in self.nodata
        value = value_of(int(scenes[0].group[-2:]), window.row, window.col)
        valid = np.full((CORE, CORE), 100 if there else 0, np.uint8)
        valid[0, 0] = min(valid[0, 0], 40)
        missing = np.zeros((CORE * STRIDE,) * 2, np.bool_)
        missing[:STRIDE, : STRIDE - value % STRIDE] = True  # another part of the first latent for every window
        clouds = np.zeros((2, CORE, CORE), np.uint8)
        clouds[:, 1, 1] = value % 3 * 20  # clear throughout, one in three
        groups = {10: np.full((1, side, side), value, np.uint16)}
        return WindowPixels(groups, valid, int(valid.mean()), int(clouds[0].mean()), (), 1, missing, clouds)

    def read_shard(self, wanted: object, max_cloud: float | None, submit: object) -> dict[Window, Any]:
        return {}

    def mask(self, scenes: Sequence[Scene], window: Window) -> tuple[int, int, int]:
        return 100, 255, 0

    def close(self) -> None:
        return


def value_of(day: int, row: int, col: int) -> int:
    """The pixels of a window: a number that no other window or day near it has."""
    return (day * 977 + row % 64 * 61 + col % 64) % 2000


def latent_of(value: int) -> np.ndarray[Any, Any]:
    """(CHANNELS,) of a window with that pixel."""
    return (value + 0.25 * np.arange(CHANNELS)).astype(np.float16)


def encoder(pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
    (image,) = pixels.values()
    mean = image.to(torch.float32).mean(dim=(1, 2, 3))
    side = CORE + 2 * HALO
    planes = mean[:, None] + 0.25 * torch.arange(CHANNELS)
    return planes[:, :, None, None].expand(-1, -1, side, side).contiguous()


def drive(
    url: str,
    asked: Plan,
    *,
    retry: Sequence[State] = (),
    reader: Reader | None = None,
    commit_every: int = 2,
    storage_options: Mapping[str, Any] | None = None,
    run_id: str = "run",
    settle: float = SETTLE,
) -> Reader:
    """One run of the driver, as `eocube.run.job` makes it: lease, plans, stores, what is left, log, finalise."""
    reader, given = reader or Reader(), storage_options
    with Lease(Objects(url, given), run_id, settle=settle) as lease:
        frozen = [Plan.from_json(t) for t in CubeStore.stored_plans(url, storage_options=given)]
        if frozen and frozen[0].request == asked.request:
            plan = frozen[0]
        else:
            plan = grow_plans(url, frozen, [asked])[0] if frozen else asked
        store = CubeStore.create(url, plan, storage_options=given, fence=lease)
        at_actor = CubeStore.open(url, storage_options=given, fence=Fence.of(lease.to_pass, given))
        left = Remaining(plan, store.log.latest(), retry)
        models = Models({"fp32": lambda: encoder}, lambda z: z, lambda p: next(iter(p.values())))  # type: ignore[arg-type,return-value]
        runner = UnitRunner(plan, at_actor, models, Limits(read_threads=1), run_id=run_id, inputs=reader)
        waiting = []
        try:
            for unit in left.units():
                waiting.append(runner.run(unit))
                if len(waiting) == commit_every:
                    lease.check()
                    store.commit(waiting)
                    waiting = []
            store.commit(waiting)
        finally:
            runner.close()
        if lease.took_over and not lease.exact:
            CubeStore.made_again(url, plan, storage_options=given, fence=lease)
        store.finalise()
    return reader


def objects(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Every object of a store but the log's segments and the lease, which hold times of day, run ids and order."""
    target = Objects(url, storage_options)
    found = {}
    for key in target.keys(""):
        if not (key.startswith("commits/") and key != "commits/plan.json" and key != "commits/layout.json"):
            data = target.get(key)
            assert data is not None
            found[key] = data
    return found


def receipts(url: str) -> list[dict[str, Any]]:
    """What counts in the log, without what differs from run to run: seconds, moment, bytes read, run id."""
    return [
        {
            "unit": r.unit, "sha256": r.sha256, "windows": r.windows, "moments": r.moments, "precision": r.precision,
            "bytes_out": r.bytes_out,
        }
        for r in CubeStore.open(url).receipts()
    ]  # fmt: skip


def check_readable(url: str) -> bool:
    """What plain xarray sees at this moment is true: every latent is its ground's, every ok window has its latents.

    False when there is no store to open just now.
    """
    import xarray as xr

    if Objects(url).get("zarr.json") is None:
        return False
    ds = xr.open_zarr(url, mask_and_scale=False, decode_times=True).load()
    status, latent = ds.status.values, ds.latent.values
    days = ds.time.dt.day.values
    side = CORE * STRIDE * 10
    assert latent.shape[0] == len(days) == len(ds.platform) == len(ds.scene_ids) and len(set(days)) == len(days)
    for t, i, j in np.ndindex(*status.shape):
        row, col = int(-ds.wy.values[i] // side), int(ds.wx.values[j] // side)
        box = np.s_[i * CORE : (i + 1) * CORE, j * CORE : (j + 1) * CORE]
        block = latent[t, :, *box]
        assert ds.y.values[i * CORE] < ds.wy.values[i] + side / 2 and ds.x.values[j * CORE] > ds.wx.values[j] - side / 2
        there = np.isfinite(block).all()
        assert there or np.isnan(block).all()
        if there:
            assert (block == latent_of(value_of(int(days[t]), row, col))[:, None, None]).all(), (t, i, j)
        if status[t, i, j] == State.OK:
            assert there and ds.requested.values[i, j] == 1
            assert ds.valid.values[t, *box].max() == 100
        assert status[t, i, j] != State.OUTSIDE or not there
    return True
