"""Judges pixels by their values: numbers that do not fit where they are to travel, or that the rule cannot mean."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.errors import RefusedError
from eocube.raster.opening import Raster
from eocube.scenes.scene import BandSource
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import Sensor

BEYOND = 0.05
"""Of the travelling type's range: what lies farther outside counts as not fitting. What lies nearer is a bright pixel
or one a little under zero, and becomes the range's end."""
MUCH = 0.05
"""Share of a window's valid pixels that may not fit at most."""
DARK = 0.005
"""Reflectance under which hardly any ground is in every band at once: deep water and shadow are, in some."""
ALMOST_ALL = 0.95

_DIGITAL = 1e-3
"""Up to this scale a reflectance comes from digital numbers: 1e-4 a step is usual."""
_HIGH = 0.99
_PLACES, _PLACE_SIDE = 3, 128


def check_range(raw: NDArray[Any], usable: NDArray[np.bool_], source: BandSource, sensor: Sensor) -> None:
    """RefusedError where much of a band (H, W) lies far beyond what the sensor's travelling form can hold.

    Costs nothing where the file's own type cannot hold such numbers.
    """
    limits = _limits(raw.dtype.str, source.radiometry, sensor.dtype, sensor.scale, sensor.offset)
    if limits is None:
        return
    low, high = limits
    beyond = int(np.count_nonzero(usable & ((raw < low) | (raw > high))))
    if beyond and beyond > MUCH * np.count_nonzero(usable):
        seen = raw[usable]
        raise RefusedError(
            f"its numbers, {seen.min():g} to {seen.max():g}, do not fit what {sensor.name} travels as ({low:g} to "
            f"{high:g} of them would): let its raster:bands say scale, offset and nodata, or give a sensor YAML with a "
            "wider dtype"
        )


@lru_cache(maxsize=256)
def _limits(kind: str, rule: Radiometry, dtype: str, scale: float, offset: float) -> tuple[float, float] | None:
    """The raw numbers between which a pixel fits, or None where every number of its type does."""
    to = np.dtype(dtype)
    if to.kind == "f" or rule.kind == "power" or rule.scale <= 0 or scale <= 0:
        return None
    room = np.iinfo(to)
    margin = BEYOND * (float(room.max) - float(room.min))
    low, high = (((end * scale + offset) - rule.offset) / rule.scale for end in (room.min - margin, room.max + margin))
    of = np.dtype(kind)
    if of.kind in "ui" and np.iinfo(of).min >= low and np.iinfo(of).max <= high:
        return None
    return low, high


def check_digital(
    raw: NDArray[Any], usable: NDArray[np.bool_], raster: Raster, source: BandSource, sensor: Sensor
) -> None:
    """RefusedError where float pixels that are to be digital numbers are reflectance already.

    They are where nearly all of a window's, and of a sample of the whole file's, would come to less than 0.001: a
    reflectance that is read as digital numbers decodes to nothing at all.
    """
    rule = source.radiometry
    if not _is_digital_float(raw, rule, sensor):
        return
    limit = 1e-3 / rule.scale
    seen = raw[usable]
    if not seen.size or (top := float(np.quantile(seen, _HIGH))) >= limit:
        return
    if max((top, *_tops(raster, source.index, rule.nodata))) < limit:
        raise RefusedError(
            f"its pixels are {raw.dtype} up to {seen.max():.3g}, which the rule ({rule.why}) takes for digital numbers "
            f"of {rule.scale:g}: they look like reflectance already; let its raster:bands say data_type float32 and "
            "scale 1 (and offset 0), or give a sensor YAML"
        )


def _is_digital_float(raw: NDArray[Any], rule: Radiometry, sensor: Sensor) -> bool:
    return raw.dtype.kind == "f" and sensor.unit == "reflectance" and rule.kind == "dn" and 0 < rule.scale <= _DIGITAL


def is_questionable(raw: NDArray[Any], source: BandSource, sensor: Sensor) -> bool:
    """Whether a band (H, W) must be looked at window by window, by `check_range` and `check_digital`."""
    if _is_digital_float(raw, source.radiometry, sensor):
        return True
    limits = _limits(raw.dtype.str, source.radiometry, sensor.dtype, sensor.scale, sensor.offset)
    return limits is not None and bool(((raw < limits[0]) | (raw > limits[1])).any())


def _tops(raster: Raster, index: int, nodata: float | None) -> list[float]:
    """Nearly the highest valid values at places spread over a raster's band."""
    tops = []
    for row in np.linspace(0, max(0, raster.height - _PLACE_SIDE), _PLACES).astype(int).tolist():
        for col in np.linspace(0, max(0, raster.width - _PLACE_SIDE), _PLACES).astype(int).tolist():
            part = raster.read(
                [index],
                (row, min(raster.height, row + _PLACE_SIDE)),
                (col, min(raster.width, col + _PLACE_SIDE)),
            )
            seen = part[np.isfinite(part) & (part != nodata) & (part != raster.nodata[index - 1])]
            if seen.size:
                tops.append(float(np.quantile(seen, _HIGH)))
    return tops


def is_dark(groups: Mapping[int, NDArray[Any]], sensor: Sensor) -> bool:
    """Whether almost all pixels of a window lie under `DARK` in every band, or below 0: too dark to be ground.

    `groups` are a window's, in travelling form and filled. Every fourth pixel of a row and column is looked at.
    """
    if sensor.unit != "reflectance" or not groups:
        return False
    limit = (DARK - sensor.offset) / sensor.scale
    for pixels in groups.values():
        for band in pixels:
            some = band[::4, ::4]
            if np.count_nonzero(some < limit) <= ALMOST_ALL * some.size:
                return False
    return True


def dark_line(item: str, windows: int) -> str:
    """What is said of an item whose windows are too dark to be ground."""
    return (
        f"{item}: {windows} windows lie almost wholly under a reflectance of {DARK:g} in every band: night, deep water "
        "or shadow, or numbers that are not what its item says"
    )


def check_numbers(
    dtypes: tuple[str, ...], palettes: tuple[bool, ...], source: BandSource, sensor: Sensor | None
) -> None:
    """RefusedError where a band's numbers are of a kind that its rule cannot mean. The file's type counts.

    `sensor` is None for classes, which may have colours.
    """
    if not 1 <= source.index <= len(dtypes):
        raise RefusedError(f"it has {len(dtypes)} bands, and band {source.index} of it is asked for")
    dtype = dtypes[source.index - 1]
    if dtype.startswith("complex"):
        raise RefusedError(f"its pixels are complex numbers ({dtype}); amplitude, power or reflectance are read")
    if sensor is None:
        return
    if palettes[source.index - 1]:
        raise RefusedError(
            "its pixels are places in a colour table, not measurements; use the bands that the picture was made of, or "
            "expand it (gdal_translate -expand rgb)"
        )
    if sensor.unit == "dn8" and dtype.startswith("float"):
        raise RefusedError(f"its pixels are {dtype}, an 8-bit picture is needed")
    if source.radiometry.kind == "power" and not dtype.startswith("float") and source.radiometry.scale == 1:
        raise RefusedError(
            f"its pixels are {dtype}, which linear power is not: calibrated backscatter, or its scale, is needed"
        )
