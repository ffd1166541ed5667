"""Turns raw source numbers into a sensor's travelling form and that into physical units; reads scene classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eocube.errors import RadiometryError
from eocube.sensors.sensor import Sensor


@dataclass(frozen=True, slots=True)
class Radiometry:
    """How raw pixels become physical units.

    `kind` "dn": physical = raw * `scale` + `offset`; "power": physical = 10 * log10(raw * `scale`), in dB, where raw is
    linear power. `nodata` is the raw value that means no data (None: none is declared). `why` says what decided.
    """

    scale: float
    offset: float
    nodata: float | None
    kind: Literal["dn", "power"]
    why: str


def to_sensor_dn(raw: NDArray[Any], radiometry: Radiometry, sensor: Sensor) -> NDArray[Any]:
    """Raw source pixels of any shape -> the sensor's travelling form (`sensor.dtype`, `sensor.nodata` marked).

    Integers stay integers where the scales agree (Sentinel-2: DN = reflectance * 1e4 + 1000, a pure addition); what
    would fall on or below 0 becomes 1 and what would pass the type's end stays at it, so no valid pixel turns into
    nodata. Linear power becomes dB; powers of 0 and less have none and are nodata. Raises `RadiometryError` where
    pixels said to be linear power are mostly negative: those are dB already.
    """
    check_power(raw, radiometry)
    return moved_to_sensor(raw, radiometry, sensor)


def check_power(raw: NDArray[Any], radiometry: Radiometry) -> None:
    """RadiometryError where pixels said to be linear power are mostly negative: those are dB already."""
    if radiometry.kind != "power":
        return
    valid = ~_invalid(raw, radiometry)
    below = int(np.count_nonzero(valid & (raw < 0)))
    if below * 2 > np.count_nonzero(valid):
        raise RadiometryError(
            "pixels declared as linear power are mostly negative: they look like dB; declare unit dB in raster:bands"
        )


def _invalid(raw: NDArray[Any], radiometry: Radiometry) -> NDArray[np.bool_]:
    """Which raw pixels are no numbers, or the nodata of their rule."""
    invalid = np.zeros(raw.shape, bool)
    if raw.dtype.kind == "f":
        invalid |= ~np.isfinite(raw)
    if radiometry.nodata is not None and not math.isnan(radiometry.nodata):
        whole_number = raw.dtype.kind in "ui" and float(radiometry.nodata).is_integer()
        # Against a float, numpy would make floats of all pixels first.
        invalid |= raw == (int(radiometry.nodata) if whole_number else radiometry.nodata)
    return invalid


def moved_to_sensor(raw: NDArray[Any], radiometry: Radiometry, sensor: Sensor) -> NDArray[Any]:
    """As `to_sensor_dn`, pixel by pixel, without a look at whether they can be what they are said to be."""
    invalid = _invalid(raw, radiometry)
    if radiometry.kind == "power":
        return _decibel(raw, invalid, radiometry, sensor)
    dtype = np.dtype(sensor.dtype)
    if dtype.kind == "f":
        physical = raw.astype(np.float64) * radiometry.scale + radiometry.offset
        moved = ((physical - sensor.offset) / sensor.scale).astype(dtype)
        moved[invalid] = sensor.nodata
        return moved
    top = int(np.iinfo(dtype).max)
    lowest, highest = int(sensor.nodata == 0), top - int(sensor.nodata == top)
    shift = (radiometry.offset - sensor.offset) / sensor.scale
    whole = raw.dtype.kind in "ui" and math.isclose(radiometry.scale, sensor.scale, rel_tol=1e-9)
    if whole and math.isclose(shift, round(shift), abs_tol=1e-6):
        if round(shift) == 0 and raw.dtype == dtype and radiometry.nodata == sensor.nodata:
            return raw.copy()  # it travels as it was stored
        if raw.dtype == dtype and dtype.kind == "u" and abs(round(shift)) < top:
            moved = _shifted(raw, round(shift), lowest, highest)
            np.copyto(moved, int(sensor.nodata), where=invalid)
            return moved
        numbers = raw.astype(np.int32 if raw.dtype.itemsize <= 2 else np.int64) + round(shift)
    else:
        filled = np.where(invalid, 0, raw).astype(np.float64)
        with np.errstate(over="ignore"):
            exact = (filled * radiometry.scale + radiometry.offset - sensor.offset) / sensor.scale
        numbers = np.rint(np.clip(exact, 0, top)).astype(np.int64)
    return np.where(invalid, sensor.nodata, np.clip(numbers, lowest, highest)).astype(dtype)


def _shifted(raw: NDArray[Any], shift: int, lowest: int, highest: int) -> NDArray[Any]:
    """raw + shift, no less than `lowest` and no more than `highest`, in raw's own unsigned type throughout."""
    top = int(np.iinfo(raw.dtype).max)
    low, high = min(max(lowest - shift, 0), top), min(max(highest - shift, 0), top)
    # Clipped first, so that the sum cannot leave the type; a negative shift is added as what it is modulo its range.
    moved: NDArray[Any] = np.minimum(raw, raw.dtype.type(high))
    if low > 0:
        np.maximum(moved, raw.dtype.type(low), out=moved)
    moved += raw.dtype.type(shift % (top + 1))
    return moved


def _decibel(raw: NDArray[Any], invalid: NDArray[np.bool_], radiometry: Radiometry, sensor: Sensor) -> NDArray[Any]:
    usable = ~invalid & (raw > 0)
    power = np.where(usable, raw, 1).astype(np.float64) * radiometry.scale
    decibel = (10 * np.log10(power) - sensor.offset) / sensor.scale
    return np.where(usable, decibel, sensor.nodata).astype(sensor.dtype)


# Classes of Sentinel-2's scene classification layer (Sen2Cor): 0 no data, 3 cloud shadow, 8 and 9 clouds of medium and
# high probability, 10 thin cirrus.
SCL_NODATA, SCL_SHADOW, SCL_CLOUD = 0, 3, (8, 9, 10)
