"""Describes the built-in sensors: the bands of `model.sensors`, the assets they lie in and the form they travel in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from eocube.sensors.sensor import Band, Sensor
from model import sensors as table
from model.sensors import TrainedSensor

# Sentinel-2's bands in Earth Search's words.
_COMMON: Mapping[str, str] = {
    "B01": "coastal",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1",
    "B06": "rededge2",
    "B07": "rededge3",
    "B08": "nir",
    "B8A": "nir08",
    "B09": "nir09",
    "B10": "cirrus",
    "B11": "swir16",
    "B12": "swir22",
}


def _bands(trained: TrainedSensor, assets: Callable[[str, int], tuple[str, ...]]) -> tuple[Band, ...]:
    """The bands of the table, each with the asset keys that `assets` gives for its name and sampling."""
    rows = zip(trained.bands, trained.wavelengths, trained.gsd, trained.mean, trained.std, strict=True)
    return tuple(Band(name, um, gsd, mean, std, assets(name, gsd)) for name, um, gsd, mean, std in rows)


def _msi_keys(name: str, gsd: int) -> tuple[str, ...]:
    """Earth Search's, Planetary Computer's (and Earth Search v0's) and CDSE's asset keys."""
    return _COMMON[name], name, f"{name}_{gsd}m"


def _sar_keys(name: str, _: int) -> tuple[str, ...]:
    return name.lower(), name, f"gamma0_{name.lower()}"


def _collections(**by_preset: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    # A plain dict: sensors are pickled to the workers, which a MappingProxyType cannot be.
    return {preset.replace("_", "-"): ids for preset, ids in by_preset.items()}


_L2A_COLLECTIONS = _collections(
    earth_search=("sentinel-2-c1-l2a", "sentinel-2-l2a"),
    planetary_computer=("sentinel-2-l2a",),
    cdse=("sentinel-2-l2a",),
)
_SCL = ("scl", "SCL", "SCL_20m")

S2L2A = Sensor(
    name="S2L2A",
    bands=_bands(table.S2L2A, _msi_keys),
    unit="reflectance",
    dtype="uint16",
    scale=1e-4,
    offset=-0.1,
    nodata=0.0,
    unit_factor=1e4,
    collections=_L2A_COLLECTIONS,
    mask_assets=_SCL,
)

S2L1C = Sensor(
    name="S2L1C",
    bands=_bands(table.S2L1C, _msi_keys),
    unit="reflectance",
    dtype="uint16",
    scale=1e-4,
    offset=-0.1,
    nodata=0.0,
    unit_factor=1e4,
    collections=_collections(earth_search=("sentinel-2-l1c",), cdse=("sentinel-2-l1c",)),
)

RGBN = Sensor(
    name="RGBN",
    bands=_bands(table.RGBN, _msi_keys),
    unit="reflectance",
    dtype="uint16",
    scale=1e-4,
    offset=-0.1,
    nodata=0.0,
    unit_factor=1e4,
    collections=_L2A_COLLECTIONS,
    mask_assets=_SCL,
)

S2RGB = Sensor(
    name="S2RGB",
    bands=tuple(
        replace(band, index=index)
        for index, band in enumerate(_bands(table.S2RGB, lambda *_: ("visual", "TCI_10m", "TCI")), start=1)
    ),
    unit="dn8",
    dtype="uint8",
    scale=1.0,
    offset=0.0,
    nodata=0.0,
    unit_factor=1.0,
    collections=_L2A_COLLECTIONS,
    mask_assets=_SCL,
)


def _sar(trained: TrainedSensor, **collections: tuple[str, ...]) -> Sensor:
    """A dual-polarised Sentinel-1 sensor in dB."""
    bands = _bands(trained, _sar_keys)
    return Sensor(trained.name, bands, "dB", "float32", 1.0, 0.0, math.nan, 1.0, _collections(**collections))


S1RTC = _sar(table.S1RTC, planetary_computer=("sentinel-1-rtc",))
S1GRD = _sar(
    table.S1GRD,
    earth_search=("sentinel-1-grd",),
    planetary_computer=("sentinel-1-grd",),
    cdse=("sentinel-1-grd",),
)

SENSORS: Mapping[str, Sensor] = MappingProxyType(
    {sensor.name: sensor for sensor in (S2L2A, S2L1C, S1RTC, S1GRD, S2RGB, RGBN)}
)
