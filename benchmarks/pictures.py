"""Makes windows to encode out of numpy alone: mixtures of four kinds of ground, rough at every scale, under a haze."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WAVELENGTHS = (0.40, 0.49, 0.56, 0.665, 0.705, 0.74, 0.80, 0.90, 1.40, 1.61, 2.19, 2.40)
"""Micrometres at which the grounds' reflectances stand."""
GROUNDS = (
    (0.02, 0.03, 0.07, 0.04, 0.11, 0.30, 0.38, 0.40, 0.25, 0.20, 0.09, 0.06),  # leaves: a red edge, water at 1.4 um
    (0.07, 0.10, 0.14, 0.19, 0.21, 0.23, 0.25, 0.27, 0.31, 0.35, 0.31, 0.27),  # soil: rising
    (0.06, 0.06, 0.05, 0.03, 0.02, 0.015, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005),  # water: falling
    (0.14, 0.16, 0.18, 0.20, 0.21, 0.22, 0.23, 0.24, 0.25, 0.26, 0.24, 0.22),  # roofs and roads: flat
)
"""Reflectance of each kind of ground, in round numbers of the literature's spectra."""
HAZE = (0.05, 4.0)
"""Reflectance that the air adds at 0.4 um at most, and the power by which it falls with wavelength."""


def rough(rng: np.random.Generator, side: int) -> Floats:
    """(side, side) noise whose amplitude falls with frequency as landscapes' does, mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**1.4
    noise = np.fft.irfft2(spectrum, (side, side))
    scaled: Floats = noise / noise.std()
    return scaled


def landscape(seed: int, wavelengths: Floats, side: int) -> Floats:
    """(bands, side, side) reflectance, 0.001 to 1; the same for the same seed."""
    rng = np.random.default_rng(seed)
    leanings = np.exp(2.0 * np.stack([rough(rng, side) for _ in GROUNDS]))
    shares = leanings / leanings.sum(0)
    spectra = np.stack([np.interp(wavelengths, WAVELENGTHS, ground) for ground in GROUNDS])
    light = 1 + 0.15 * rough(rng, side)
    strength, power = HAZE
    haze = strength * rng.uniform() * (wavelengths / WAVELENGTHS[0]) ** -power
    found: Floats = np.einsum("gb,gyx->byx", spectra, shares) * light + haze[:, None, None]
    return found.clip(0.001, 1.0)


def block_means(image: Floats, ratio: int) -> Floats:
    """(h, w) averaged over blocks of `ratio` x `ratio` pixels."""
    height, width = image.shape
    found: Floats = image.reshape(height // ratio, ratio, width // ratio, ratio).mean((1, 3))
    return found
