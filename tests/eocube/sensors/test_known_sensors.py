"""Every sensor that the shipped weights claim is read, encoded and decoded by the names that eocube gives its bands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import eocube
from eocube.ground.grid import grids_for
from eocube.plan.plan import Plan, build_plan
from eocube.products import registry
from eocube.products.base import models_of
from eocube.products.eo_vae import LoadedWeights, load
from eocube.products.eo_vae_document import latents
from eocube.products.eo_vae_kind import encoding_of, fit_sensor
from eocube.read.reader import WindowReader
from eocube.run.options import Limits
from eocube.run.unit import UnitRunner
from eocube.scenes.items import scene_from_item
from eocube.scenes.scene import Scene
from eocube.sensors import get_sensor
from eocube.sensors.sensor import Sensor
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from model.sensors import SENSORS, own_names
from tests.eocube.cubes import BBOX, CORE, HALO, SHARD

CLAIMED = ("S2L2A", "S2L1C", "RGBN", "S1RTC", "S2RGB")
SIDE = 192


@pytest.fixture(scope="module")
def nano() -> LoadedWeights:
    return load("nano")


def scene_of(sensor: Sensor, plan_box: tuple[float, float], folder: Path) -> Scene:
    """A scene of the sensor, its pixels about the statistics' means, as a catalogue would give it."""
    west, north = plan_box
    rng, assets = np.random.default_rng(0), dict[str, Mapping[str, Any]]()
    layers: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
    for band in sensor.bands:
        noise = rng.normal(0, 0.02, (SIDE * 10 // band.gsd,) * 2)
        match sensor.unit:
            case "dB":
                pixels = (10 ** ((band.mean + noise) / 10)).astype(np.float32)
            case "dn8":
                pixels = np.clip(band.mean + 10 * noise, 1, 255).astype(np.uint8)
            case _:
                pixels = (band.mean * (1 + noise) + 1000).astype(np.uint16)
        layers.setdefault(band.assets[0], {})[band.index] = pixels
    for key, stack in layers.items():
        first = stack[1]
        path, step = folder / f"{key}.tif", SIDE * 10 / first.shape[0]
        with rasterio.open(
            path, "w", driver="GTiff", width=first.shape[1], height=first.shape[0], count=len(stack),
            dtype=first.dtype, crs="EPSG:32632", transform=from_origin(west, north, step, step),
        ) as file:  # fmt: skip
            for index, pixels in stack.items():
                file.write(pixels, index)
        assets[key] = {"href": str(path)}
    item = {
        "id": "one", "collection": "sentinel-1-rtc" if sensor.unit == "dB" else "mine", "bbox": list(BBOX),
        "assets": assets,
        "properties": {
            "datetime": "2023-08-15T10:00:00Z", "s2:processing_baseline": "05.09", "proj:epsg": 32632,
        },
    }  # fmt: skip
    return scene_from_item(item, sensor, str)


def plan_of(sensor: Sensor, weights: LoadedWeights, folder: Path) -> Plan:
    (grid,) = grids_for(BBOX, 10, core_px=CORE * 8, halo_px=HALO * 8, shard_px=SHARD * 8)
    left, _, _, top = grid.lattice.window_bounds(next(iter(grid.requested_windows())))
    scene = scene_of(sensor, (left - 100 - left % 60, top + 100 + (-top) % 60), folder)
    return build_plan(latents(sensor, encoding_of(weights, "fp32", "fp16"), grid.lattice), grid, [scene], {})


@pytest.mark.parametrize("name", CLAIMED)
def test_every_sensor_that_nano_claims_it_takes(name: str, nano: LoadedWeights, tmp_path: Path) -> None:
    sensor = fit_sensor(get_sensor(name), nano)
    plan = plan_of(sensor, nano, tmp_path)
    window = next(iter(plan.grid.requested_windows()))
    with WindowReader(sensor, plan.grid.lattice) as reader:
        pixels = reader.read(plan.scenes_of(0, window), window)
    models = models_of(registry.open(plan.product), "cpu", plan.numerics)
    side = plan.grid.lattice.window_px // 8
    latents = models.encoders["fp32"]()({s: torch.from_numpy(p)[None] for s, p in pixels.groups.items()})
    assert latents.shape == (1, 32, side, side) and latents.isfinite().all() and latents.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMED)
def test_its_cubes_decode_to_the_sensors_own_band_names(name: str, nano: LoadedWeights, tmp_path: Path) -> None:
    sensor = fit_sensor(get_sensor(name), nano)
    plan = plan_of(sensor, nano, tmp_path)
    store = CubeStore.create(tmp_path / "cube.zarr", plan)
    runner = UnitRunner(
        plan, store, models_of(registry.open(plan.product), "cpu", plan.numerics), Limits(verify_fraction=0.0)
    )
    try:
        receipts = [runner.run(unit) for unit in plan.units()]
    finally:
        runner.close()
    store.log.append(receipts)
    store.finalise()
    assert {w.state for r in receipts for w in r.windows} == {State.OK}
    decoded = eocube.open(str(tmp_path / "cube.zarr")).eocube.decode().compute()
    assert tuple(decoded.band.values) == get_sensor(name).band_names
    for band in get_sensor(name).bands:
        mean, near = float(decoded.sel(band=band.name).mean()), {"dB": 1.5, "dn8": 12.0}.get(sensor.unit, 0.03)
        assert mean == pytest.approx(band.mean / sensor.unit_factor, abs=near), band.name


def test_these_are_all_that_nano_claims(nano: LoadedWeights) -> None:
    assert set(nano.meta.sensors) == set(CLAIMED)


def test_weights_and_cubes_share_one_table(nano: LoadedWeights) -> None:
    for name, trained in SENSORS.items():
        sensor = get_sensor(name)
        assert sensor.band_names == trained.bands
        assert [(b.wavelength, b.mean, b.std, b.gsd) for b in sensor.bands] == list(
            zip(trained.wavelengths, trained.mean, trained.std, trained.gsd, strict=True)
        )
    for name, said in nano.meta.sensors.items():
        known = SENSORS[name]
        assert own_names(said.bands) == known.bands and said.wavelengths == known.wavelengths
        assert (said.mean, said.std) == (known.mean, known.std)
