"""A small world for tests of pairs: random weights that know RGBN, images, rasters, folders of Sen2NAIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine

from eocube.net.objects import Objects
from eocube.pairs.pair_plan import PairPlan
from eocube.pairs.wald import ArrayImage
from eocube.store.lease import is_lease
from model.eo_vae import EOVAE
from model.sensors import RGBN
from model.weights import save_weights
from model.weights_meta import SensorMeta, WeightsMeta
from tests.eocube.cubes import TINY

BANDS = ("B04", "B03", "B02", "B08")
NORTH = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_300_000.0)


def make_weights(path: Path, seed: int = 0) -> str:
    """Random weights that know RGBN."""
    torch.manual_seed(seed)
    sensor = SensorMeta(RGBN.bands, RGBN.wavelengths, RGBN.mean, RGBN.std, RGBN.unit, True, "test")
    save_weights(EOVAE(TINY).eval(), path, WeightsMeta("tiny", TINY, {"RGBN": sensor}, "none", "CC0-1.0", "2026-11-27"))
    return str(path)


def reflectance(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(4, H, W) in steps of 1e-4, as scenes come."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / 9.0
    ground = 0.2 + 0.1 * np.sin(y + rng.uniform(0, 6)) * np.cos(x) + 0.02 * rng.random((4, *shape))
    return (np.rint(ground * 1e4) * 1e-4).astype(np.float32)


def image(name: str, shape: tuple[int, int] = (160, 160), seed: int = 0, **how: Any) -> ArrayImage:
    said = {"level": "S2L2A", "resolution": 10.0, "epsg": 32632, "transform": NORTH, "split": "train", **how}
    return ArrayImage(name, said.pop("place", name), bands=BANDS, data=reflectance(shape, seed), **said)


def write_tif(
    path: Path, data: np.ndarray, epsg: int | None = 32632, transform: tuple[float, ...] = NORTH, **how: Any
) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2],
               "dtype": data.dtype.name, "transform": Affine(*transform), **how}  # fmt: skip
    if epsg is not None:
        profile["crs"] = f"EPSG:{epsg}"
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(data)
    return str(path)


def write_area(folder: Path, seed: int = 0, low: int = 15, at: tuple[float, float] = (500_000.0, 5_300_000.0)) -> Path:
    """An area of Sen2NAIP, `low` pixels a side at 10 m."""
    rng = np.random.default_rng(seed)
    x, y = at
    write_tif(folder / "lr.tif", rng.integers(200, 4000, (4, low, low), np.uint16), transform=(10, 0, x, 0, -10, y))
    write_tif(
        folder / "hr.tif", rng.integers(0, 256, (4, 4 * low, 4 * low), np.uint8), transform=(2.5, 0, x, 0, -2.5, y)
    )
    (folder / "metadata.json").write_text(json.dumps({"id": f"AOI_{folder.name}", "proj:epsg": 32632}))
    return folder


def objects_of(url: str | Path) -> dict[str, bytes]:
    """Every object of a store but the leases, which hold times."""
    target = Objects(str(url))
    return {key: target.get(key) or b"" for key in target.keys("") if not is_lease(key)}


def plan_in_units_of(plan: PairPlan, rows: int) -> PairPlan:
    return PairPlan(plan.rows, plan.forms, plan.document, plan.image_splits, rows)
