"""Lists what the demo landscape is made of: reflectance of each cover in 12 S2 bands, its backscatter, its seasons.

The values are typical ones chosen by hand after the shapes of published spectral libraries (red edge and water
absorption of leaves, soils that rise towards the short-wave infrared, black water, flat clouds); none is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from eocube.demo.noise import F32

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
NATIVE = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20)  # ground sampling, metres
WAVELENGTHS = (0.443, 0.490, 0.560, 0.665, 0.705, 0.740, 0.783, 0.842, 0.865, 0.945, 1.610, 2.190)  # micrometres


class Cover(IntEnum):
    """Endmembers: rows of the tables below."""

    CEREAL = 0
    RIPE = 1
    STUBBLE = 2
    RAPE_BLOOM = 3
    MAIZE = 4
    BEET = 5
    GRASS = 6
    CONIFER = 7
    BROADLEAF = 8
    SOIL_BRIGHT = 9
    SOIL_DARK = 10
    RIVER = 11
    LAKE = 12
    ASPHALT = 13
    TILE_ROOF = 14
    SLATE_ROOF = 15
    METAL_ROOF = 16
    CONCRETE = 17
    GRAVEL = 18
    ORCHARD = 19


REFLECTANCE: F32 = np.array(
    [
        # B01   B02   B03   B04   B05   B06   B07   B08   B8A   B09   B11   B12
        [0.022, 0.027, 0.060, 0.027, 0.092, 0.300, 0.400, 0.430, 0.450, 0.440, 0.180, 0.082],  # cereal, green
        [0.050, 0.066, 0.112, 0.140, 0.180, 0.215, 0.238, 0.270, 0.285, 0.290, 0.300, 0.200],  # cereal, ripe
        [0.070, 0.092, 0.145, 0.195, 0.225, 0.245, 0.265, 0.290, 0.305, 0.310, 0.370, 0.265],  # stubble
        [0.030, 0.042, 0.142, 0.118, 0.175, 0.330, 0.400, 0.425, 0.440, 0.430, 0.205, 0.105],  # rape in bloom
        [0.024, 0.030, 0.066, 0.031, 0.105, 0.330, 0.430, 0.460, 0.475, 0.465, 0.200, 0.095],  # maize
        [0.026, 0.031, 0.085, 0.031, 0.130, 0.400, 0.520, 0.550, 0.570, 0.550, 0.225, 0.105],  # sugar beet
        [0.031, 0.038, 0.080, 0.050, 0.118, 0.275, 0.345, 0.370, 0.390, 0.385, 0.225, 0.125],  # grass
        [0.014, 0.017, 0.029, 0.018, 0.045, 0.140, 0.180, 0.200, 0.207, 0.205, 0.086, 0.038],  # conifer
        [0.018, 0.022, 0.046, 0.022, 0.074, 0.270, 0.360, 0.390, 0.410, 0.405, 0.170, 0.071],  # broadleaf
        [0.074, 0.094, 0.130, 0.172, 0.192, 0.206, 0.220, 0.240, 0.254, 0.262, 0.325, 0.285],  # soil, dry loess
        [0.042, 0.052, 0.072, 0.096, 0.110, 0.120, 0.130, 0.145, 0.155, 0.160, 0.195, 0.165],  # soil, moist
        [0.040, 0.047, 0.056, 0.038, 0.031, 0.022, 0.019, 0.015, 0.013, 0.012, 0.005, 0.004],  # river
        [0.036, 0.040, 0.043, 0.022, 0.018, 0.012, 0.011, 0.009, 0.008, 0.008, 0.003, 0.003],  # lake
        [0.070, 0.080, 0.090, 0.099, 0.104, 0.108, 0.112, 0.118, 0.122, 0.126, 0.150, 0.140],  # asphalt
        [0.058, 0.073, 0.095, 0.170, 0.200, 0.214, 0.228, 0.248, 0.258, 0.264, 0.320, 0.290],  # tiled roof
        [0.052, 0.057, 0.062, 0.067, 0.069, 0.072, 0.075, 0.080, 0.084, 0.088, 0.118, 0.116],  # slate roof
        [0.385, 0.425, 0.455, 0.475, 0.478, 0.480, 0.480, 0.475, 0.472, 0.470, 0.440, 0.395],  # metal roof
        [0.190, 0.220, 0.248, 0.275, 0.285, 0.294, 0.302, 0.312, 0.318, 0.322, 0.350, 0.330],  # concrete
        [0.150, 0.180, 0.220, 0.252, 0.268, 0.280, 0.290, 0.302, 0.312, 0.318, 0.380, 0.360],  # gravel bank
        [0.024, 0.030, 0.062, 0.038, 0.095, 0.255, 0.330, 0.355, 0.372, 0.368, 0.200, 0.100],  # orchard
    ],
    dtype=np.float32,
)
CLOUD: F32 = np.array(
    [0.660, 0.660, 0.655, 0.655, 0.660, 0.665, 0.665, 0.665, 0.665, 0.600, 0.450, 0.330], dtype=np.float32
)
SNOW: F32 = np.array(
    [0.920, 0.920, 0.915, 0.905, 0.900, 0.890, 0.880, 0.865, 0.850, 0.780, 0.120, 0.070], dtype=np.float32
)
# Skylight left in a cloud's shadow, and the brightness of haze: both fall with wavelength (Rayleigh and Mie).
DIFFUSE: F32 = (0.06 + 0.26 * (np.array(WAVELENGTHS) / 0.443) ** -1.5).astype(np.float32)
HAZE: F32 = (0.30 * (np.array(WAVELENGTHS) / 0.443) ** -1.2).astype(np.float32)

# gamma0 in decibels, (VV, VH), in the order of Cover.
BACKSCATTER_DB: F32 = np.array(
    [
        [-13.0, -19.0], [-11.5, -17.5], [-12.5, -20.0], [-9.5, -14.5], [-9.0, -15.0], [-8.5, -14.0], [-12.0, -18.5],
        [-8.5, -13.8], [-8.0, -13.0], [-12.5, -21.5], [-10.5, -20.0], [-21.0, -27.5], [-23.5, -29.0], [-17.0, -25.0],
        [-3.0, -10.5], [-2.5, -10.0], [0.5, -8.0], [-6.0, -15.0], [-11.0, -20.0], [-9.0, -14.5],
    ],
    dtype=np.float32,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Crop:
    """One crop: how common it is, and what covers the soil, how densely, in spring and in summer."""

    share: float
    spring: tuple[Cover, float]  # cover, fraction of the ground it hides
    summer: tuple[Cover, float]


CROPS = (
    Crop(0.25, (Cover.CEREAL, 0.92), (Cover.RIPE, 0.93)),  # winter wheat
    Crop(0.11, (Cover.CEREAL, 0.84), (Cover.STUBBLE, 0.72)),  # winter barley, harvested early
    Crop(0.12, (Cover.RAPE_BLOOM, 0.93), (Cover.STUBBLE, 0.55)),  # oilseed rape
    Crop(0.18, (Cover.MAIZE, 0.08), (Cover.MAIZE, 0.93)),  # maize
    Crop(0.07, (Cover.BEET, 0.22), (Cover.BEET, 0.95)),  # sugar beet
    Crop(0.15, (Cover.GRASS, 0.93), (Cover.GRASS, 0.82)),  # meadow
    Crop(0.06, (Cover.GRASS, 0.60), (Cover.RIPE, 0.55)),  # spring cereal, thin
    Crop(0.06, (Cover.GRASS, 0.10), (Cover.GRASS, 0.45)),  # fallow
)
