"""The built-in sensors: band tables of Sentinel-2 and Sentinel-1 with the published statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from eocube.sensors import Band, Sensor

# Sentinel-2 MSI: band -> (wavelength in micrometres, native sampling in metres, Earth Search's asset key).
_MSI: dict[str, tuple[float, int, str]] = {
    "B01": (0.443, 60, "coastal"),
    "B02": (0.490, 10, "blue"),
    "B03": (0.560, 10, "green"),
    "B04": (0.665, 10, "red"),
    "B05": (0.705, 20, "rededge1"),
    "B06": (0.740, 20, "rededge2"),
    "B07": (0.783, 20, "rededge3"),
    "B08": (0.842, 10, "nir"),
    "B8A": (0.865, 20, "nir08"),
    "B09": (0.945, 60, "nir09"),
    "B10": (1.375, 60, "cirrus"),
    "B11": (1.610, 20, "swir16"),
    "B12": (2.190, 20, "swir22"),
}

# z-score statistics (mean, std) in reflectance * 1e4, without the offset of baseline 04.00: the "legacy" TerraMesh ones
# with which EO-VAE was published. The stored order of S2L2A is B01..B8A, B09, B11, B12; that of S2L1C has B09 (mean
# 1567, water vapour) before B10 (561: cirrus, dark in every scene).
_L2A_STATS: dict[str, tuple[float, float]] = {
    "B01": (1375.648, 2101.107),
    "B02": (1489.600, 2138.673),
    "B03": (1709.087, 2033.628),
    "B04": (1831.752, 2118.186),
    "B05": (2186.075, 2061.646),
    "B06": (2794.358, 1869.234),
    "B07": (3008.528, 1801.386),
    "B08": (3096.780, 1841.173),
    "B8A": (3155.180, 1734.404),
    "B09": (3169.651, 1751.174),
    "B11": (2415.761, 1375.131),
    "B12": (1838.622, 1284.165),
}
_L1C_STATS: dict[str, tuple[float, float]] = {
    "B01": (2475.625, 1761.905),
    "B02": (2260.839, 1804.267),
    "B03": (2143.561, 1661.263),
    "B04": (2230.225, 1932.020),
    "B05": (2445.427, 1918.007),
    "B06": (2992.950, 1812.421),
    "B07": (3257.843, 1795.179),
    "B08": (3171.695, 1734.280),
    "B8A": (3440.958, 1780.039),
    "B09": (1567.433, 1082.531),
    "B10": (561.076, 512.077),
    "B11": (2562.809, 1350.580),
    "B12": (1924.178, 1177.511),
}
_VISUAL_STATS: dict[str, tuple[float, float]] = {
    "B04": (110.349, 69.905),
    "B03": (99.507, 53.708),
    "B02": (75.843, 53.378),
}


def _msi_bands(stats: Mapping[str, tuple[float, float]]) -> tuple[Band, ...]:
    """Sentinel-2 bands with Earth Search's, Planetary Computer's (and Earth Search v0's) and CDSE's asset keys."""
    bands = []
    for name, (mean, std) in stats.items():
        wavelength, gsd, common = _MSI[name]
        bands.append(Band(name, wavelength, gsd, mean, std, (common, name, f"{name}_{gsd}m")))
    return tuple(bands)


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
    bands=_msi_bands(_L2A_STATS),
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
    bands=_msi_bands(_L1C_STATS),
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
    bands=_msi_bands({name: _L2A_STATS[name] for name in ("B04", "B03", "B02", "B08")}),
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
        Band(name, _MSI[name][0], 10, mean, std, ("visual", "TCI_10m", "TCI"), index)
        for index, (name, (mean, std)) in enumerate(_VISUAL_STATS.items(), start=1)
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


def _sar(name: str, stats: Mapping[str, tuple[float, float, float]], **collections: tuple[str, ...]) -> Sensor:
    """A dual-polarised Sentinel-1 sensor in dB; `stats` is band -> (wavelength as published, mean, std)."""
    bands = tuple(
        Band(band, wavelength, 10, mean, std, (band.lower(), band, f"gamma0_{band.lower()}"))
        for band, (wavelength, mean, std) in stats.items()
    )
    return Sensor(name, bands, "dB", "float32", 1.0, 0.0, math.nan, 1.0, _collections(**collections))


# VV and VH share one wavelength (5.55 cm); the published tokens 5.4 and 5.6 only tell them apart.
S1RTC = _sar(
    "S1RTC",
    {"VV": (5.4, -10.793, 4.278), "VH": (5.6, -17.198, 4.346)},
    planetary_computer=("sentinel-1-rtc",),
)
S1GRD = _sar(
    "S1GRD",
    {"VV": (5.4, -12.577, 5.179), "VH": (5.6, -20.265, 5.872)},
    earth_search=("sentinel-1-grd",),
    planetary_computer=("sentinel-1-grd",),
    cdse=("sentinel-1-grd",),
)

SENSORS: Mapping[str, Sensor] = MappingProxyType(
    {sensor.name: sensor for sensor in (S2L2A, S2L1C, S1RTC, S1GRD, S2RGB, RGBN)}
)
