"""Writes a cube's composites into files: a GeoTIFF a period, or one Zarr store of all periods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from eocube.cube.composite import COUNT, How, composite
from eocube.cube.geotiff import write_geotiff
from eocube.cube.opening import open as open_cube
from eocube.errors import InputError


@dataclass(frozen=True, slots=True)
class Composed:
    """What is composited and how, in the words of `EocubeAccessor.composite`; `interval` is first and last moment."""

    period: str
    how: How = "median"
    clear: float | None = 20.0
    what: Literal["decoded", "latents"] = "decoded"
    bands: tuple[str, ...] | None = None
    bbox: tuple[float, ...] | None = None
    interval: tuple[np.datetime64, np.datetime64] | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A composite that was written: where, the period's first day (of a Zarr store all of them), dates a pixel."""

    out: str
    time: str
    most: int


def write_composites(
    url: str,
    out: str,
    wanted: Composed,
    *,
    group: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Picture]:
    """Write a cube's composites: into a folder, a COG a period, or into one Zarr store where `out` ends in .zarr.

    Raises:
        InputError: no time step within, no such period, nothing to composite.
    """
    options = None if storage_options is None else dict(storage_options)
    ds = open_cube(url, options, group=group)
    if wanted.interval is not None:
        moments = ds["time"].values
        ds = ds.isel(time=np.flatnonzero((moments >= wanted.interval[0]) & (moments <= wanted.interval[1])))
    how: dict[str, Any] = {"what": wanted.what}
    if wanted.what == "decoded":
        how |= {"bands": wanted.bands, "bbox": wanted.bbox}
    elif wanted.bands is not None:
        raise InputError("--bands are of decoded pixels: leave them out, or take --what decoded")
    elif wanted.bbox is not None:
        ds = ds.eocube.crop(wanted.bbox)
    made = composite(ds, wanted.period, wanted.how, wanted.clear, **how)
    days = [str(np.datetime_as_string(t, unit="D")) for t in made["time"].values]
    if out.rstrip("/").endswith(".zarr"):
        store = made.to_dataset(name=str(made.name or wanted.what))
        store.to_zarr(out, mode="w-", zarr_format=3, storage_options=options)
        said = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}, {len(days)} periods"
        return [Picture(out, said, int(made[COUNT].max()))]
    if "://" not in out:
        Path(out).mkdir(parents=True, exist_ok=True)
    found = []
    for day, picture in zip(days, made, strict=True):
        path = f"{out.rstrip('/')}/{day}_{wanted.how}.tif"
        write_geotiff(picture if "band" in picture.dims else _channels_named(picture), path, storage_options)
        found.append(Picture(path, day, int(picture[COUNT].max())))
    return found


def _channels_named(picture: xr.DataArray) -> xr.DataArray:
    """Latents with their channels as bands that have names, as `eocube export` gives them."""
    kept = picture.drop_vars([name for name, one in picture.coords.items() if "channel" in one.dims])
    named = kept.rename(channel="band")
    return named.assign_coords(band=[f"{picture.name or 'latent'}_{k:02d}" for k in range(picture.sizes["channel"])])
