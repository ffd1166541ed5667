"""Writes decoded pixels as a cloud-optimised GeoTIFF: names of bands, units, nodata, overviews."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterWindow

from eocube.cube.staging import staged

TILE = 512
"""Side of a GeoTIFF's tiles."""


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
    image = image if "band" in image.dims else image.expand_dims("band")
    x, y = image.x.values, image.y.values
    dx, dy = float(x[1] - x[0]), float(y[0] - y[1])
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": image.sizes["band"], "height": len(y), "width": len(x),
        "crs": image.spatial_ref.attrs["crs_wkt"], "transform": from_origin(x[0] - dx / 2, y[0] + dy / 2, dx, dy),
        "nodata": np.nan, "tiled": True, "blockxsize": TILE, "blockysize": TILE, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    rows = max(TILE, int(image.chunksizes["y"][0]) if image.chunksizes else TILE)
    names = [str(name) for name in np.atleast_1d(image.band.values)]
    said = {k: str(image.attrs[k]) for k in ("long_name", "sensor", "space_id") if k in image.attrs}
    if "time" in image.coords:
        said["TIFFTAG_DATETIME"] = str(np.datetime_as_string(image.time.values, unit="s")).replace("T", " ")
    with rasterio.open(path, "w", **profile) as target:
        target.update_tags(AREA_OR_POINT="Area", **said)
        for k, name in enumerate(names, start=1):
            target.set_band_description(k, name)
        if "units" in image.attrs:
            target.units = (str(image.attrs["units"]),) * len(names)
        for top in range(0, len(y), rows):
            part = image.isel(y=slice(top, top + rows)).values
            target.write(part, window=RasterWindow(0, top, len(x), part.shape[1]))
