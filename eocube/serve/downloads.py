"""Writes what is seen into a cloud-optimised GeoTIFF on the cube's grid: values with names and units, or colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
import xarray as xr
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterWindow

from eocube.cube.geotiff import TILE, write_geotiff
from eocube.cube.selecting import bounds_of
from eocube.errors import InputError
from eocube.serve.cube import Bounds, Frame
from eocube.serve.guard import TooLargeError
from eocube.serve.layers import LEAST, Layer
from eocube.serve.raster import Raster
from eocube.serve.tiles import Ask, Shown

MOST_PIXELS = 16_000_000
"""Pixels of one download: 4000 x 4000, some 450 windows to decode."""
COG = {"COMPRESS": "DEFLATE", "BLOCKSIZE": TILE, "OVERVIEW_RESAMPLING": "AVERAGE"}
WHAT = ("values", "picture")
PICTURE = ("red", "green", "blue", "alpha")


def download(shown: Shown, ask: Ask, bbox: Sequence[float] | None, what: str, path: Path) -> str:
    """Write what a layer shows of one date into a COG; returns the name to offer it under.

    Args:
        shown: the cube.
        ask: the layer, date, bands and stretch.
        bbox: west, south, east, north in degrees; None for all that was asked for.
        what: values (float32 in the layer's unit, NaN as nodata) or picture (red, green, blue and alpha, as drawn).
        path: the file.

    Raises:
        InputError: no such layer, date, band or box.
        TooLargeError: more than `MOST_PIXELS`.
    """
    if what not in WHAT:
        raise InputError(f"what={what}: take {' or '.join(WHAT)}")
    layer, bands = shown.checked(ask)
    frame = shown.cube.frame
    bounds = frame.bounds if bbox is None else bounds_of(shown.cube.ds, bbox)
    bounds = _within(bounds, frame.bounds)
    pixel = _pixel(layer, frame)
    many = round((bounds[2] - bounds[0]) / pixel) * round((bounds[3] - bounds[1]) / pixel)
    if many > MOST_PIXELS:
        raise TooLargeError(f"{many:,} pixels: {MOST_PIXELS:,} at most in one download; zoom in, or use eocube export")
    if what == "values" and layer.origin == "decoded" and ask.layer != "difference" and not ask.source:
        write_geotiff(_decoded(shown, ask, layer, bands, bbox), str(path))
    else:
        names = PICTURE if what == "picture" else _names(ask, layer, bands)
        _write_strips(shown, ask, layer, bounds, names, path)
    moment = np.datetime_as_string(shown.cube.times[ask.time], unit="s").replace("-", "").replace(":", "")
    return f"{Path(shown.cube.name.split()[0]).stem}_{ask.layer}_{moment}Z_{what}.tif"


def _within(bounds: Bounds, own: Bounds) -> Bounds:
    found = (
        max(bounds[0], own[0]), max(bounds[1], own[1]), min(bounds[2], own[2]), min(bounds[3], own[3]),
    )  # fmt: skip
    if found[0] >= found[2] or found[1] >= found[3]:
        raise InputError("the box shares no ground with the cube")
    return found


def _decoded(shown: Shown, ask: Ask, layer: Layer, bands: Sequence[str], bbox: Sequence[float] | None) -> xr.DataArray:
    """(band, y, x) lazily, as `ds.eocube.decode()` gives it, in full precision."""
    one = shown.cube.ds.isel(time=[ask.time])
    pixels: xr.DataArray = one.eocube.decode(list(bands), bbox=bbox).isel(time=0)
    if layer.formula == "bands":
        return pixels
    first, second = pixels.isel(band=[0]), pixels.isel(band=1)
    if layer.formula == "radar":
        return xr.concat([pixels, _named(first - second, f"{bands[0]}/{bands[1]}", pixels)], "band").assign_attrs(
            pixels.attrs
        )
    first, second = first.clip(min=LEAST), second.clip(min=LEAST)
    made = _named((first - second) / (first + second), layer.id, pixels)
    made.attrs = {"long_name": layer.title, **{k: v for k, v in pixels.attrs.items() if k in ("sensor", "space_id")}}
    return made


def _named(made: xr.DataArray, name: str, like: xr.DataArray) -> xr.DataArray:
    return made.drop_vars("wavelength", errors="ignore").assign_coords(
        band=[name], spatial_ref=like.coords["spatial_ref"]
    )


def _names(ask: Ask, layer: Layer, bands: Sequence[str]) -> tuple[str, ...]:
    """The bands of a file of values."""
    if ask.layer == "difference":
        return (f"{layer.id} difference",)
    if layer.formula == "radar":
        return (*bands, f"{bands[0]}/{bands[1]}")
    if layer.origin == "values":
        return tuple(f"component {k + 1}" for k in range(3))
    return tuple(bands) if layer.formula == "bands" and bands else (layer.id,)


def _pixel(layer: Layer, frame: Frame) -> float:
    """Metres along a pixel of what a layer is drawn from."""
    return {"decoded": frame.pixel, "values": float(frame.cell), "windows": float(frame.core_m)}[layer.origin]


def _write_strips(shown: Shown, ask: Ask, layer: Layer, bounds: Bounds, names: Sequence[str], path: Path) -> None:
    """Write values or, by the names of `PICTURE`, colours as tiles show them: a strip of cores at a time."""
    frame, pixel, picture = shown.cube.frame, _pixel(layer, shown.cube.frame), tuple(names) == PICTURE
    left = frame.left + math.floor((bounds[0] - frame.left) / pixel + 1e-6) * pixel
    top = frame.top - math.floor((frame.top - bounds[3]) / pixel + 1e-6) * pixel
    width = max(1, math.ceil((bounds[2] - left) / pixel - 1e-6))
    height = max(1, math.ceil((top - bounds[1]) / pixel - 1e-6))
    strip = max(1, round(frame.core_m / pixel))
    plain = path.with_name(f"{path.name}.plain.tif")
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": len(names), "height": height, "width": width, "crs": f"EPSG:{frame.epsg}",
        "transform": from_origin(left, top, pixel, pixel), "tiled": True, "BIGTIFF": "IF_SAFER",
        **({"dtype": "uint8", "photometric": "RGB"} if picture else {"dtype": "float32", "nodata": np.nan}),
    }  # fmt: skip
    try:
        with rasterio.open(plain, "w", **profile) as target:
            _describe(target, shown, ask, layer, names)
            for first in range(0, height, strip):
                rows = min(strip, height - first)
                ground = (left, top - (first + rows) * pixel, left + width * pixel, top - first * pixel)
                out = np.full((len(names), rows, width), 0 if picture else np.nan, profile["dtype"])
                raster = shown.ground(ask, ground)
                if raster is not None:
                    found = shown.colours(ask, raster.data) if picture else raster.data
                    _place(out, found, raster, left, ground[3])
                target.write(out, window=RasterWindow(0, first, width, rows))
        rasterio.shutil.copy(plain, path, driver="COG", **COG)
    finally:
        plain.unlink(missing_ok=True)


def _describe(target: Any, shown: Shown, ask: Ask, layer: Layer, names: Sequence[str]) -> None:
    """Names, units and what the file is of."""
    for k, name in enumerate(names, start=1):
        target.set_band_description(k, name)
    if tuple(names) == PICTURE:
        target.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    elif layer.legend is not None and layer.legend.unit:
        target.units = (layer.legend.unit,) * len(names)
    moment = str(np.datetime_as_string(shown.cube.times[ask.time], unit="s")).replace("T", " ")
    info = shown.cube.info
    said = {"long_name": shown.cube.layers[ask.layer].title, "sensor": info.sensor.name, "space_id": info.space_id}
    target.update_tags(AREA_OR_POINT="Area", TIFFTAG_DATETIME=moment, **said)


def _place(out: npt.NDArray[Any], found: npt.NDArray[Any], raster: Raster, left: float, top: float) -> None:
    """Lay what was found on a raster's grid where it belongs in a strip that begins at a corner in metres."""
    # Pixels that the raster begins above and left of the strip.
    down, across = round((raster.top - top) / raster.pixel), round((left - raster.left) / raster.pixel)
    y0, x0, sy, sx = max(0, -down), max(0, -across), max(0, down), max(0, across)
    height = min(out.shape[1] - y0, found.shape[1] - sy)
    width = min(out.shape[2] - x0, found.shape[2] - sx)
    if height > 0 and width > 0:
        out[:, y0 : y0 + height, x0 : x0 + width] = found[:, sy : sy + height, sx : sx + width]
