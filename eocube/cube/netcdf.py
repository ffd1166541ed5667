"""Writes decoded pixels, or what a cube stores, as netCDF: attributes and types that netCDF has, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from eocube.errors import InputError

TYPES = {np.dtype("float16"): np.dtype("float32"), np.dtype("bool"): np.dtype("uint8")}
"""What netCDF lacks -> the next that holds the same values."""


def netcdf_safe(ds: xr.Dataset) -> xr.Dataset:
    """The dataset as netCDF can hold it, lazily: values and coordinates the same.

    Attributes that are objects (`eocube`, `zarr_conventions`) become their JSON text, truth values 0 and 1; half floats
    become floats, strings of varying length objects. How the Zarr store cuts and packs its arrays is forgotten.
    """
    made = ds.copy()
    made.attrs = attributes(ds.attrs)
    for name, variable in ds.variables.items():
        one = variable
        if one.dtype in TYPES:
            one = one.astype(TYPES[one.dtype])
        elif one.dtype.kind == "T":
            one = one.astype(object)
        one = one.copy(deep=False)
        one.attrs = attributes(variable.attrs)
        if "flag_values" in one.attrs:  # CF wants them of the flags' own type, which JSON does not tell
            one.attrs["flag_values"] = np.asarray(one.attrs["flag_values"], one.dtype)
        if "grid_mapping_name" in one.attrs:
            one.attrs.setdefault("long_name", "coordinate reference system")
        one.encoding = {k: v for k, v in variable.encoding.items() if k in ("_FillValue", "units", "calendar")}
        if name in ds.dims:  # an axis lacks nothing, and CF refuses a fill value for it, which xarray would add
            one.encoding["_FillValue"] = None
        if variable.dtype.kind == "M":
            one.encoding.setdefault("units", "seconds since 1970-01-01")
        made[name] = one
    return made


def attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as netCDF takes them: texts, numbers, and lists of numbers."""
    found: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, bool | np.bool_):
            value = int(value)
        elif value is None or isinstance(value, dict):
            value = json.dumps(value)
        elif isinstance(value, list | tuple) and not all(isinstance(v, int | float | np.number) for v in value):
            value = " ".join(value) if all(isinstance(v, str) and " " not in v for v in value) else json.dumps(value)
        found[str(name)] = value
    return found


def write_netcdf(
    ds: xr.Dataset,
    path: str | Path,
    what: Literal["decoded", "stored"] = "decoded",
    bands: Sequence[str] | str | None = None,
    bbox: Sequence[float] | None = None,
    **how: Any,
) -> str:
    """Write a cube's decoded pixels, or its stored arrays, as netCDF; returns the path.

    Args:
        ds: the cube.
        path: file to write.
        what: "decoded", or "stored": every array of the cube as xarray gives it.
        bands: of decoded pixels.
        bbox: west, south, east, north in degrees.
        how: goes on to `Dataset.to_netcdf`, such as `engine` or `encoding`.

    Raises:
        InputError: another `what`, bands of what is stored, a place that cannot be written; or no library that writes
            netCDF 4 is installed, which stored arrays need (decoded ones do with scipy's).
    """
    if what not in ("decoded", "stored"):
        raise InputError(f"what={what!r}: take decoded or stored")
    if what == "decoded":
        decoded = ds.eocube.decode(bands, bbox=bbox)
        chosen = decoded.to_dataset(name=str(decoded.name or "decoded"))
        chosen.attrs = {k: v for k, v in ds.attrs.items() if k in ("Conventions", "title")}
    else:
        if bands is not None:
            raise InputError("bands are of decoded pixels: leave them out, or take what='decoded'")
        chosen = ds if bbox is None else ds.eocube.crop(bbox)
    try:
        netcdf_safe(chosen).to_netcdf(path, **how)
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "" if what == "decoded" or _netcdf4() else ": pip install h5netcdf or netCDF4, which stored arrays need"
        raise InputError(f"{path}: netCDF cannot be written ({error}){hint}") from error
    return str(path)


def _netcdf4() -> bool:
    from importlib.util import find_spec

    return find_spec("netCDF4") is not None or find_spec("h5netcdf") is not None
