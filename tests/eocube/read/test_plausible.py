"""Windows too dark to be ground are said loudly: in the receipt, the run's last lines, status, info and the report."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rich.console import Console

from eocube.plan.plan import Plan, WorkUnit
from eocube.products.base import Models
from eocube.read.plausible import is_dark
from eocube.report.info import describe, info, status
from eocube.run import job as run
from eocube.run.driver import RunTally
from eocube.run.options import Cube, Limits
from eocube.run.unit import UnitRunner
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.store.receipts import Receipt, State, WindowResult
from eocube.store.store import CubeStore
from tests.eocube.cubes import fullest, make_plan, make_weights
from tests.eocube.rasters import s2, tif
from tests.eocube.run.test_unit import Means
from tests.eocube.run.test_unit import over as over_files


def test_dark_is_almost_all_of_a_window_in_every_band() -> None:
    sensor = s2("B02", "B05")
    land = {10: np.full((1, 256, 256), 2500, np.uint16), 20: np.full((1, 130, 130), 3000, np.uint16)}
    night = {10: np.full((1, 256, 256), 1000, np.uint16), 20: np.full((1, 130, 130), 1001, np.uint16)}
    below = {10: np.full((1, 256, 256), 1, np.uint16), 20: np.full((1, 130, 130), 500, np.uint16)}
    water = {10: np.full((1, 256, 256), 1400, np.uint16), 20: np.full((1, 130, 130), 1010, np.uint16)}  # bright in blue
    assert [is_dark(g, sensor) for g in (land, night, below, water)] == [False, True, True, False]
    coast = {10: night[10].copy(), 20: night[20]}
    coast[10][:, :26] = 2500
    assert not is_dark(coast, sensor)
    backscatter = {10: np.full((2, 256, 256), -25.0, np.float32)}
    assert not is_dark(backscatter, get_sensor("S1RTC"))


def encoded(plan: Plan, folder: Path) -> tuple[CubeStore, Receipt]:
    store = CubeStore.create(folder / "cube.zarr", plan)
    runner = UnitRunner(plan, store, Models({"fp32": Means}, None, None), Limits(encode_threads=2))  # type: ignore[arg-type]
    receipt = runner.run(WorkUnit(0, *fullest(plan)))
    runner.close()
    return store, receipt


def test_a_run_says_which_items_are_too_dark(tmp_path: Path) -> None:
    """Digital numbers read with a scale a thousand times too small, as an item with a wrong raster:bands has them."""
    plan = over_files(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    (scene,) = plan.scenes
    small = Radiometry(1e-7, 0.0, 0.0, "dn", "declared")
    dark = replace(plan, scenes=(replace(scene, sources=tuple(replace(s, radiometry=small) for s in scene.sources)),))
    store, receipt = encoded(dark, tmp_path)
    ok = sum(w.state is State.OK for w in receipt.windows)
    assert ok > 1 and receipt.dark == {scene.id: ok}
    assert Receipt.from_json(receipt.to_json()).dark == receipt.dark
    store.log.append([receipt])
    summary = store.finalise()
    assert summary.dark == {scene.id: ok}
    said = io.StringIO()
    run.report(Console(file=said, width=200, soft_wrap=True), [Cube(dark, str(store.target))], RunTally(), [summary])
    line = next(line for line in said.getvalue().splitlines() if "warning" in line)
    assert f"{scene.id}: {ok} windows lie almost wholly under a reflectance of 0.005 in every band" in line
    url = str(tmp_path / "cube.zarr")
    assert status(url).too_dark == info(url).too_dark == {scene.id: ok}
    assert scene.id in describe(status(url).document()).partition("too_dark")[2]
    # What an earlier run left is counted on when other windows of the shard are done again.
    again = Receipt(receipt.unit, 0, receipt.shard, receipt.windows, sha256=receipt.sha256, dark=receipt.dark)
    kept = UnitRunner(dark, store, Models({"fp32": Means}, None, None), Limits(encode_threads=2))  # type: ignore[arg-type]
    assert kept.run(WorkUnit(0, *fullest(dark), keep=again.to_json())).dark == receipt.dark
    kept.close()


def test_ordinary_windows_and_those_without_data_are_not_dark(tmp_path: Path) -> None:
    plan = over_files(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    _, receipt = encoded(plan, tmp_path)
    assert receipt.dark == {} and "dark" not in receipt.to_json()
    assert any(w.state is State.OK for w in receipt.windows)
    (tmp_path / "none").mkdir()
    (scene,) = plan.scenes
    with rasterio.open(scene.sources[0].href) as source:
        tif(tmp_path / "zeros.tif", np.zeros(source.shape, np.uint16), transform=source.transform, crs=source.crs)
    nothing = tuple(replace(s, href=str(tmp_path / "zeros.tif")) for s in scene.sources)
    empty = replace(plan, scenes=(replace(scene, sources=nothing),))
    _, receipt = encoded(empty, tmp_path / "none")
    assert {w.state for w in receipt.windows} == {State.NODATA} and receipt.dark == {}


def test_receipts_of_earlier_versions_name_no_dark_windows() -> None:
    line = Receipt("t", 0, (0, 0), (WindowResult(0, 0, State.OK),)).to_json()
    assert "dark" not in line and Receipt.from_json(line).dark == {}


@pytest.mark.parametrize("valid", [np.uint16(1050), np.uint16(1049)])
def test_the_limit_is_a_reflectance(valid: np.uint16) -> None:
    assert is_dark({10: np.full((1, 64, 64), valid)}, s2()) == (valid < 1050)
