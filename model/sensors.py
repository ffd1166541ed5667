"""Names the sensors' bands, wavelengths and z-score statistics: the one table that weights, training and cubes share.

Source: EO-VAE specification, section 7 (legacy TerraMesh statistics); wavelengths are the true band centres.
S1's 5.4 / 5.6 are the published labels that keep the two polarisations' tokens apart, not
wavelengths (both are 5.55 cm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainedSensor:
    """One sensor: `mean` and `std` are in `unit`, wavelengths in micrometres, `gsd` the native sampling in metres."""

    name: str
    unit: str
    bands: tuple[str, ...]
    wavelengths: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gsd: tuple[int, ...]

    def index(self, bands: Sequence[str]) -> list[int]:
        """Positions of `bands` in this sensor's order; ValueError names a band it has not."""
        unknown = [b for b in bands if b not in self.bands]
        if unknown:
            raise ValueError(f"{self.name} has no band {', '.join(unknown)}: it has {', '.join(self.bands)}")
        return [self.bands.index(b) for b in bands]

    @property
    def red_nir(self) -> tuple[int, int] | None:
        """Positions of B04 and B08, which NDVI is of; None without them."""
        return (self.bands.index("B04"), self.bands.index("B08")) if {"B04", "B08"} <= set(self.bands) else None

    def subset(self, bands: Sequence[str]) -> TrainedSensor:
        """The same sensor with only `bands`, in the order given."""
        keep = self.index(bands)
        return TrainedSensor(
            self.name,
            self.unit,
            tuple(bands),
            tuple(self.wavelengths[i] for i in keep),
            tuple(self.mean[i] for i in keep),
            tuple(self.std[i] for i in keep),
            tuple(self.gsd[i] for i in keep),
        )

    def _column(self, values: Sequence[float], ndim: int) -> Floats:
        return np.asarray(values, np.float32).reshape((-1,) + (1,) * (ndim - 1))

    def zscore(self, x: Floats) -> Floats:
        """(C, ...) in `unit` -> z-scores."""
        return (x - self._column(self.mean, x.ndim)) / self._column(self.std, x.ndim)

    def physical(self, z: Floats) -> Floats:
        """(C, ...) z-scores -> reflectance (S2), dB (S1) or 8-bit counts."""
        x = z * self._column(self.std, z.ndim) + self._column(self.mean, z.ndim)
        return x * np.float32(1e-4) if self.unit == "reflectance*1e4" else x


# Sentinel-2 MSI: band -> (wavelength in micrometres, native sampling in metres).
_MSI: Mapping[str, tuple[float, int]] = {
    "B01": (0.443, 60),
    "B02": (0.490, 10),
    "B03": (0.560, 10),
    "B04": (0.665, 10),
    "B05": (0.705, 20),
    "B06": (0.740, 20),
    "B07": (0.783, 20),
    "B08": (0.842, 10),
    "B8A": (0.865, 20),
    "B09": (0.945, 60),
    "B10": (1.375, 60),
    "B11": (1.610, 20),
    "B12": (2.190, 20),
}
_SAR: Mapping[str, tuple[float, int]] = {"VV": (5.4, 10), "VH": (5.6, 10)}


def _sensor(name: str, unit: str, stats: Mapping[str, tuple[float, float]]) -> TrainedSensor:
    """A sensor from band -> (mean, std), in the order in which its pixels are stored."""
    centres = {**_MSI, **_SAR}
    return TrainedSensor(
        name,
        unit,
        tuple(stats),
        tuple(centres[band][0] for band in stats),
        tuple(mean for mean, _ in stats.values()),
        tuple(std for _, std in stats.values()),
        tuple(centres[band][1] for band in stats),
    )


# In reflectance * 1e4, without the offset of baseline 04.00. The stored order of S2L2A is B01..B8A, B09, B11, B12; that
# of S2L1C has B09 (mean 1567, water vapour) before B10 (561: cirrus, dark in every scene).
_L2A: Mapping[str, tuple[float, float]] = {
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
_L1C: Mapping[str, tuple[float, float]] = {
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
_VISUAL: Mapping[str, tuple[float, float]] = {
    "B04": (110.349, 69.905),
    "B03": (99.507, 53.708),
    "B02": (75.843, 53.378),
}

S2L2A = _sensor("S2L2A", "reflectance*1e4", _L2A)
S2L1C = _sensor("S2L1C", "reflectance*1e4", _L1C)
RGBN = _sensor("RGBN", "reflectance*1e4", {band: _L2A[band] for band in ("B04", "B03", "B02", "B08")})
S2RGB = _sensor("S2RGB", "dn8", _VISUAL)
S1RTC = _sensor("S1RTC", "dB", {"VV": (-10.793, 4.278), "VH": (-17.198, 4.346)})
# TerraMesh's own statistics; the published EO-VAE has no S1GRD.
S1GRD = _sensor("S1GRD", "dB", {"VV": (-12.577, 5.179), "VH": (-20.265, 5.872)})
SENSORS: Mapping[str, TrainedSensor] = {s.name: s for s in (S2L2A, S2L1C, RGBN, S1RTC, S1GRD, S2RGB)}

CORRECTED: Mapping[str, TrainedSensor] = {
    "S2L2A": replace(
        S2L2A,
        mean=(1718.9949, 1825.5669, 2043.5834, 2175.4543, 2522.9522, 3114.2216, 3323.3469, 3417.3660, 3470.9655,
              3489.4869, 2725.9735, 2152.0551),
        std=(2126.3409, 2140.1035, 2044.6618, 2125.3351, 2065.3251, 1874.4652, 1808.0426, 1839.0210, 1737.9521,
             1738.5136, 1456.5919, 1365.1743),
    ),
    "S2L1C": replace(
        S2L1C,
        mean=(2424.2556, 2207.7019, 2098.2302, 2167.1584, 2382.3115, 2938.8499, 3204.8447, 3126.6599, 3389.0706,
              1580.1287, 572.5726, 2552.1208, 1917.9390),
        std=(1700.3824, 1731.5450, 1610.9904, 1833.5536, 1808.5067, 1694.4427, 1678.2327, 1625.7446, 1659.3112,
             1093.5255, 515.6395, 1300.8892, 1151.6169),
    ),
    "S1RTC": S1RTC,
}  # fmt: skip
"""Statistics of the published EO-VAE*, whose data are corrected (`decode(..., corrected=True)` of
`model.training.sources.terramesh`); radar falls back to the legacy ones. Same source and section as the legacy ones."""

ALIASES: Mapping[str, str] = {"R": "B04", "G": "B03", "B": "B02"}
"""What weights and archives call a picture's layers -> the bands' own names: `nano` says R, G, B of S2RGB."""


def own_names(bands: Sequence[str]) -> tuple[str, ...]:
    """The bands' own names, in order: "B04" for the "R" that some weights and archives say."""
    return tuple(ALIASES.get(band, band) for band in bands)


COLOURS = ("B04", "B03", "B02")


def true_colour(reflectance_dn: Floats) -> Floats:
    """8-bit true colour as ESA's TCI makes it: reflectance 0..0.3558 -> 1..255, saturating. (3, ...) R, G, B DN."""
    counts: Floats = np.round(np.clip(reflectance_dn / np.float32(3558.0), 0, 1) * 254).astype(np.float32) + 1
    return counts
