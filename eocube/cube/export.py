"""Exports decoded pixels into files other tools open: GeoTIFF and Zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterWindow

from eocube.cube.accessor import open as open_cube
from eocube.cube.staging import staged
from eocube.errors import InputError

TILE = 512
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
    """Decode a cube into `out`: `.tif` (a COG) takes one time step, `.zarr` all of them. Returns a line on it.

    Raises:
        InputError: another ending, or no such time step or band.
    """
    ds = open_cube(url, None if storage_options is None else dict(storage_options), group=group)
    decoded: xr.DataArray = ds.eocube.decode(bands=bands)
    if out.endswith(".tif"):
        if not 0 <= time < decoded.sizes["time"]:
            raise InputError(f"--time {time}: the cube has time steps 0 to {decoded.sizes['time'] - 1}")
        write_geotiff(decoded.isel(time=time), out, storage_options)
    elif out.endswith(".zarr"):
        decoded.to_dataset(name=str(decoded.name or "decoded")).to_zarr(out, mode="w-", zarr_format=3)
    else:
        raise InputError(f"--out {out}: give a name ending in .tif or .zarr")
    return f"{out}: {' x '.join(f'{n} {d}' for d, n in decoded.sizes.items())}"


def write_geotiff(image: xr.DataArray, out: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Write a (band, y, x) image as a cloud-optimised GeoTIFF: float32, NaN as nodata, tiled, with averaged overviews.

    It is decoded a row of cores at a time into a plain file, of which GDAL's COG driver makes the other: memory holds
    one such row. `out` is a path or any fsspec URL; nothing is left there when the writing fails.
    """
    with staged(out, storage_options) as cog:
        plain = cog.with_name("plain.tif")
        _write_rows(image, plain)
        options = {
            "COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BLOCKSIZE": TILE, "OVERVIEW_RESAMPLING": "AVERAGE",
            "BIGTIFF": "IF_SAFER", "NUM_THREADS": "ALL_CPUS",
        }  # fmt: skip
        rasterio.shutil.copy(plain, cog, driver="COG", **options)


def _write_rows(image: xr.DataArray, path: Path) -> None:
    x, y = image.x.values, image.y.values
    dx, dy = float(x[1] - x[0]), float(y[0] - y[1])
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": image.sizes["band"], "height": len(y), "width": len(x),
        "crs": image.spatial_ref.attrs["crs_wkt"], "transform": from_origin(x[0] - dx / 2, y[0] + dy / 2, dx, dy),
        "nodata": np.nan, "tiled": True, "blockxsize": TILE, "blockysize": TILE, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    rows = max(TILE, int(image.chunksizes["y"][0]) if image.chunksizes else TILE)
    with rasterio.open(path, "w", **profile) as target:
        target.update_tags(AREA_OR_POINT="Area")
        for k, name in enumerate(image.band.values, start=1):
            target.set_band_description(k, str(name))
        for top in range(0, len(y), rows):
            part = image.isel(y=slice(top, top + rows)).values
            target.write(part, window=RasterWindow(0, top, len(x), part.shape[1]))
