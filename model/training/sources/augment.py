"""Augments in physical units: symmetries, brightness over 0-1.5 reflectance, spectral tilt, clouds and haze."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.sensors import Floats

# Reflectance * 1e4 of thick cloud and of fresh snow at the S2 bands' wavelengths (micrometres): coarse textbook shapes.
_NODES = (0.40, 0.45, 0.70, 0.90, 0.945, 1.10, 1.375, 1.61, 2.19, 2.40)
_CLOUD = (7600, 7500, 7400, 7300, 5600, 7000, 2400, 5200, 4000, 3600)
_SNOW = (9600, 9500, 9300, 8600, 7200, 6800, 900, 900, 700, 500)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How often and how strongly optical patches are changed; chances are per patch."""

    brightness: float = 0.4
    gain: tuple[float, float] = (0.3, 3.5)
    spectral: float = 0.4
    tilt: float = 0.25
    clouds: float = 0.2
    speckle_db: float = 1.5


def dihedral(x: Floats, rng: np.random.Generator) -> Floats:
    """One of the eight symmetries of the square, on the last two axes."""
    x = np.rot90(x, int(rng.integers(4)), axes=(-2, -1))
    return x[..., ::-1] if rng.random() < 0.5 else x


def smooth_field(size: int, cells: int, rng: np.random.Generator) -> Floats:
    """(size, size) field in 0..1, bilinear between a coarse grid of uniform random values."""
    grid = rng.random((cells + 1, cells + 1))
    t = np.linspace(0, cells, size, endpoint=False)
    i, f = t.astype(int), (t % 1)
    rows = grid[i] * (1 - f)[:, None] + grid[i + 1] * f[:, None]
    field: Floats = (rows[:, i] * (1 - f) + rows[:, i + 1] * f).astype(np.float32)
    return field


def optical(x: Floats, wavelengths: Floats, how: Augmentation, rng: np.random.Generator) -> Floats:
    """Change one patch (C, H, W) of reflectance * 1e4: gain, smooth spectral tilt, snow or cloud shape, thin cloud.

    A snow or cloud *shape* replaces the mean spectrum and keeps the relief of the patch: real texture at other levels.
    """
    waves = np.log(wavelengths)
    if rng.random() < how.spectral:
        knots = np.exp(how.tilt * rng.standard_normal(5))
        gain = np.interp(waves, np.linspace(np.log(0.4), np.log(2.4), 5), knots)
        x = x * gain.astype(np.float32)[:, None, None]
    if rng.random() < how.brightness:
        low, high = how.gain
        level = max(float(x.mean()), 1.0)
        top = min(high, 13000.0 / level)
        x = x * np.float32(np.exp(rng.uniform(np.log(low), np.log(max(top, low * 1.1)))))
    if rng.random() < how.clouds:
        nodes = _CLOUD if rng.random() < 0.5 else _SNOW
        target = np.interp(wavelengths, _NODES, nodes).astype(np.float32) * np.float32(rng.uniform(0.4, 1.6))
        mean = np.maximum(x.mean(axis=(1, 2)), 50.0)
        shape = (target / mean)[:, None, None]
        if rng.random() < 0.5:
            x = x * np.minimum(shape, 30.0) ** np.float32(rng.uniform(0.5, 1.0))
        else:
            size = x.shape[-1]
            cover = 0.6 * smooth_field(size, 3, rng) + 0.4 * smooth_field(size, 12, rng)
            alpha = np.clip((cover - rng.uniform(0.2, 0.7)) * rng.uniform(1, 8), 0, 1)
            relief = x.mean(axis=0) / max(float(x.mean()), 50.0)
            cloud = target[:, None, None] * (0.7 + 0.3 * np.clip(relief, 0, 3))
            x = (1 - alpha) * x + alpha * cloud
    return np.clip(x, -500, 28000).astype(np.float32)


def radar(x: Floats, how: Augmentation, rng: np.random.Generator) -> Floats:
    """Shift one patch (C, H, W) of backscatter in dB by a random level."""
    return (x + np.float32(how.speckle_db * rng.standard_normal())).astype(np.float32)
