"""What an actor holds stays under the stated bound, and does not grow with the number of units."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eocube.ground.grid import Window, grids_for
from eocube.plan.plan import Plan, TimeStep, WorkUnit
from eocube.products.base import Models
from eocube.products.eo_vae_document import Encoding, latents
from eocube.raster.opening import BLOCK_CACHE, CURL_CACHE
from eocube.read.shard import Asked
from eocube.read.window_pixels import Mask, WindowPixels
from eocube.run.memory import actor_bytes, window_bytes
from eocube.run.options import Limits
from eocube.run.pool import UNITS_PER_ACTOR
from eocube.run.unit import UnitRunner
from eocube.scenes.search import Scene
from eocube.sensors import get_sensor
from eocube.store.store import CubeStore
from tests.eocube.cubes import fullest

LIMITS = Limits(read_threads=4, encode_threads=2, rows=2)
TIMES = 6


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A whole shard of a hundred windows of the default size, at several times."""
    grid = grids_for((11.3, 48.0, 11.9, 48.4), 10)
    encoding = Encoding("none", "none", "00", 4, 8, "fp32", "fp16")
    sensor = get_sensor("S2L2A")
    scene = Scene(
        "S2A", "c", "2023-08-15T09:57:57Z", "sentinel-2a", "g", "", 32632, (10, 47, 13, 49), None, None, None, (), None
    )  # fmt: skip
    steps = tuple(TimeStep(f"2023-08-{d:02d}T09:57:57Z", "sentinel-2a", "g", ("S2A",)) for d in range(1, TIMES + 1))
    return Plan(latents(sensor, encoding, grid[0].lattice), grid[0], steps, (scene,))


class FullWindows:
    """Reads as fast as it is asked: every window in its full size, out of nothing."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.lattice = plan, plan.grid.lattice

    def read(self, scenes: Sequence[Scene], window: Window) -> WindowPixels:
        size = self.lattice.group_size
        groups = {
            sampling: np.ones((len(bands), size(sampling), size(sampling)), np.uint16)
            for sampling, bands in self.plan.sensor.groups(self.lattice.resolution).items()
        }
        valid = np.full((self.lattice.core, self.lattice.core), 100, np.uint8)
        return WindowPixels(groups, valid, 100, 255, (), sum(g.nbytes for g in groups.values()))

    def read_shard(
        self, wanted: Mapping[Window, Sequence[Scene]], max_cloud: float | None, submit: object
    ) -> dict[Window, Asked]:
        assert len(wanted) == 20
        return {window: (Mask(), self.read(scenes, window)) for window, scenes in wanted.items()}

    def close(self) -> None:
        return


def encode(pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """(B, 4, 32, 32) out of the first group's mean."""
    first = next(iter(pixels.values())).to(torch.float32)
    return first.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 4, 32, 32).contiguous()


def peak(plan: Plan, store: CubeStore, units: Sequence[WorkUnit]) -> int:
    """Bytes at the worst moment while the units are done, as many at once as an actor does."""
    models = Models({"fp32": lambda: encode}, None, None)  # type: ignore[arg-type,dict-item]
    runner = UnitRunner(plan, store, models, LIMITS, inputs=FullWindows(plan))  # type: ignore[arg-type]
    gc.collect()
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(UNITS_PER_ACTOR) as threads:
            receipts = list(threads.map(runner.run, units))
        assert all(len(r.windows) == 100 for r in receipts)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        runner.close()


def test_memory_is_bounded_whatever_the_number_of_units(plan: Plan, tmp_path: Path) -> None:
    store = CubeStore.create(tmp_path / "cube.zarr", plan)
    place = fullest(plan)
    units = [WorkUnit(t, *place) for t in range(TIMES)]
    few, many = peak(plan, store, units[:2]), peak(plan, store, units)
    bound = actor_bytes(plan, LIMITS) - BLOCK_CACHE - CURL_CACHE  # GDAL has no part in this
    assert many < bound
    assert many < 1.25 * few
    whole = UNITS_PER_ACTOR * 100 * window_bytes(plan.product, plan.grid.lattice)
    assert bound < whole, "less than the windows of two shards: it bounds"
    assert actor_bytes(plan, replace(LIMITS, rows=None)) > bound + BLOCK_CACHE + CURL_CACHE


def test_the_bound_at_the_defaults_is_that_of_a_laptop(plan: Plan) -> None:
    assert window_bytes(plan.product, plan.grid.lattice) > 4 * 256**2 * 2  # the four bands of 10 m alone
    assert actor_bytes(plan, Limits()) < 1.0 * 2**30
