"""Labels decoded pixels: where they lie on the lattice, which of them have a source, coordinates and units."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from eocube.cube.decode import Ground, Span
from eocube.errors import InputError
from eocube.store.document import CubeInfo

WHOLE = 100
"""Percent of source pixels that a latent must have to be decoded where the store does not know which they are.

Of 28 x 28 latents of a small scene those at the edge are 14 %, and a lower bar lets some of what they lack through.
"""
QUANTITY = {"reflectance": "reflectance", "dB": "backscatter", "dn8": "digital_number"}
"""Name of the decoded array by the sensor's unit."""
CF_UNITS = {"reflectance": "1", "dB": "dB", "dn8": "1"}
LONG_NAME = {
    "reflectance": "reflectance decoded from latents",
    "dB": "radar backscatter decoded from latents",
    "dn8": "8-bit digital number decoded from latents",
}
LEVEL = {"S2L2A": "surface ", "S2L1C": "top-of-atmosphere "}
"""What reflectance of a sensor is of."""


LIMITS: dict[str, tuple[float, float | None]] = {"reflectance": (1e-4, None), "dn8": (0.0, 255.0)}
"""Lowest and highest value of a unit, where it has any. Snow, clouds and glint do reflect more than 1."""


def ground_of(cube: xr.Dataset, min_valid: int | None) -> Ground | None:
    """Where the cube's pixels have a source, as far as its arrays say; None where they say nothing."""
    from eocube.cube.decode import Ground

    if min_valid is not None and not 1 <= min_valid <= 100:
        raise InputError(f"min_valid={min_valid}: give a percentage from 1 to 100, or mask=False for everything")
    if "valid" not in cube:
        return None
    lazy: dict[str, Any] = {}
    for name in ("valid", "missing"):
        if name in cube:
            array = cube[name]
            array = array if "time" in array.dims else array.expand_dims("time")
            array = array.chunk() if array.chunks is None else array
            lazy[name] = array.transpose("time", "y", "x", ...).data
    least = WHOLE if min_valid is None else min_valid
    return Ground(lazy["valid"], lazy.get("missing"), least, min_valid is not None)


def span_of(centres: xr.DataArray, info: CubeInfo, sign: int) -> Span:
    """Where latents lie on the zone's lattice, from their centres: columns count eastwards, rows southwards."""
    from eocube.cube.decode import Span

    at = sign * np.atleast_1d(centres.values).astype(np.float64) / info.cell - 0.5
    if at.size == 0:
        raise InputError(f"nothing selected along {centres.name}: there is nothing to decode")
    index = np.rint(at).astype(np.int64)
    if np.abs(at - index).max() > 1e-6:
        raise InputError(f"{centres.name} is off the lattice of {info.cell} m: decode before resampling")
    if (np.diff(index) != 1).any():
        raise InputError(f"latents along {centres.name} do not adjoin in the store's order: select with a slice")
    return Span(int(index[0]), int(index.size), info.core)


def labelled(
    cube: xr.Dataset, data: Any, info: CubeInfo, names: tuple[str, ...], rows: Span, cols: Span
) -> xr.DataArray:
    """Decoded pixels with their coordinates: exact centres, CRS, time, band names and wavelengths."""
    dims = ("time", "band", "y", "x")[-data.ndim :]
    chosen = [info.sensor.band(name) for name in names]
    stride, metres = info.stride, info.resolution
    coords: dict[str, Any] = {
        "band": ("band", np.array(names), {"long_name": "spectral band"}),
        "wavelength": ("band", np.array([b.wavelength for b in chosen]), {"units": "um"}),
        "y": ("y", -_centres(rows.start * stride, rows.size * stride, metres), dict(cube["y"].attrs)),
        "x": ("x", _centres(cols.start * stride, cols.size * stride, metres), dict(cube["x"].attrs)),
    }
    held = cube[info.product.array]
    for name, held_one in held.coords.items():
        if not {*held_one.dims} - {"time"}:
            coords[str(name)] = held_one.variable.copy(deep=False)
            coords[str(name)].encoding = {}  # how the store cuts it: a part of it would not be written so
    if "spatial_ref" in cube.variables:
        # Without a GeoTransform: readers trust it before the coordinates, also after a selection has made it wrong.
        crs = {k: v for k, v in cube["spatial_ref"].attrs.items() if k != "GeoTransform"}
        coords["spatial_ref"] = xr.Variable((), cube["spatial_ref"].values, crs)
    unit = info.sensor.unit
    units = CF_UNITS.get(unit, unit)
    attrs = {
        # Not where there is none: odc.geo takes `units` for those of one band and refuses several.
        **({} if units == "1" else {"units": units}),
        "long_name": LEVEL.get(info.sensor.name, "") + LONG_NAME.get(unit, unit),
        "grid_mapping": "spatial_ref",
        "sensor": info.sensor.name,
        "space_id": info.space_id,
    }
    made = xr.DataArray(data, coords, dims, QUANTITY.get(unit, unit), attrs)
    # What rioxarray and odc.geo write as nodata. Not an attribute: Zarr and netCDF want it in the encoding.
    made.encoding["_FillValue"] = np.float32(np.nan)
    return made


def clipped(decoded: xr.DataArray, unit: str) -> xr.DataArray:
    """Decoded pixels within what their unit can have; NaN stays NaN."""
    low, high = LIMITS.get(unit, (None, None))
    if low is None:
        return decoded
    kept = decoded.encoding
    made: xr.DataArray = decoded.clip(np.float32(low), None if high is None else np.float32(high), keep_attrs=True)
    made.encoding = kept
    return made


def _centres(first: int, count: int, metres: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Distances of pixel centres from the zone's origin; exact, a half metre being one in binary too."""
    return (np.arange(first, first + count, dtype=np.float64) + 0.5) * metres
