"""Writes what is seen into a cloud-optimised GeoTIFF on the cube's grid: values with names and units, or colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
from pyproj import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window as RasterWindow

from eocube.cube.geotiff import TILE, write_geotiff
from eocube.cube.selecting import bounds_of
from eocube.errors import InputError
from eocube.serve.cube import Bounds
from eocube.serve.guard import TooLargeError
from eocube.serve.layers import LEAST, Layer
from eocube.serve.raster import Raster
from eocube.serve.tiles import Ask, Shown

MOST_PIXELS = 16_000_000
"""Pixels of one download: 4000 x 4000, some 450 windows to decode."""
COG = {"COMPRESS": "DEFLATE", "BLOCKSIZE": TILE, "OVERVIEW_RESAMPLING": "AVERAGE"}
WHAT = ("values", "picture")


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
    pixel = frame.pixel if layer.origin == "decoded" else frame.cell
    many = round((bounds[2] - bounds[0]) / pixel) * round((bounds[3] - bounds[1]) / pixel)
    if many > MOST_PIXELS:
        raise TooLargeError(f"{many:,} pixels: {MOST_PIXELS:,} at most in one download; zoom in, or use eocube export")
    if what == "picture":
        _write_picture(shown, ask, bounds, path)
    elif layer.origin == "decoded" and ask.layer != "difference" and not ask.source:
        write_geotiff(_decoded(shown, ask, layer, bands, bbox), str(path))
    else:
        write_geotiff(_labelled(shown, ask, layer, bands, bounds), str(path))
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


def _labelled(shown: Shown, ask: Ask, layer: Layer, bands: Sequence[str], bounds: Bounds) -> xr.DataArray:
    """(band, y, x) of what is in memory: values, figures of windows, differences, sources."""
    raster = shown.ground(ask, bounds)
    if raster is None:
        raise InputError("the box shares no ground with the cube")
    cut = _cut(raster, bounds)
    count, height, width = cut.data.shape
    names = [layer.id if ask.layer != "difference" else "difference"] * count
    if count > 1:
        names = list(bands) if len(bands) == count else [f"{layer.id} {k + 1}" for k in range(count)]
    coords = {
        "band": names, "y": cut.top - (np.arange(height) + 0.5) * cut.pixel,
        "x": cut.left + (np.arange(width) + 0.5) * cut.pixel,
        "spatial_ref": xr.Variable((), 0, {"crs_wkt": CRS.from_epsg(cut.epsg).to_wkt()}),
        "time": shown.cube.times[ask.time],
    }  # fmt: skip
    unit = layer.legend.unit if layer.legend is not None else ""
    said = {"long_name": shown.cube.layers[ask.layer].title, "sensor": shown.cube.info.sensor.name}
    return xr.DataArray(cut.data, coords, ("band", "y", "x"), attrs={**said, **({"units": unit} if unit else {})})


def _cut(raster: Raster, bounds: Bounds) -> Raster:
    """The pixels that share ground with bounds."""
    _, height, width = raster.data.shape
    left = max(0, math.floor((bounds[0] - raster.left) / raster.pixel + 1e-6))
    top = max(0, math.floor((raster.top - bounds[3]) / raster.pixel + 1e-6))
    right = min(width, math.ceil((bounds[2] - raster.left) / raster.pixel - 1e-6))
    bottom = min(height, math.ceil((raster.top - bounds[1]) / raster.pixel - 1e-6))
    if right - left < 2 or bottom - top < 2:  # a GeoTIFF of one row or column has no sampling to tell
        left, right = max(0, min(left, width - 2)), min(width, max(right, left + 2))
        top, bottom = max(0, min(top, height - 2)), min(height, max(bottom, top + 2))
    data = raster.data[:, top:bottom, left:right]
    return Raster(data, raster.left + left * raster.pixel, raster.top - top * raster.pixel, raster.pixel, raster.epsg)


def _write_picture(shown: Shown, ask: Ask, bounds: Bounds, path: Path) -> None:
    """Colours as tiles show them, a strip of ground at a time."""
    layer, _ = shown.checked(ask)
    frame = shown.cube.frame
    pixel = frame.core_m if layer.origin == "windows" else frame.cell if layer.origin == "values" else frame.pixel
    left = frame.left + math.floor((bounds[0] - frame.left) / pixel + 1e-6) * pixel
    top = frame.top - math.floor((frame.top - bounds[3]) / pixel + 1e-6) * pixel
    width = max(1, math.ceil((bounds[2] - left) / pixel - 1e-6))
    height = max(1, math.ceil((top - bounds[1]) / pixel - 1e-6))
    strip = max(1, round(frame.core_m / pixel))
    plain = path.with_name(f"{path.name}.plain.tif")
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 4, "height": height, "width": width, "crs": f"EPSG:{frame.epsg}",
        "transform": rasterio.transform.from_origin(left, top, pixel, pixel), "tiled": True, "photometric": "RGB",
    }  # fmt: skip
    try:
        with rasterio.open(plain, "w", **profile) as target:
            target.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
            for first in range(0, height, strip):
                rows = min(strip, height - first)
                ground = (left, top - (first + rows) * pixel, left + width * pixel, top - first * pixel)
                raster = shown.ground(ask, ground)
                out = np.zeros((4, rows, width), np.uint8)
                if raster is not None:
                    _place(out, shown.colours(ask, raster.data), raster, left, ground[3], pixel)
                target.write(out, window=RasterWindow(0, first, width, rows))
        rasterio.shutil.copy(plain, path, driver="COG", **COG)
    finally:
        plain.unlink(missing_ok=True)


def _place(out: np.ndarray, colours: np.ndarray, raster: Raster, left: float, top: float, pixel: float) -> None:
    """Lay a raster's colours where they belong in a strip that begins at a corner in metres."""
    down, across = round((raster.top - top) / pixel), round((left - raster.left) / pixel)  # that it begins before it
    y0, x0, sy, sx = max(0, -down), max(0, -across), max(0, down), max(0, across)
    height = min(out.shape[1] - y0, colours.shape[1] - sy)
    width = min(out.shape[2] - x0, colours.shape[2] - sx)
    if height > 0 and width > 0:
        out[:, y0 : y0 + height, x0 : x0 + width] = colours[:, sy : sy + height, sx : sx + width]
