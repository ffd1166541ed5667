"""What the trained sensors look like: bands, true wavelengths, published z-score statistics.

Source: EO-VAE specification, section 7 (legacy TerraMesh statistics); wavelengths are the true band centres.
S1's 5.4 / 5.6 are the published labels that keep the two polarisations' tokens apart, not wavelengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


_S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_S2_WAVES = (0.443, 0.490, 0.560, 0.665, 0.705, 0.740, 0.783, 0.842, 0.865, 0.945, 1.610, 2.190)
_S2_GSD = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20)

S2L2A = TrainedSensor(
    "S2L2A",
    "reflectance*1e4",
    _S2_BANDS,
    _S2_WAVES,
    (1375.648, 1489.600, 1709.087, 1831.752, 2186.075, 2794.358, 3008.528, 3096.780, 3155.180, 3169.651, 2415.761,
     1838.622),
    (2101.107, 2138.673, 2033.628, 2118.186, 2061.646, 1869.234, 1801.386, 1841.173, 1734.404, 1751.174, 1375.131,
     1284.165),
    _S2_GSD,
)  # fmt: skip
S2L1C = TrainedSensor(
    "S2L1C",
    "reflectance*1e4",
    (*_S2_BANDS[:10], "B10", *_S2_BANDS[10:]),
    (*_S2_WAVES[:10], 1.375, *_S2_WAVES[10:]),
    (2475.625, 2260.839, 2143.561, 2230.225, 2445.427, 2992.950, 3257.843, 3171.695, 3440.958, 1567.433, 561.076,
     2562.809, 1924.178),
    (1761.905, 1804.267, 1661.263, 1932.020, 1918.007, 1812.421, 1795.179, 1734.280, 1780.039, 1082.531, 512.077,
     1350.580, 1177.511),
    (*_S2_GSD[:10], 60, *_S2_GSD[10:]),
)  # fmt: skip
RGBN = TrainedSensor(
    "RGBN", "reflectance*1e4", *(lambda s: (s.bands, s.wavelengths, s.mean, s.std, s.gsd))(
        S2L2A.subset(("B04", "B03", "B02", "B08"))
    )
)  # fmt: skip
S1RTC = TrainedSensor("S1RTC", "dB", ("VV", "VH"), (5.4, 5.6), (-10.793, -17.198), (4.278, 4.346), (10, 10))
S2RGB = TrainedSensor(
    "S2RGB", "dn8", ("R", "G", "B"), (0.665, 0.560, 0.490), (110.349, 99.507, 75.843), (69.905, 53.708, 53.378),
    (10, 10, 10),
)  # fmt: skip
SENSORS = {s.name: s for s in (S2L2A, S2L1C, RGBN, S1RTC, S2RGB)}


COLOURS = ("B04", "B03", "B02")


def true_colour(reflectance_dn: Floats) -> Floats:
    """8-bit true colour as ESA's TCI makes it: reflectance 0..0.3558 -> 1..255, saturating. (3, ...) R, G, B DN."""
    counts: Floats = np.round(np.clip(reflectance_dn / np.float32(3558.0), 0, 1) * 254).astype(np.float32) + 1
    return counts
