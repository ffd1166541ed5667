"""Selects of a cube by what users say: a box in degrees, a date, the ground that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from pyproj import CRS, Transformer

from eocube.errors import InputError
from eocube.ground.boxes import BBox, boxes_said, parse_bbox, parse_interval
from eocube.store.document import CubeInfo, read_info

LISTED = 8
"""Time steps that an error names at most."""


def bounds_of(ds: xr.Dataset | xr.DataArray, bbox: Sequence[float]) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) in metres of the dataset's CRS around a box in degrees. InputError for no box."""
    if len(bbox) != 4:
        raise InputError(f"a bbox is four numbers, west south east north; {len(bbox)} given")
    boxes: tuple[BBox, ...] = parse_bbox(*map(float, bbox))
    if len(boxes) > 1:
        raise InputError(f"bbox {boxes_said(boxes)} crosses the antimeridian, where zones end: take one side at a time")
    to = Transformer.from_crs(4326, CRS.from_user_input(ds["spatial_ref"].attrs["crs_wkt"]), always_xy=True)
    left, bottom, right, top = to.transform_bounds(*boxes[0], densify_pts=21)
    return float(left), float(bottom), float(right), float(top)


def cells_in(ds: xr.Dataset, bounds: tuple[float, float, float, float], margin: float = 0.0) -> dict[str, slice]:
    """Slices to the cells (and windows, where the dataset has them) that have ground within bounds and a margin around.

    InputError where there are none.
    """
    info = read_info(ds)
    left, bottom, right, top = bounds[0] - margin, bounds[1] - margin, bounds[2] + margin, bounds[3] + margin
    found: dict[str, slice] = {}
    for name, low, high, half in (
        ("y", bottom, top, info.cell / 2), ("x", left, right, info.cell / 2),
        ("wy", bottom, top, info.cell * info.core / 2), ("wx", left, right, info.cell * info.core / 2),
    ):  # fmt: skip
        if name in ds.coords and name in ds.dims:
            at = np.flatnonzero((ds[name].values + half > low) & (ds[name].values - half < high))
            if not len(at):
                raise InputError("the box shares no ground with the cube: eocube info says where it lies")
            found[name] = slice(int(at[0]), int(at[-1]) + 1)
    return found


def pixels_in(pixels: xr.DataArray, bounds: tuple[float, float, float, float]) -> xr.DataArray:
    """The pixels of a decoded array that have ground within bounds."""
    half = abs(float(pixels.x[1] - pixels.x[0])) / 2
    left, bottom, right, top = bounds
    x, y = pixels.x.values, pixels.y.values
    cols, rows = (
        np.flatnonzero((x + half > left) & (x - half < right)),
        np.flatnonzero((y + half > bottom) & (y - half < top)),
    )
    if not len(cols) or not len(rows):
        raise InputError("the box shares no ground with the cube: eocube info says where it lies")
    return pixels.isel(x=slice(int(cols[0]), int(cols[-1]) + 1), y=slice(int(rows[0]), int(rows[-1]) + 1))


def asked_for(ds: xr.Dataset, info: CubeInfo) -> dict[str, slice]:
    """Slices to the ground that was asked for, without the rest of the shards that arrays cover."""
    if info.extent is None:
        return {}
    row0, col0, row1, col1 = info.extent
    core = info.core
    return {
        "y": slice(row0, row1), "x": slice(col0, col1),
        "wy": slice(row0 // core, row1 // core), "wx": slice(col0 // core, col1 // core),
    }  # fmt: skip


def step_of(times: np.ndarray, said: str | int) -> int:
    """The time step that a number (counted from 0, backwards from -1) or a date means.

    InputError where there is none, or a date has several: the message lists them.
    """
    text = str(said).strip()
    if text.lstrip("-").isdigit() and len(text.lstrip("-")) < 4:
        index = int(text)
        if not -len(times) <= index < len(times):
            raise InputError(f"--time {index}: the cube has time steps 0 to {len(times) - 1}")
        return index % len(times)
    first, last = (np.datetime64(t.replace(tzinfo=None), "ns") for t in parse_interval(text))
    if first == last:  # a moment: as written in the store, to the second
        last = first + np.timedelta64(999_999_999, "ns")
    found = np.flatnonzero((times >= first) & (times <= last))
    if len(found) == 1:
        return int(found[0])
    listed = times[found] if len(found) else times[np.argsort(np.abs(times - first), kind="stable")]
    shown = ", ".join(sorted(f"{np.datetime_as_string(t, unit='s')}Z" for t in listed[:LISTED]))
    if len(found):
        raise InputError(f"--time {text}: {len(found)} time steps are of it, {shown}: name one of them")
    raise InputError(f"--time {text}: the cube has no such time step; the nearest are {shown}")
