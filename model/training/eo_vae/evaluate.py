"""Scores held-out places: nano's reconstruction beside the KLT's, in z-scores and in physical units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import metrics
from model.eo_vae import EOVAE
from model.sensors import SENSORS, Floats, TrainedSensor
from model.training.eo_vae.klt import BLOCK, Klt, fit_klt
from model.training.sources.images import Image

HALO = 32
SIDE = 192
MOST_TILES = 4
RANGES = {"reflectance*1e4": 1.0, "dB": 40.0, "dn8": 255.0}
MODEL, LINEAR = "nano", "klt32"


@dataclass(frozen=True, slots=True)
class Place:
    """Tiles (C, H, W) of z-scores of one held-out image, sides multiples of 8 and at most 288.

    `image` is that image's name, `ground` the ground that it shares with others.
    """

    name: str
    sensor: TrainedSensor
    tiles: tuple[Floats, ...]
    image: str = ""
    ground: str = ""


def held_out_places(images: Sequence[Image], *, test: bool = False) -> list[Place]:
    """Every held-out image as its own sensor, and the twelve-band ones as RGBN and 8-bit RGB too: those of validation,
    or with `test` those that only the figures of a release may be of."""
    places = []
    for image in images:
        if not image.held_out or image.test != test:
            continue
        native = SENSORS[image.sensor].subset(image.bands)
        sensors = [native]
        if image.sensor == "S2L2A" and len(image.bands) == len(SENSORS["S2L2A"].bands):
            sensors += [SENSORS["RGBN"], SENSORS["S2RGB"]]
        for sensor in sensors:
            z = image.seen_by(sensor)
            tiles = () if z is None else tuple(_tiles(z))
            if tiles:
                name = f"{image.name} {sensor.name} {len(sensor.bands)}"
                places.append(Place(name, sensor, tiles, image.name, image.place))
    return places


def _tiles(z: Floats) -> Iterator[Floats]:
    """Up to four valid tiles, those with the most relief first, where an image is larger than a window's core."""
    height, width = z.shape[1] // BLOCK * BLOCK, z.shape[2] // BLOCK * BLOCK
    if height <= 1.5 * SIDE and width <= 1.5 * SIDE:
        yield z[:, :height, :width]
        return
    found = []
    for row in range(0, height - SIDE + 1, SIDE):
        for column in range(0, width - SIDE + 1, SIDE):
            tile = z[:, row : row + SIDE, column : column + SIDE]
            if np.isfinite(tile).all():
                found.append((float(tile.std()), row, column, tile))
    yield from (t[-1] for t in sorted(found, key=lambda t: t[:3], reverse=True)[:MOST_TILES])


@torch.no_grad()
def encoded(vae: EOVAE, z: Floats, sensor: TrainedSensor) -> Tensor:
    """Latents (1, z, h, w) of a tile (C, H, W) with its mirrored halo."""
    x = F.pad(torch.from_numpy(np.ascontiguousarray(z))[None], (HALO,) * 4, mode="reflect")
    return vae.encode(x, torch.tensor(sensor.wavelengths)).mode()


@torch.no_grad()
def decoded(vae: EOVAE, latents: Tensor, sensor: TrainedSensor) -> Floats:
    """The tile (C, H, W) of latents that have the halo."""
    pixels: Floats = vae.decode(latents, torch.tensor(sensor.wavelengths))[0].float().numpy()
    return pixels[:, HALO:-HALO, HALO:-HALO]


@torch.no_grad()
def reconstruct(vae: EOVAE, z: Floats, sensor: TrainedSensor) -> Floats:
    """Encode and decode (C, H, W) with a mirrored halo of 32 pixels, as a window at the edge of a swath."""
    return decoded(vae, encoded(vae, z, sensor), sensor)


def score(target: Sequence[Floats], prediction: Sequence[Floats], sensor: TrainedSensor) -> dict[str, float]:
    """Mean over tiles of each metric, z-space (PSNR and SSIM by the target's own range) and physical (fixed range)."""
    rows = []
    for t, p in zip(target, prediction, strict=True):
        spread = float(t.max() - t.min())
        row = {
            "rmse": metrics.rmse(p, t),
            "sam": metrics.sam(p, t),
            "psnr": metrics.psnr(p, t, spread),
            "ssim": metrics.ssim(p, t, spread),
        }
        span = RANGES[sensor.unit]
        a, b = sensor.physical(p), sensor.physical(t)
        row["rmse_physical"] = metrics.rmse(a, b)
        row["psnr_physical"] = metrics.psnr(a, b, span)
        row["ssim_physical"] = metrics.ssim(a, b, span)
        row["sam_physical"] = metrics.sam(a, b)
        if sensor.red_nir is not None:
            row["ndvi_mae"] = metrics.ndvi_mae(a, b, *sensor.red_nir)
        rows.append(row)
    return {key: float(np.mean([r[key] for r in rows])) for key in rows[0]}


@dataclass(slots=True)
class Evaluator:
    """Scores weights against the KLT of the same latent budget, fitted once on the training images."""

    places: Sequence[Place]
    linear: Mapping[str, dict[str, float]]

    @classmethod
    def build(cls, images: Sequence[Image], coefficients: int = 32, *, test: bool = False) -> Evaluator:
        """Fit one KLT for each set of bands among the validation places, or with `test` among the test places."""
        places = held_out_places(images, test=test)
        fitted: dict[tuple[str, tuple[str, ...]], Klt | None] = {}
        linear = {}
        for place in places:
            key = (place.sensor.name, place.sensor.bands)
            if key not in fitted:
                fitted[key] = fit_klt(images, place.sensor, coefficients)
            klt = fitted[key]
            if klt is not None:
                linear[place.name] = score(place.tiles, [klt.reconstruct(t) for t in place.tiles], place.sensor)
        return cls(places, linear)

    def table(
        self, vae: EOVAE, *, only: Callable[[Place], bool] = lambda _: True
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Place -> {nano, klt32} -> metric -> value, of the places that `only` wants."""
        out = {}
        for place in filter(only, self.places):
            predictions = [reconstruct(vae, t, place.sensor) for t in place.tiles]
            out[place.name] = {MODEL: score(place.tiles, predictions, place.sensor)}
            if place.name in self.linear:
                out[place.name][LINEAR] = self.linear[place.name]
        return out


def ratios(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """One line: each place's RMSE and SAM over the KLT's."""
    parts = []
    for name, row in table.items():
        if LINEAR in row:
            pair = [row[MODEL][m] / row[LINEAR][m] for m in ("rmse", "sam")]
            parts.append(f"{name.split(' ')[0][-9:]}/{name.split(' ')[1]} {pair[0]:.2f} {pair[1]:.2f}")
    return " | ".join(parts)


def markdown(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The table for people: nano / KLT-32 in each cell."""
    columns = ("rmse", "sam", "psnr", "ssim", "rmse_physical", "psnr_physical", "ssim_physical", "ndvi_mae")
    lines = [
        "Each cell: nano / KLT-32. RMSE, SAM (radians), PSNR and SSIM in z-scores (range: the tile's own), then in "
        "physical units (range 1 reflectance, 40 dB, 255 counts).",
        "",
        "| place, sensor, bands | RMSE | SAM | PSNR | SSIM | RMSE phys. | PSNR phys. | SSIM phys. | NDVI MAE |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        cells = []
        for column in columns:
            digits = 1 if "psnr" in column else 4
            pair = [f"{row[k][column]:.{digits}f}" for k in (MODEL, LINEAR) if k in row and column in row[k]]
            cells.append(" / ".join(pair) or "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
