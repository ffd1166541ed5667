"""Exports decoded pixels into files other tools open: GeoTIFF and Zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterWindow

from eocube.cube.accessor import open as open_cube
from eocube.errors import InputError

TILE = 256
"""Side of a GeoTIFF's tiles."""


def export(
    url: str,
    out: str,
    *,
    bands: Sequence[str] | None = None,
    time: int = 0,
    group: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Decode a cube into `out`: `.tif` takes one time step, `.zarr` all of them. Returns what was written, in a line.

    Raises:
        InputError: another ending, or no such time step or band.
    """
    ds = open_cube(url, None if storage_options is None else dict(storage_options), group=group)
    decoded: xr.DataArray = ds.eocube.decode(bands=bands)
    if out.endswith(".tif"):
        if not 0 <= time < decoded.sizes["time"]:
            raise InputError(f"--time {time}: the cube has time steps 0 to {decoded.sizes['time'] - 1}")
        write_geotiff(decoded.isel(time=time), out)
    elif out.endswith(".zarr"):
        decoded.to_dataset(name=str(decoded.name or "decoded")).to_zarr(out, mode="w-", zarr_format=3)
    else:
        raise InputError(f"--out {out}: give a name ending in .tif or .zarr")
    return f"{out}: {' x '.join(f'{n} {d}' for d, n in decoded.sizes.items())}"


def write_geotiff(image: xr.DataArray, out: str) -> None:
    """A (band, y, x) image as a tiled, compressed float32 GeoTIFF, NaN as nodata, written a row of tiles at a time."""
    x, y = image.x.values, image.y.values
    dx, dy = float(x[1] - x[0]), float(y[0] - y[1])
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": image.sizes["band"], "height": len(y), "width": len(x),
        "crs": image.spatial_ref.attrs["crs_wkt"], "transform": from_origin(x[0] - dx / 2, y[0] + dy / 2, dx, dy),
        "nodata": np.nan, "tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "predictor": 3,
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    rows = max(TILE, int(image.chunksizes["y"][0]) if image.chunksizes else TILE)
    with rasterio.open(out, "w", **profile) as target:
        for k, name in enumerate(image.band.values, start=1):
            target.set_band_description(k, str(name))
        for top in range(0, len(y), rows):
            part = image.isel(y=slice(top, top + rows)).values
            target.write(part, window=RasterWindow(0, top, len(x), part.shape[1]))
