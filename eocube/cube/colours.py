"""Gives pixels and values colours: which bands make red, green and blue, and the one stretch pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eocube.sensors.sensor import Sensor

Floats = npt.NDArray[np.float32]

TRUE_COLOUR = (0.665, 0.560, 0.490)
"""Micrometres of red, green and blue."""
FALSE_COLOUR = (0.842, 0.665, 0.560)
SAME_BAND = 0.03
"""Micrometres within which a band counts as one of those."""
CLEAR = 4.0
"""Ground is rarely brighter than this many medians above the darkest of it; clouds are."""


def band_near(sensor: Sensor, wavelength: float, within: float) -> str | None:
    """The band nearest to a wavelength in micrometres; None where none is within."""
    best = min(sensor.bands, key=lambda band: abs(band.wavelength - wavelength))
    return best.name if abs(best.wavelength - wavelength) <= within else None


def bands_near(sensor: Sensor, wavelengths: Sequence[float], within: float) -> tuple[str, ...] | None:
    """A different band for each wavelength; None where the sensor lacks one."""
    found = [band_near(sensor, wavelength, within) for wavelength in wavelengths]
    return tuple(map(str, found)) if None not in found and len(set(found)) == len(found) else None


def picture_bands(sensor: Sensor) -> tuple[str, ...]:
    """The bands of the picture that shows a sensor best: true colour, else infrared, else the first ones."""
    for wanted in () if sensor.unit == "dB" else (TRUE_COLOUR, FALSE_COLOUR):
        if (found := bands_near(sensor, wanted, SAME_BAND)) is not None:
            return found
    return sensor.band_names[: 2 if sensor.unit == "dB" else 3]


@dataclass(frozen=True, slots=True)
class Composite:
    """Three layers (3, H, W) to show as red, green and blue; `joint` when one stretch must serve all three."""

    layers: Floats
    label: str
    joint: bool


def composite(pixels: Floats, names: tuple[str, ...], sensor: Sensor) -> Composite:
    """The picture that shows (C, H, W) pixels of these bands best.

    True colour where red, green and blue are there, else near infrared, red and green, else the first three bands; VV,
    VH and their ratio for radar; grey for one band.
    """
    if sensor.unit == "dB" and len(names) >= 2:
        co, cross = pixels[0], pixels[1]
        return Composite(np.stack([co, cross, co - cross]), f"{names[0]}, {names[1]}, {names[0]}/{names[1]}", False)
    wavelengths = [sensor.band(name).wavelength for name in names]
    for wanted, title in ((TRUE_COLOUR, "true colour"), (FALSE_COLOUR, "false colour")):
        nearest = [int(np.argmin([abs(w - target) for w in wavelengths])) for target in wanted]
        near = all(abs(wavelengths[k] - target) <= SAME_BAND for k, target in zip(nearest, wanted, strict=True))
        if near and len(set(nearest)) == 3:
            label = f"{title} {', '.join(names[k] for k in nearest)}"
            return Composite(pixels[nearest], label, joint=title == "true colour")
    if len(names) >= 3:
        return Composite(pixels[:3], f"bands {', '.join(names[:3])}", False)
    return Composite(np.stack([pixels[0]] * 3), f"band {names[0]}", True)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Linear from `low` to `high`, one value a layer, with a gamma."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    gamma: float = 1.0

    @classmethod
    def of(cls, picture: Composite, percent: float = 2.0) -> Stretch:
        """Between the lowest and highest `percent` of what is finite, jointly or layer by layer.

        A joint one keeps the layers' balance, so grey ground stays grey, and lifts the middle a little. Where a few
        clouds would leave the ground in the dark, its top is held at `CLEAR` times the median.
        """
        layers = picture.layers.reshape(3, -1)
        layers = layers[:, np.asarray(np.isfinite(layers).all(axis=0))]
        if layers.size == 0:
            return cls((0.0,) * 3, (1.0,) * 3)
        low, high = np.percentile(layers, [percent, 100 - percent], axis=None if picture.joint else 1)
        if picture.joint:
            high = min(high, low + CLEAR * (np.median(layers) - low))
        low, high = np.broadcast_to(low, 3), np.broadcast_to(high, 3)
        high = np.maximum(high, low + 1e-6)
        return cls(tuple(low.tolist()), tuple(high.tolist()), 1.25 if picture.joint else 1.0)

    def __call__(self, layers: Floats) -> Floats:
        """(3, H, W) layers to (H, W, 4) colours, 0..1; transparent where a layer is not finite."""
        low, high = (np.array(v, np.float32)[:, None, None] for v in (self.low, self.high))
        there = np.asarray(np.isfinite(layers).all(axis=0))
        scaled = np.clip((np.where(there, layers, low) - low) / (high - low), 0.0, 1.0) ** (1.0 / self.gamma)
        return np.concatenate([scaled, there[None]]).transpose(1, 2, 0).astype(np.float32)


def principal_components(latents: Floats) -> Floats:
    """The three strongest principal components of (C, H, W) latents, (3, H, W), NaN where there are none.

    Signs are fixed (each component's largest loading is positive), so that the same latents give the same colours.
    Fewer than three channels leave the last layers 0.
    """
    flat = latents.reshape(latents.shape[0], -1).astype(np.float64)
    there = np.asarray(np.isfinite(flat).all(axis=0))
    components = np.full((3, flat.shape[1]), np.nan, dtype=np.float32)
    if there.any():
        centred = flat[:, there] - flat[:, there].mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh(centred @ centred.T / centred.shape[1])
        axes = vectors[:, ::-1][:, :3].T
        axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
        components[:, there] = 0.0
        components[: len(axes), there] = axes @ centred
    return components.reshape(3, *latents.shape[1:])
