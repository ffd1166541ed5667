"""Exports a cube whole: a GeoTIFF or GeoParquet file a time step, of decoded pixels or of what the cube holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pyproj import CRS, Transformer

from eocube.cube.geotiff import write_geotiff
from eocube.cube.opening import open as open_cube
from eocube.cube.tables import check_ending, write_table
from eocube.errors import InputError
from eocube.ground.zones import zone_name
from eocube.store.existing import zones_of

FORMATS = {"cog": ".tif", "geoparquet": ".parquet"}
ROWS = 256
"""Rows of pixels or cells that a table is written in at once, at least."""


@dataclass(frozen=True, slots=True)
class Export:
    """What is exported: "latents" or "decoded", as "cog" or "geoparquet", of which bands, times and box."""

    what: str = "decoded"
    format: str = "cog"
    bands: tuple[str, ...] | None = None
    interval: tuple[np.datetime64, np.datetime64] | None = None
    """First and last moment, both included."""
    bbox: tuple[float, ...] | None = None
    clip: bool = False
    """Whether decoded pixels are kept within what their unit can have."""

    def __post_init__(self) -> None:
        for value, known, flag in ((self.what, ("latents", "decoded"), "--what"), (self.format, FORMATS, "--format")):
            if value not in known:
                raise InputError(f"{flag}: no {value!r}, there is {', '.join(known)}")
        if self.bands is not None and self.what == "latents":
            raise InputError("--bands are of decoded pixels: leave them out, or take --what decoded")
        if self.format == "geoparquet":
            check_ending("x.parquet")


def export_all(
    url: str, out: str, wanted: Export, storage_options: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, str]]:
    """Write a file a time step (and zone) into the folder `out`; gives each file's path and a line on it.

    Files are called by zone, moment and what they hold: `utm33_20230815T095031Z_decoded.tif`. GeoTIFFs are
    cloud-optimised, float32 with NaN as nodata and bands by name; GeoParquet has a row a pixel (or cell) with a value:
    its centre in degrees, x and y in metres, time, values.

    Raises:
        InputError: no time step in the interval, a box on other ground, no such band.
    """
    options = None if storage_options is None else dict(storage_options)
    local = "://" not in out
    if local:
        Path(out).mkdir(parents=True, exist_ok=True)
    made = 0
    for zone in zones_of(url, options) or (None,):
        ds = open_cube(url, options, group=zone)
        name = _zone_of(ds)
        moments = ds["time"].values
        for step in np.argsort(moments, kind="stable"):
            moment = moments[step]
            if wanted.interval is not None and not wanted.interval[0] <= moment <= wanted.interval[1]:
                continue
            image = _image(ds.isel(time=[int(step)]), wanted).isel(time=0)
            stamp = str(np.datetime_as_string(moment, unit="s")).replace("-", "").replace(":", "")
            path = f"{out.rstrip('/')}/{name}_{stamp}Z_{wanted.what}{FORMATS[wanted.format]}"
            if wanted.format == "cog":
                write_geotiff(image, path, options)
                said = " x ".join(f"{n} {d}" for d, n in image.sizes.items())
            else:
                said = f"{write_table(path, _tables(image, moment), options)} rows"
            made += 1
            yield path, said
    if not made:
        raise InputError(f"{url} has no time step in what was asked for: eocube info lists them")


def _zone_of(ds: xr.Dataset) -> str:
    epsg: int = CRS.from_user_input(ds["spatial_ref"].attrs["crs_wkt"]).to_epsg() or 0
    return zone_name(epsg)


def _image(ds: xr.Dataset, wanted: Export) -> xr.DataArray:
    """(time, band, y, x) of what is exported, lazily."""
    if wanted.what == "decoded":
        decoded: xr.DataArray = ds.eocube.decode(wanted.bands, bbox=wanted.bbox, clip=wanted.clip)
        return decoded
    cut = ds.eocube.crop(wanted.bbox)
    made = cut.eocube.info.product
    names = made.channel_names or tuple(f"{made.array}_{k:02d}" for k in range(made.channels))
    values = cut.eocube.real_values().transpose("time", "channel", "y", "x")
    values = values.drop_vars([n for n, c in values.coords.items() if "channel" in c.dims]).rename(channel="band")
    named: xr.DataArray = values.assign_coords(band=list(names))
    said = {"long_name": made.long_name, "sensor": cut.eocube.sensor.name, "space_id": cut.eocube.space_id}
    named.attrs = said
    return named


def _tables(image: xr.DataArray, moment: np.datetime64) -> Iterator[Mapping[str, Any]]:
    """Rows of what has a value, some rows of the raster at a time."""
    to = Transformer.from_crs(CRS.from_user_input(image["spatial_ref"].attrs["crs_wkt"]), 4326, always_xy=True)
    names: Sequence[str] = [str(name) for name in image["band"].values]
    height = image.sizes["y"]
    rows = max(ROWS, int(image.chunksizes["y"][0]) if image.chunksizes else ROWS)
    for top in range(0, height, rows):
        part = image.isel(y=slice(top, top + rows))
        values = part.transpose("band", "y", "x").values
        y, x = np.nonzero(np.isfinite(values).all(axis=0))
        across, up = part["x"].values[x], part["y"].values[y]
        lon, lat = to.transform(across, up)
        found: dict[str, Any] = {"time": np.full(len(x), moment), "lon": lon, "lat": lat, "x": across, "y": up}
        yield found | {name: values[k, y, x] for k, name in enumerate(names)}
