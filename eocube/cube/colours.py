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


def brightest_ground(values: Floats, darkest: float) -> float:
    """What of some values, the darkest of which is known, is rather cloud than ground beyond."""
    return float(darkest + CLEAR * (np.median(values) - darkest))


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
            high = min(high, brightest_ground(layers, low))
        low, high = np.broadcast_to(low, 3), np.broadcast_to(high, 3)
        high = np.maximum(high, low + 1e-6)
        return cls(tuple(low.tolist()), tuple(high.tolist()), 1.25 if picture.joint else 1.0)

    @classmethod
    def fixed(cls, picture: Composite, unit: str) -> Stretch:
        """The same for every picture of a kind, so that dates and cubes compare; `of` where the unit has no usual one.

        Reflectance from 0, with a gamma that lifts water and forest out of the dark; clouds and snow are white.
        """
        if unit == "reflectance":
            return cls((0.0,) * 3, (0.3 if picture.joint else 0.5,) * 3, 1.6 if picture.joint else 1.3)
        if unit == "dB":
            return cls((-28.0,) * 3, (0.0,) * 3) if picture.joint else cls((-22.0, -28.0, 2.0), (0.0, -6.0, 15.0))
        return cls((0.0,) * 3, (255.0,) * 3) if unit == "dn8" else cls.of(picture)

    @property
    def said(self) -> str:
        """The stretch in a few words: "0 to 0.3, gamma 1.6"."""
        ranges = [f"{low:.3g} to {high:.3g}" for low, high in zip(self.low, self.high, strict=True)]
        text = ranges[0] if len(set(ranges)) == 1 else ", ".join(ranges)
        return text if self.gamma == 1.0 else f"{text}, gamma {self.gamma:g}"

    def __call__(self, layers: Floats) -> Floats:
        """(3, H, W) layers to (H, W, 4) colours, 0..1; transparent where a layer is not finite."""
        low, high = (np.array(v, np.float32)[:, None, None] for v in (self.low, self.high))
        there = np.asarray(np.isfinite(layers).all(axis=0))
        scaled = np.clip((np.where(there, layers, low) - low) / (high - low), 0.0, 1.0) ** (1.0 / self.gamma)
        return np.concatenate([scaled, there[None]]).transpose(1, 2, 0).astype(np.float32)
