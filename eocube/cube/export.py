"""Exports decoded pixels into files other tools open: GeoTIFF and Zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eocube.cube.geotiff import write_geotiff
from eocube.cube.opening import open as open_cube
from eocube.cube.selecting import step_of
from eocube.errors import InputError


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: where, and how many of which dimension."""

    out: str
    sizes: Mapping[str, int]
    bands: tuple[str, ...]

    @property
    def said(self) -> str:
        """A line on it."""
        return f"{self.out}: {' x '.join(f'{n} {d}' for d, n in self.sizes.items())}"

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"out": self.out, "sizes": dict(self.sizes), "bands": list(self.bands)}


def export(url: str, out: str, **how: Any) -> str:
    """As `exported`; returns a line on what was written."""
    return exported(url, out, **how).said


def exported(
    url: str,
    out: str,
    *,
    bands: Sequence[str] | None = None,
    time: int | str = 0,
    bbox: Sequence[float] | None = None,
    group: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    clip: bool = False,
) -> Exported:
    """Decode a cube into `out`: `.tif` (a COG) takes one time step, `.zarr` all of them.

    `time` is a step's number or its date; `bbox` cuts to the pixels of a box in degrees, `clip` keeps them within
    what their unit can have.

    Raises:
        InputError: another ending, no such time step or band, a box on other ground.
    """
    ds = open_cube(url, None if storage_options is None else dict(storage_options), group=group)
    if out.endswith(".tif"):
        decoded = ds.isel(time=[step_of(ds["time"].values, time)]).eocube.decode(bands=bands, bbox=bbox, clip=clip)
        write_geotiff(decoded.isel(time=0), out, storage_options)
    elif out.endswith(".zarr"):
        decoded = ds.eocube.decode(bands=bands, bbox=bbox, clip=clip)
        decoded.to_dataset(name=str(decoded.name or "decoded")).to_zarr(out, mode="w-", zarr_format=3)
    else:
        raise InputError(f"--out {out}: give a name ending in .tif or .zarr")
    sizes = {str(d): int(n) for d, n in decoded.sizes.items()}
    return Exported(out, sizes, tuple(str(band) for band in decoded["band"].values))
