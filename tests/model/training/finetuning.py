"""A finetuning in small: GeoTIFFs of a made-up sensor, tiny weights to start from, a short recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
import yaml
from rasterio.transform import from_origin

from jobs.finetune import Options
from model.eo_vae import EOVAE, EOVAEConfig
from model.weights import published_meta, save_weights
from tests.model.training.batches import TINY
from tests.model.training.conftest import landscape

BANDS = ("blue", "green", "red", "nir")


def raster(path: Path, seed: int, bands: int = 4, east: float = 0.0, described: bool = False) -> None:
    """A GeoTIFF of 96 px at 10 m; where `described`, of five bands, the first of which the sensor does not know."""
    data = landscape(seed, bands, 96).astype(np.uint16)
    profile = dict(driver="GTiff", count=bands, height=96, width=96, dtype="uint16", crs="EPSG:32633", nodata=0,
                   transform=from_origin(500_000 + east, 5_300_000, 10, 10))  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(data)
        if described:
            dataset.descriptions = ("extra", *BANDS)


def sensor_file(path: Path) -> Path:
    """The sensor, without statistics, as a user describes it."""
    waves = (0.49, 0.56, 0.665, 0.842)
    bands = [dict(name=n, wavelength=w, gsd=10) for n, w in zip(BANDS, waves, strict=True)]
    path.write_text(yaml.safe_dump(dict(name="Dove4", unit="reflectance", scale=0.0001, bands=bands)))
    return path


def short_finetuning(
    folder: Path, *, steps: int = 4, checkpoint_steps: int | None = None, config: EOVAEConfig = TINY
) -> Options:
    """A short finetuning on rasters of places 60 km apart, from tiny weights, without Ray; all of it in `folder`."""
    data = folder / "rasters"
    data.mkdir()
    for number in range(4):
        raster(data / f"r{number}.tif", number, east=60_000.0 * number)
    torch.manual_seed(0)
    save_weights(EOVAE(config), folder / "tiny.safetensors", replace(published_meta(config), name="tiny"))
    stage = dict(name="adapt", steps=steps, batch=2, patch=48, optimiser="adam", schedule="warmup_cosine", warmup=1,
                 margin=4, lr=1e-3, loss={"charbonnier": 1.0})  # fmt: skip
    recipe = dict(stages=[stage], precision="fp32", division="shares", augment="symmetries", ema=0.5, seed=1,
                  held_out_share=0.4, dtype="float32", checkpoint_steps=checkpoint_steps)  # fmt: skip
    (folder / "short.yaml").write_text(yaml.safe_dump(recipe))
    return Options(
        str(data), str(folder / "dove.safetensors"), str(folder / "short.yaml"), sensor_file(folder / "dove.yaml"),
        init=str(folder / "tiny.safetensors"), name="dove", workers=0, threads=1, storage=str(folder / "runs"),
    )  # fmt: skip
