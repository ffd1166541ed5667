"""Small cubes for tests: random weights, a real plan and store, latents that need no scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eocube.ground.grid import CubeGrid, grids_for
from eocube.plan.plan import Plan, TimeStep, WorkUnit
from eocube.products.eo_vae_document import Encoding, latents
from eocube.read.coverage import pack_clouds, pack_missing
from eocube.read.source_shares import percent
from eocube.run.arguments import EncodeOptions, typed
from eocube.run.request import Request
from eocube.sensors import get_sensor
from eocube.sensors.sensor import Sensor
from eocube.store.moments import Moments
from eocube.store.receipts import Receipt, State, WindowResult, pack_mask
from eocube.store.store import CubeStore
from model.eo_vae import EOVAE, EOVAEConfig
from model.weights import load_weights, save_weights
from model.weights_meta import SensorMeta, WeightsMeta

CORE, HALO, SHARD = 6, 2, 12
TINY = EOVAEConfig(
    ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, norm_groups=2, hypernet_layers=1, wavelength_dim=16,
    hypernet_ff=16, hypernet_heads=2,
)  # fmt: skip
BBOX = (11.500, 48.100, 11.518, 48.112)
TIMES = ("2023-08-15T09:57:57Z", "2023-08-20T09:57:57Z")


def sensor_of(name: str) -> Sensor:
    sensor = get_sensor(name)
    return sensor.subset([b for b in ("B02", "B03", "B04", "B08") if b in sensor.band_names] or sensor.band_names)


def parsed(options: EncodeOptions) -> Request:
    """The request of a command with these arguments, on a CPU."""
    selection, running, _ = typed(options)
    return Request.parse(selection, running, on_gpu=False)


def make_weights(path: Path, seed: int = 0) -> Path:
    """Random weights that know S2L2A (four bands) and S1RTC."""
    torch.manual_seed(seed)
    sensors = {}
    for name in ("S2L2A", "S1RTC"):
        s = sensor_of(name)
        unit = {"reflectance": "reflectance*1e4", "dB": "dB"}[s.unit]
        bands = s.bands
        sensors[name] = SensorMeta(
            s.band_names, tuple(b.wavelength for b in bands), tuple(b.mean for b in bands),
            tuple(b.std for b in bands), unit, True, "test",
        )  # fmt: skip
    meta = WeightsMeta("tiny", TINY, sensors, "none", "CC0-1.0", "2026-11-21")
    save_weights(EOVAE(TINY).eval(), path, meta)
    return path


def make_plan(weights: Path, sensor: str = "S2L2A", storage: str = "fp16", times: tuple[str, ...] = TIMES) -> Plan:
    vae = load_weights(weights)
    assert vae.meta is not None
    grid: CubeGrid = grids_for(BBOX, 10, core_px=CORE * 8, halo_px=HALO * 8, shard_px=SHARD * 8)[0]
    quantisation = ((0.05,) * 4, (0.1, 0.0, -0.1, 0.2)) if storage in ("int8", "codes") else None
    encoding = Encoding(str(weights), "tiny", vae.meta.sha256, 4, 8, "fp32", storage, quantisation)
    steps = tuple(TimeStep(t, "sentinel-2a", f"group-{t}", (f"scene-{t}",)) for t in times)
    return Plan(
        latents(sensor_of(sensor).with_weights(vae.meta), encoding, grid.lattice), grid, steps, (), {"bbox": list(BBOX)}
    )


def fullest(plan: Plan) -> tuple[int, int]:
    """The shard with the most windows asked for."""
    return max(plan.grid.shards(), key=lambda s: sum(map(plan.grid.requested, plan.grid.windows_of_shard(*s))))


@dataclass(frozen=True)
class Made:
    """A store, the plan it follows and the latents that were written, float32, NaN where no window is ok."""

    url: str
    plan: Plan
    latents: np.ndarray


def make_store(
    url: str,
    plan: Plan,
    bad: dict[tuple[int, int, int], State] | None = None,
    valid: np.ndarray | None = None,
    missing: np.ndarray | None = None,
    clouds: np.ndarray | None = None,
) -> Made:
    """Write smooth random latents: every requested window ok but `bad` ones, named by (time, row, column).

    The same at every time: `valid` (ny, nx) percent, `missing` pixels (ny * stride, nx * stride), which give `valid`
    unless it is given, and `clouds` (2, ny, nx) percent.
    """
    stride = plan.grid.lattice.stride
    if missing is not None and valid is None:
        there = ~missing.reshape(plan.grid.shape[0], stride, plan.grid.shape[1], stride)
        valid = percent(there.mean(axis=(1, 3)))
    bad = bad or {}
    store = CubeStore.create(url, plan)
    grid, core = plan.grid, plan.grid.lattice.core
    units = [WorkUnit(t, r, c) for t in range(len(plan.times)) for r, c in sorted(grid.shards())]
    rng = np.random.default_rng(5)
    ny, nx = grid.shape
    y, x = np.mgrid[:ny, :nx] / 7.0
    phase = rng.uniform(0, 6, (len(plan.times), plan.product.channels, 1, 1))
    latents = np.sin(y + phase) * np.cos(x - phase) + 0.1 * rng.normal(
        size=(len(plan.times), plan.product.channels, ny, nx)
    )
    latents = latents.astype("float16").astype("float32")
    for unit in units:
        results = []
        for window in grid.windows_of_shard(unit.row, unit.col):
            if not grid.requested(window):
                state = State.OUTSIDE
            else:
                state = bad.get((unit.time, *grid.place_in_status(window)), State.OK)
            wy, wx = grid.place_in_status(window)
            box = np.s_[unit.time, :, wy * core : (wy + 1) * core, wx * core : (wx + 1) * core]
            mask = gone = cloudy = None
            if state is not State.OK:
                latents[box] = np.nan
            elif valid is not None:
                mask = pack_mask(valid[box[2:]])
            if state is State.OK and missing is not None:
                fine = tuple(slice(s.start * stride, s.stop * stride) for s in box[2:])
                gone = pack_missing(missing[fine], stride)
            if state is State.OK and clouds is not None:
                cloudy = pack_clouds(clouds[:, *box[2:]])
            results.append(WindowResult(wy, wx, state, valid_percent=100, valid_mask=mask, missing=gone, clouds=cloudy))
        s = grid.lattice.shard
        block = latents[unit.time, :, unit.row * s : (unit.row + 1) * s, unit.col * s : (unit.col + 1) * s]
        _, sha256 = store.write_shard(unit.time, unit.row, unit.col, store.storage.pack(block))
        store.commit(
            [Receipt(unit.key, unit.time, (unit.row, unit.col), tuple(results), sha256=sha256,
                     moments=Moments.of(block))]
        )  # fmt: skip
    store.finalise()
    return Made(url, plan, latents)


def held_back(made: Made, folder: Path) -> tuple[CubeStore, list[Receipt]]:
    """A store of the same plan that has all shards but knows of none yet, and their receipts."""
    whole = CubeStore.open(made.url)
    receipts = list(whole.receipts())
    store = CubeStore.create(str(folder), made.plan)
    for receipt in receipts:
        block = whole.read_shard(receipt.time, *receipt.shard)
        store.write_shard(receipt.time, *receipt.shard, block)
    store.finalise()
    return store, receipts
