"""Reads Sen2NAIP: Sentinel-2 and aerial pictures of one ground, a folder an area with metadata.json, lr.tif, hr.tif."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from rasterio.errors import RasterioError

from eocube.errors import InputError, SourceError
from eocube.pairs.encoding import with_statistics
from eocube.pairs.pixel_pairs import Floats, PairNote, PixelPair, Transform
from eocube.pairs.wald import STEP, where_data
from eocube.products.lone_windows import fit_sensor, load
from eocube.sensors.builtin import SENSORS
from eocube.sensors.sensor import Sensor

SCALE, SIDE = 4, 512
"""As published: 121 px of 10 m are resampled to 128, 484 px of 2.5 m to 512."""
BANDS = ("B04", "B03", "B02", "B08")
LEVEL = "naip"
LR_STATISTICS = ((1302.9685, 1085.2820, 764.7739, 2769.4824), (780.8768, 513.2825, 414.3385, 793.6396))
"""(mean, std) of the low resolution in reflectance * 1e4, as published; `encode_pairs --published` takes them."""
HR_STATISTICS = ((125.1176, 121.9117, 100.0240, 143.8500), (39.8066, 30.3501, 28.9109, 28.8952))
"""(mean, std) of the high resolution in 8-bit counts, as published: the weights have none of aerial pictures."""
_FILES = ("metadata.json", "lr.tif", "hr.tif")


def naip(weights: str) -> Sensor:
    """The aerial pictures as a sensor: red, green, blue, near infrared at the wavelengths that the weights know.

    8-bit counts, z-scored by the published statistics. Resampled counts are no whole numbers, so they travel as
    256ths. InputError where the weights do not know RGBN.
    """
    sensor = fit_sensor(SENSORS["RGBN"], load(weights))
    bands = tuple(replace(band, gsd=1) for band in sensor.bands)
    sensor = replace(
        sensor, name="NAIP", bands=bands, unit="dn8", scale=1 / 256, offset=0.0, unit_factor=1.0, collections={},
        mask_assets=(), trained_as="RGBN",
    )  # fmt: skip
    return with_statistics(sensor, *HR_STATISTICS)


@dataclass(frozen=True, slots=True)
class _Area:
    folder: Path
    note: PairNote


class Sen2Naip:
    """The pairs of a folder of Sen2NAIP. Only headers are read before a pair is.

    Args:
        folder: with one folder an area.
        side: pixels that the high resolution is resampled to, bilinear and half-pixel exact; a quarter of it the low.

    Raises:
        InputError: no areas, files missing of one, CRS or bands that differ within one, or sizes that are no multiples.
    """

    scale = SCALE
    bands = BANDS

    def __init__(self, folder: str | Path, side: int = SIDE) -> None:
        root = Path(folder)
        if side % (STEP * SCALE) or side < 1:
            raise InputError(f"--side {side}: take a multiple of {STEP * SCALE} px")
        if not root.is_dir():
            raise InputError(f"no folder {root}: give the one that has a folder an area of Sen2NAIP")
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        if not folders:
            raise InputError(f"{root} has no folders: Sen2NAIP has one an area with {', '.join(_FILES)}")
        self.side = side
        self.skipped: Counter[str] = Counter()
        self._areas = [_area(path, side) for path in folders]
        self.notes = [area.note for area in self._areas]

    @property
    def document(self) -> dict[str, Any]:
        """What the pairs are."""
        return {"kind": "sen2naip", "resampling": "bilinear", "side": self.side}

    def read(self, index: int) -> PixelPair:
        """One pair: `lr` reflectance, `hr` 8-bit counts. SourceError where it cannot be read."""
        area, note = self._areas[index], self.notes[index]
        low = _resampled(_read(area.folder / "lr.tif") * np.float32(1e-4), self.side // SCALE)
        high = _resampled(_read(area.folder / "hr.tif"), self.side)
        return PixelPair(note.id, low, high, BANDS, note.epsg, note.transform, note.place, note.split)


def read_sen2naip(folder: str | Path, side: int = SIDE) -> Iterator[PixelPair]:
    """The pairs of a folder one after the other, as `Sen2Naip` reads them."""
    source = Sen2Naip(folder, side)
    return (source.read(k) for k in range(len(source.notes)))


def _area(folder: Path, side: int) -> _Area:
    """Look at an area. InputError in one line for what is wrong with it."""
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise InputError(f"{folder} is unpaired, it has no {', '.join(missing)}: complete it or move it away")
    try:
        said = json.loads((folder / _FILES[0]).read_text())
        with rasterio.open(folder / "lr.tif") as low, rasterio.open(folder / "hr.tif") as high:
            if low.crs != high.crs or low.crs is None:
                raise InputError(f"{folder}: lr.tif is in {low.crs}, hr.tif in {high.crs}: both need one CRS")
            epsg = low.crs.to_epsg()
            if said.get("proj:epsg") not in (None, epsg):
                raise InputError(f"{folder}: metadata.json says EPSG:{said['proj:epsg']}, its rasters {low.crs}")
            if not low.count == high.count == len(BANDS):
                raise InputError(
                    f"{folder}: lr.tif has {low.count} bands, hr.tif {high.count}: both need {len(BANDS)} (red, green, "
                    "blue, near infrared)"
                )
            if high.shape != tuple(SCALE * n for n in low.shape) or low.shape[0] != low.shape[1]:
                raise InputError(
                    f"{folder}: hr.tif has {high.shape[0]}x{high.shape[1]} px, lr.tif {low.shape[0]}x{low.shape[1]}: "
                    f"need squares, {SCALE} times as many along each"
                )
            t, shrunk = high.transform, high.shape[0] / side
    except RasterioError as error:
        raise InputError(f"{folder}: {str(error).splitlines()[0]}") from None
    except (ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}/metadata.json is no JSON object: {error}") from None
    transform: Transform = (t.a * shrunk, t.b * shrunk, t.c, t.d * shrunk, t.e * shrunk, t.f)
    name = str(said.get("id") or folder.name)
    return _Area(folder, PairNote(name, name, LEVEL, round(abs(t.a) * shrunk, 4), side, None, epsg, transform))


def _read(path: Path) -> Floats:
    """(C, H, W) float32, NaN where the file has none."""
    try:
        with rasterio.open(path) as dataset:
            return where_data(dataset.read(), dataset.nodata)
    except RasterioError as error:
        raise SourceError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _resampled(x: Floats, side: int) -> Floats:
    """(C, n, n) -> (C, side, side), bilinear about pixel centres."""
    found: Floats = F.interpolate(torch.from_numpy(x)[None], size=(side, side), mode="bilinear")[0].numpy()
    return found
