"""One work unit in one process: threads share one encoder, and how windows are read shows in no byte."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rasterio.warp import transform_bounds

from eocube.demo.files import write_cog
from eocube.ground.grid import Window
from eocube.plan.plan import Plan, WorkUnit
from eocube.products.base import Models
from eocube.read.reader import WindowReader
from eocube.read.shard import Asked
from eocube.run.options import Limits
from eocube.run.shard_values import ShardValues
from eocube.run.unit import UnitRunner
from eocube.scenes.scene import BandSource
from eocube.scenes.search import Scene
from eocube.sensors.radiometry import Radiometry
from eocube.store.receipts import Receipt, State
from eocube.store.store import CubeStore
from tests.eocube.cubes import fullest, make_plan, make_weights


def test_threads_that_start_together_build_one_encoder(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    store = CubeStore.create(tmp_path / "cube.zarr", plan)
    made: list[object] = []
    together = threading.Barrier(4)

    def slow_maker() -> object:
        threading.Event().wait(0.05)  # long enough for the others to come by
        made.append(object())
        return made[-1]

    runner = UnitRunner(plan, store, Models({"fp32": slow_maker}, None, None), Limits())  # type: ignore[arg-type,dict-item]

    def ask(_: int) -> object:
        together.wait()
        return runner._encoder("fp32")

    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(ask, range(4)))
    runner.close()
    assert len(made) == 1 and all(encoder is made[0] for encoder in got)


def over(plan: Plan, folder: Path) -> Plan:
    """The plan over one scene of local files that covers a shard, with a pixel of nodata and a cloudy corner."""
    lattice = plan.grid.lattice
    left, bottom, right, top = (
        v + by for v, by in zip(plan.grid.shard_bounds(*fullest(plan)), (-600, -600, 600, 600), strict=True)
    )
    size = int(right - left) // 10
    image = np.random.default_rng(0).integers(1, 9000, (1, size, size)).astype(np.uint16)
    image[0, size // 4, size // 4] = 0
    write_cog(folder / "band.tif", image, lattice.epsg, left, top, 10.0, 0, "average")
    classes = np.full((1, size // 2, size // 2), 4, np.uint8)
    classes[0, size // 4 :, size // 4 :] = 9
    write_cog(folder / "scl.tif", classes, lattice.epsg, left, top, 20.0, 0, "nearest")
    dn, kinds = Radiometry(1e-4, -0.1, 0.0, "dn", "test"), Radiometry(1, 0, 0, "dn", "classes")
    bands = tuple(BandSource(band.name, "band", str(folder / "band.tif"), 1, dn) for band in plan.sensor.bands)
    scene = Scene(
        plan.times[0].scene_ids[0], "c", "2023-08-15T09:57:57Z", "S2A", "g", "", lattice.epsg,
        transform_bounds(lattice.epsg, 4326, left, bottom, right, top), None, None, None, bands,
        BandSource("SCL", "scl", str(folder / "scl.tif"), 1, kinds),
    )  # fmt: skip
    return replace(plan, times=plan.times[:1], scenes=(scene,))


class Means:
    """The mean of each 8 x 8 pixels of the first four bands of 10 m."""

    channels, stride = 4, 8

    def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels[10][:, :4].float(), 8)


class Alone(WindowReader):
    """Reads every window on its own."""

    def read_shard(self, *_: Any) -> dict[Window, Asked]:
        return {}


@pytest.mark.parametrize("max_cloud", [None, 50.0])
def test_how_windows_are_read_shows_neither_in_the_shard_nor_in_the_receipt(
    tmp_path: Path, max_cloud: float | None
) -> None:
    plan = over(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    found: list[tuple[bytes, Receipt]] = []
    for kind, rows in ((Alone, None), (WindowReader, None), (WindowReader, 1)):
        store = CubeStore.create(tmp_path / f"{len(found)}.zarr", plan)
        models = Models({"fp32": Means}, None, None)  # type: ignore[arg-type]
        limits = Limits(encode_threads=2, max_cloud=max_cloud, rows=rows)
        with kind(plan.sensor, plan.grid.lattice) as inputs:
            runner = UnitRunner(plan, store, models, limits, inputs=inputs)
            receipt = runner.run(WorkUnit(0, *fullest(plan)))
            runner.close()
        shard = (tmp_path / f"{len(found)}.zarr" / store.shard_key(0, *fullest(plan))).read_bytes()
        found.append((shard, replace(receipt, seconds=0.0, created="")))
    assert found[0] == found[1] == found[2]
    states = [window.state for window in found[0][1].windows]
    assert State.OK in states and (State.CLOUDY in states) == (max_cloud is not None)


def test_units_are_read_together_and_encoded_in_turn(tmp_path: Path) -> None:
    """While one unit is encoded the next is read: reading two takes two threads at once, encoding never two units."""
    plan = over(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    both_read = threading.Barrier(2, timeout=20)

    class Meeting(WindowReader):
        def read_shard(self, *asked: Any) -> dict[Window, Asked]:
            both_read.wait()
            return super().read_shard(*asked)

    busy: set[int] = set()
    seen: list[set[int]] = []

    class Noting(Means):
        def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
            seen.append(set(busy))
            return super().__call__(pixels)

    store = CubeStore.create(tmp_path / "cube.zarr", plan)
    models = Models({"fp32": Noting}, None, None)  # type: ignore[arg-type]
    runner = UnitRunner(plan, store, models, Limits(encode_threads=1), inputs=Meeting(plan.sensor, plan.grid.lattice))
    plain = runner._turn

    class Turn:
        def __enter__(self) -> None:
            plain.acquire()
            busy.add(threading.get_ident())

        def __exit__(self, *_: object) -> None:
            busy.discard(threading.get_ident())
            plain.release()

    runner._turn = Turn()  # type: ignore[assignment]
    unit = WorkUnit(0, *fullest(plan))
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(runner.run, (unit, unit))
    runner.close()
    assert one.sha256 == two.sha256 and seen and max(map(len, seen)) == 1


def test_a_unit_that_fails_leaves_the_turn_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = over(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    store = CubeStore.create(tmp_path / "cube.zarr", plan)
    runner = UnitRunner(plan, store, Models({"fp32": Means}, None, None), Limits())  # type: ignore[arg-type]
    unit = WorkUnit(0, *fullest(plan))
    with monkeypatch.context() as broken:
        broken.setattr(ShardValues, "_pack", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError) as kept:
            runner.run(unit)
    assert kept is not None and runner.run(unit).windows  # while the failure, and all that it holds, is still there
    runner.close()


class Latents:
    """As `Means`, but as an encoder in float16 gives them: narrow, or the same numbers widened."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
        assert pixels[10].shape[0] == 5
        return (torch.nn.functional.avg_pool2d(pixels[10][:, :4].float(), 8) / 7).half().to(self.dtype)


def test_float16_from_the_encoder_gives_the_same_bytes_in_whole_batches(tmp_path: Path) -> None:
    """A window's place in its batch follows from its place in the shard; windows of no data leave theirs blank."""
    plan = over(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    shards = []
    for dtype in (torch.float16, torch.float32):
        store = CubeStore.create(tmp_path / f"{dtype}.zarr", plan)
        models = Models({"fp16": lambda dtype=dtype: Latents(dtype)}, None, None, batch=5)  # type: ignore[misc,dict-item]
        runner = UnitRunner(plan, store, models, Limits(max_cloud=50.0))
        receipt = runner.run(WorkUnit(0, *fullest(plan)))
        runner.close()
        assert {State.OK, State.CLOUDY} <= {window.state for window in receipt.windows}
        shards.append((tmp_path / f"{dtype}.zarr" / store.shard_key(0, *fullest(plan))).read_bytes())
    assert shards[0] == shards[1]
