"""Answers what is at a point: its pixel decoded at every date, the window it lies in, and the source's own pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pyproj import Transformer

from eocube.errors import InputError
from eocube.serve.guard import TooLargeError
from eocube.serve.layers import Layer
from eocube.serve.pool import Leave
from eocube.serve.sources import Sources
from eocube.serve.tiles import Shown
from eocube.store.receipts import State

MOST_TIMES = 400
"""Dates that one answer has at most: each costs a window."""

TOGETHER = 16
"""Dates whose windows are decoded in one go, and held meanwhile."""


def point(
    shown: Shown, lon: float, lat: float, sources: Sources | None = None, leave: Leave | None = None
) -> dict[str, Any]:
    """`/api/point` of a cube.

    Raises:
        InputError: no place on the Earth, or none of the cube.
        TooLargeError: a cube of more than `MOST_TIMES` dates.
    """
    cube, frame = shown.cube, shown.cube.frame
    if not (math.isfinite(lon) and math.isfinite(lat) and -180 <= lon <= 180 and -90 <= lat <= 90):
        raise InputError(f"lon={lon:g}, lat={lat:g}: give degrees, -180 to 180 and -90 to 90")
    x, y = Transformer.from_crs(4326, frame.epsg, always_xy=True).transform(lon, lat)
    own = frame.bounds
    if not (own[0] <= x < own[2] and own[1] < y <= own[3]):
        raise InputError(f"lon={lon:g}, lat={lat:g} is outside of the cube")
    if len(cube.times) > MOST_TIMES:
        raise TooLargeError(f"the cube has {len(cube.times)} dates; a point is answered for {MOST_TIMES} at most")
    row, col = math.floor((frame.top - y) / frame.core_m), math.floor((x - frame.left) / frame.core_m)
    pixel_row = math.floor((frame.top - y) / frame.pixel)
    pixel_col = math.floor((x - frame.left) / frame.pixel)
    cell_row, cell_col = pixel_row // frame.stride, pixel_col // frame.stride
    order = [int(step) for step in np.argsort(cube.times, kind="stable")]
    times: list[dict[str, Any]] = []
    for first in range(0, len(order), TOGETHER):
        part = order[first : first + TOGETHER]
        if shown.decoding is not None:
            shown.decoding.ahead(part, (cell_row, cell_col, cell_row + 1, cell_col + 1), leave)
        times += [_at(shown, step, (row, col), (pixel_row, pixel_col), sources) for step in part]
    return {
        "lon": lon, "lat": lat, "x": x, "y": y,
        "window": {"row": row, "col": col, "pixel_row": pixel_row, "pixel_col": pixel_col},
        "times": times, "indices": _indices(shown, times, "decoded"),
        "source_indices": {} if sources is None else _indices(shown, times, "source"),
    }  # fmt: skip


def _at(
    shown: Shown, step: int, window: tuple[int, int], pixel: tuple[int, int], sources: Sources | None
) -> dict[str, Any]:
    cube, frame = shown.cube, shown.cube.frame
    names = cube.info.sensor.band_names
    state = State(int(cube.status[step][window]))
    figures: dict[str, float | None] = {"psnr": None, "sam": None, "cloud": None}
    for name, variable in (("psnr", "psnr"), ("sam", "sam"), ("cloud", "cloud_percent")):
        if variable in cube.ds:
            figures[name] = _number(cube.windows(variable, step)[window])
    decoded: dict[str, float | None] = dict.fromkeys(names)
    if state is State.OK and shown.decoding is not None:
        cell = (pixel[0] // frame.stride, pixel[1] // frame.stride)
        found = shown.decoding.cells(step, (*cell, cell[0] + 1, cell[1] + 1), names)
        at = found[:, pixel[0] % frame.stride, pixel[1] % frame.stride]
        decoded = {name: _number(value) for name, value in zip(names, at, strict=True)}
    source = None
    if sources is not None:
        core = sources.core(step, *window)
        inside = pixel[0] % (frame.core * frame.stride), pixel[1] % (frame.core * frame.stride)
        source = {name: None if core is None else _number(core[k][inside]) for k, name in enumerate(names)}
    return {
        "index": step, "time": f"{np.datetime_as_string(cube.times[step], unit='s')}Z",
        "status": state.label, **figures, "decoded": decoded, "source": source,
    }  # fmt: skip


def _indices(shown: Shown, times: list[dict[str, Any]], of: str) -> dict[str, list[float | None]]:
    """Each index of what is decoded or of the source through time, in the order of `times`."""
    known = [layer for layer in shown.cube.layers.known.values() if layer.formula == "difference ratio"]
    return {layer.id: [_index(layer, one[of]) for one in times] for layer in known}


def _index(layer: Layer, pixel: Mapping[str, float | None]) -> float | None:
    values = [pixel[band] for band in layer.bands or ()]
    if None in values:
        return None
    return _number(layer.picture(np.array(values, np.float32)[:, None, None])[0, 0, 0])


def _number(value: Any) -> float | None:
    """Five digits that mean something, or none."""
    found = float(value)
    return float(f"{found:.5g}") if math.isfinite(found) else None
