"""Measures weights on rasters of a sensor of one's own: on the blocks of ground held out, beside plain yardsticks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import metrics
from model.eo_vae import EOVAE
from model.sensors import Floats, TrainedSensor
from model.training.batch import Batch
from model.training.eo_vae.evaluate import RANGES
from model.training.eo_vae.feeds import Data
from model.training.eo_vae.klt import BLOCK, Klt, to_blocks

FITTED = 32
"""Training batches that the KLT is fitted on."""
UNITS = {"reflectance*1e4": "reflectance", "dB": "dB", "dn8": "counts"}


@dataclass(frozen=True, slots=True)
class Row:
    """How near one way of coding comes, over all held-out patches: RMSE and PSNR in physical units, SAM in radians."""

    rmse: float
    psnr: float
    sam: float | None
    rmse_z: float
    by_band: Mapping[str, float]
    """RMSE of each band, in physical units."""


@dataclass(frozen=True, slots=True)
class Study:
    """What was measured: `rows` by what coded it, the weights first."""

    weights: str
    sensor: str
    unit: str
    patches: int
    pixels: int
    numbers: int
    """Numbers that each 8 x 8 block is coded in."""
    rows: Mapping[str, Row]

    def document(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)


@torch.no_grad()
def measure(vae: EOVAE, data: Data, name: str) -> Study:
    """Score weights on `data.held_out`, beside a KLT of as many numbers a block and beside 8 x 8 means.

    The KLT (PCA of 8 x 8 blocks, all bands together) is fitted on training batches: the best that is linear.

    Raises:
        ValueError: nothing is held out; weights whose latents are not of 8 pixels.
    """
    if not data.held_out:
        raise ValueError(
            "nothing is held out: the rasters lie in too few blocks of ground; give more of them, or a recipe with "
            "smaller blocks"
        )
    if vae.scale_factor != BLOCK:
        raise ValueError(f"latents of {vae.scale_factor} pixels: the yardsticks are of {BLOCK} x {BLOCK}")
    numbers = vae.config.z_channels
    sensor = data.held_out[0].sensor
    klt = _fitted([data.source.draw(4, data.held_out[0].x.shape[-1]) for _ in range(FITTED)], numbers)
    vae.eval()

    def decoded(batch: Batch) -> Floats:
        waves = batch.wavelengths
        found: Floats = vae.decode(vae.encode(batch.x, waves).mode(), waves).numpy()
        return found

    def of_each(one: Callable[[Floats], Floats]) -> Callable[[Batch], Floats]:
        return lambda batch: np.stack([one(image) for image in batch.x.numpy()])

    ways: dict[str, Callable[[Batch], Floats]] = {
        name: decoded, f"KLT-{numbers}": of_each(klt.reconstruct), "8 x 8 means": of_each(_means),
    }  # fmt: skip
    rows = {
        way: _row([(batch.x.numpy(), coded(batch)) for batch in data.held_out], sensor) for way, coded in ways.items()
    }
    patches = sum(len(batch.x) for batch in data.held_out)
    pixels = patches * data.held_out[0].x.shape[-1] ** 2
    return Study(name, sensor.name, UNITS.get(sensor.unit, sensor.unit), patches, pixels, numbers, rows)


def _fitted(batches: Sequence[Batch], numbers: int) -> Klt:
    blocks = np.concatenate([to_blocks(image) for batch in batches for image in batch.x.numpy()]).astype(np.float64)
    mean = blocks.mean(axis=0)
    values = np.linalg.eigh((blocks - mean).T @ (blocks - mean) / len(blocks))[1]
    return Klt(mean, np.ascontiguousarray(values[:, ::-1][:, :numbers]))


def _means(z: Floats) -> Floats:
    channels, height, width = z.shape
    means = z.reshape(channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean(axis=(2, 4))
    spread: Floats = means.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
    return spread


def _row(pairs: Sequence[tuple[Floats, Floats]], sensor: TrainedSensor) -> Row:
    """Of (truth, coded) batches (B, C, H, W) of z-scores."""
    truth, coded = (np.moveaxis(np.concatenate(side), 1, 0) for side in zip(*pairs, strict=True))
    a, b = sensor.physical(coded), sensor.physical(truth)
    several = len(sensor.bands) > 1 and sensor.unit != "dB"
    return Row(
        metrics.rmse(a, b), metrics.psnr(a, b, RANGES[sensor.unit]), metrics.sam(a, b) if several else None,
        metrics.rmse(coded, truth), {band: metrics.rmse(a[k], b[k]) for k, band in enumerate(sensor.bands)},
    )  # fmt: skip


def markdown(study: Study) -> str:
    """The study for people."""
    lines = [
        f"# {study.weights} on {study.sensor}",
        "",
        f"{study.patches} patches ({study.pixels / 1e6:.2f} million pixels) of ground that was not trained on; "
        f"{study.numbers} numbers an 8 x 8 block but for the means, which have one a band.",
        "",
        f"| coded by | PSNR, dB | RMSE, {study.unit} | SAM, rad | RMSE (z) |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in study.rows.items():
        sam = "" if row.sam is None else f"{row.sam:.4f}"
        lines.append(f"| {name} | {row.psnr:.1f} | {row.rmse:.4g} | {sam} | {row.rmse_z:.4f} |")
    first = next(iter(study.rows.values()))
    lines += ["", f"RMSE of {study.weights} by band, {study.unit}: "]
    lines[-1] += ", ".join(f"{band} {value:.4g}" for band, value in first.by_band.items())
    return "\n".join(lines) + "\n"


def write(study: Study, folder: Path) -> list[Path]:
    """report.json and report.md; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "report.json", folder / "report.md"]
    paths[0].write_text(json.dumps(study.document(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(study), encoding="utf-8")
    return paths
