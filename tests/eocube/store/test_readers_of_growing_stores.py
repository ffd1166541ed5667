"""Reads a store while it grows, by those who opened it before: at every moment their windows are in their places."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import eocube
from eocube.net.objects import Objects
from eocube.plan.plan import Plan
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from tests.faults.killing import CORE, WRITES, check_readable, drive, plan_of, scene

ROOM = (11.465, 48.080, 11.550, 48.140)
GROWTH = {
    "inside its extent, north and west": ((11.500, 48.100, 11.518, 48.112), (11.470, 48.100, 11.518, 48.135), ROOM),
    "south and east": ((11.500, 48.100, 11.518, 48.110), (11.500, 48.085, 11.540, 48.110), None),
}


def plan(box: Sequence[float], extent: Sequence[float] | None, *days: int) -> Plan:
    return plan_of(box, [scene(d) for d in days], (min(days), max(days)), extent)


@pytest.fixture(params=["disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "cube.zarr")
    return f"s3://{request.getfixturevalue('s3_server').bucket()}/cube.zarr"


def test_who_opened_before_reads_the_same_ground_afterwards() -> None:
    """The quick one: of 24 windows 24 showed other ground when shards moved."""
    small, _, extent = GROWTH["inside its extent, north and west"]
    url = f"memory://{uuid.uuid4().hex}/cube.zarr"
    drive(url, plan(small, extent, 10))
    readers = Readers(url)
    drive(url, plan((11.490, 48.100, 11.518, 48.118), extent, 10))
    readers.look()
    assert readers.looks == 1 and CubeStore.open(url).verify() == []


class Readers:
    """Datasets that were opened, lazily, before the store grew; `look` reads them whole and compares."""

    def __init__(self, url: str) -> None:
        self.was = xr.open_zarr(url).load()
        # Both keep the metadata they found and nothing that they have read.
        self._plain = xr.open_dataset(url, engine="zarr", cache=False)
        self._dask = eocube.open(url)
        self.looks = 0

    def look(self, *, dask: bool = False) -> None:
        for seen in (self._plain, self._dask) if dask else (self._plain,):
            assert dict(seen.sizes) == dict(self.was.sizes)
            for name in ("latent", "valid", "psnr", "time", "platform", "x", "y", "wx", "wy", "status", "requested"):
                old, now = self.was[name].values, seen[name].values
                if name in ("latent", "valid", "psnr", "status", "requested"):
                    old, now = (np.where(self._ok(name, v), v, 0) for v in (old, now))
                assert np.array_equal(old, now, equal_nan=old.dtype.kind == "f"), name
        self.looks += 1

    def _ok(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Where the windows that were ok lie in an array."""
        ok: np.ndarray[Any, Any] = self.was.status.values == State.OK
        if name == "requested":
            return ok.any(0)
        if name in ("latent", "valid"):
            ok = ok.repeat(CORE, 1).repeat(CORE, 2)
        return ok[:, None] if name == "latent" else ok


@pytest.fixture
def after_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`after_writes(step, look)`: look after every so many writing storage calls of the driver, made one at a time."""

    def watch(step: int, look: Any) -> None:
        lock, calls = threading.RLock(), iter(range(10**9))
        for name in WRITES:
            call = getattr(Objects, name)

            def watched(*args: Any, call: Any = call, **how: Any) -> Any:
                with lock:
                    done = call(*args, **how)
                    if next(calls) % step == 0:
                        look()
                    return done

            monkeypatch.setattr(Objects, name, watched)

    yield watch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not in order of time")
@pytest.mark.parametrize("how", GROWTH)
def test_who_opened_before_reads_the_same_ground_all_along(url: str, how: str, after_writes: Any) -> None:
    small, large, extent = GROWTH[how]
    drive(url, plan(small, extent, 10, 15))
    readers = Readers(url)
    assert int((readers.was.status == State.OK).sum()) >= 12
    corner = CubeStore.open(url).document["grid"]["transform"]

    after_writes(20, readers.look)
    drive(url, plan(large, extent, 5, 10, 15, 20))
    readers.look(dask=True)
    assert readers.looks >= 6 and check_readable(url)
    store = CubeStore.open(url)
    assert store.document["grid"]["transform"] == corner and store.verify() == []
    # New ground is seen by who opens it now, not by who opened it before.
    assert xr.open_zarr(url).sizes["time"] == 4 and readers.was.sizes["time"] == 2
