"""Reads one file's bands on a window's grid: resampled where the grids differ, in travelling form, valid or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.errors import RefusedError, SourceError
from eocube.net.redaction import one_line, safe_url
from eocube.raster.checks import WHOLE, too_large
from eocube.raster.opening import Raster
from eocube.raster.warp import (
    DOWNSAMPLING,
    PixelGrid,
    Placement,
    Region,
    average,
    bilinear,
    nearest,
    region_of,
)
from eocube.read.plausible import check_digital, check_numbers, check_range
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors.radiometry import to_sensor_dn
from eocube.sensors.sensor import Sensor

Band = tuple[NDArray[Any], NDArray[np.bool_]]
"""Pixels (size, size) in travelling form, and where they are valid; those that are not mean nothing."""


def read_bands(
    raster: Raster, crs: str, at: Placement, sources: Sequence[BandSource], grid: PixelGrid, sensor: Sensor
) -> tuple[list[Band], int] | None:
    """A file's bands on a grid that lies `at` a place in it, and the bytes read; None where the file is elsewhere.

    Raises `RefusedError` or `RadiometryError` for what must not be used, and whatever GDAL raises.
    """
    region = region_of(at, grid, raster.height, raster.width)
    inside = region.inside(raster.height, raster.width)
    if inside is None:
        return None
    raw = read_raw(raster, sources, inside, sensor)
    seen = [usable(band, s, raster.nodata[s.index - 1]) for band, s in zip(raw, sources, strict=True)]
    _leave_out_masked(seen, raster, sources, inside)
    for band, s, valid in zip(raw, sources, seen, strict=True):
        check_range(band, valid, s, sensor)
        check_digital(band, valid, raster, s, sensor)
    if at.exact is not None:
        pixels, there = [embed(b, inside, region, 0) for b in raw], [embed(v, inside, region, False) for v in seen]
    else:
        floats = np.where(np.stack(seen), raw, np.nan).astype(np.float64)
        values = embed(floats, inside, region, np.nan)
        if at.ratio > DOWNSAMPLING:
            warped = average(values, raster.transform, crs, region, grid)
        else:
            warped = bilinear(values, at, region)
        there = list(np.isfinite(warped))
        warped = np.where(there, warped, 0.0)
        pixels = list((np.rint(warped) if raw.dtype.kind in "ui" else warped).astype(raw.dtype))
    bands = []
    for band, valid, source in zip(pixels, there, sources, strict=True):
        moved = to_sensor_dn(band, source.radiometry, sensor)
        bands.append((moved, valid & is_data(moved, sensor)))
    return bands, raw.nbytes


def read_classes(raster: Raster, at: Placement, source: BandSource, grid: PixelGrid) -> tuple[NDArray[Any], int] | None:
    """A file's classes (size, size) on a grid, 0 beyond the file, and the bytes read; None where it is elsewhere."""
    region = region_of(at, grid, raster.height, raster.width)
    inside = region.inside(raster.height, raster.width)
    if inside is None:
        return None
    raw = read_raw(raster, [source], inside, None)
    if raster.masked[source.index - 1]:
        raw = np.where(raster.mask([source.index], *_ranges(inside)), raw, 0)
    classes = embed(raw, inside, region, 0)
    return (classes if at.exact is not None else nearest(classes, at, region))[0], raw.nbytes


def overview(raster: Raster, ratio: float) -> int | None:
    """The overview to average from: the coarsest that is still twice as fine as the grid, None for the full image."""
    fit = [k for k, factor in enumerate(raster.overviews) if factor * 2 <= ratio * (1 + 1e-6)]
    return max(fit, key=lambda k: raster.overviews[k], default=None)


def thinned(raster: Raster, at: Placement, grid: PixelGrid, bands: int) -> Raster:
    """The raster, or one pixel out of several where a window would need too many: still twice as fine as the grid.

    For files without overviews whose pixels are many times finer than the grid's.
    """
    if at.ratio < 4:
        return raster
    inside = region_of(at, grid, raster.height, raster.width).inside(raster.height, raster.width)
    if inside is None or bands * (inside.row1 - inside.row0) * (inside.col1 - inside.col0) <= WHOLE:
        return raster
    return raster.every(int(at.ratio / 2))


def embed(values: NDArray[Any], inside: Region, region: Region, fill: float | bool) -> NDArray[Any]:
    """Lay what was read, (..., rows, columns), into the whole region, `fill` around it."""
    if inside == region:
        return values
    around = (*values.shape[:-2], region.row1 - region.row0, region.col1 - region.col0)
    embedded = np.full(around, fill, dtype=values.dtype)
    row, col = inside.row0 - region.row0, inside.col0 - region.col0
    embedded[..., row : row + values.shape[-2], col : col + values.shape[-1]] = values
    return embedded


def whole(number: float, pixels: NDArray[Any]) -> float:
    """A number as an integer where the pixels are: compared with a float, numpy would make floats of them all."""
    return int(number) if pixels.dtype.kind in "ui" and float(number).is_integer() else number


def read_raw(raster: Raster, sources: Sequence[BandSource], inside: Region, sensor: Sensor | None) -> NDArray[Any]:
    """Source pixels (C, rows, columns); refused where they are of a kind that is not read, or take unbounded memory."""
    for source in sources:
        check_numbers(raster.dtypes, raster.palettes, source, sensor)
    rows, cols = inside.row1 - inside.row0, inside.col1 - inside.col0
    why = too_large(raster.block_bytes, raster.item_bytes, len(sources), rows, cols, raster.step)
    if why is not None:
        raise RefusedError(why)
    return raster.read([s.index for s in sources], *_ranges(inside))


def _ranges(region: Region) -> tuple[tuple[int, int], tuple[int, int]]:
    return (region.row0, region.row1), (region.col0, region.col1)


def _leave_out_masked(
    usable: list[NDArray[np.bool_]], raster: Raster, sources: Sequence[BandSource], inside: Region
) -> None:
    """Take out of the usable pixels of each band those that the file's mask or alpha band leaves out."""
    if not any(raster.masked[s.index - 1] for s in sources):
        return
    masks = raster.mask([s.index for s in sources], *_ranges(inside))
    for band, seen in zip(usable, masks, strict=True):
        band &= seen


def is_data(moved: NDArray[Any], sensor: Sensor) -> NDArray[np.bool_]:
    """Where pixels in travelling form are not the sensor's nodata."""
    there: NDArray[np.bool_] = ~np.isnan(moved) if np.isnan(sensor.nodata) else moved != whole(sensor.nodata, moved)
    return there


def usable(raw: NDArray[Any], source: BandSource, file_nodata: float | None) -> NDArray[np.bool_]:
    """Which raw pixels may take part in resampling: neither the item's nor the file's nodata, and a power above 0."""
    seen: NDArray[np.bool_] = np.isfinite(raw) if raw.dtype.kind == "f" else np.ones(raw.shape, dtype=np.bool_)
    for nodata in {source.radiometry.nodata, file_nodata}:
        if nodata is not None and not np.isnan(nodata):
            seen &= raw != whole(nodata, raw)
    if source.radiometry.kind == "power":
        seen &= ~(raw == 0)
    return seen


def failure(scene: Scene, source: BandSource, error: Exception, secrets: Sequence[str] = ()) -> SourceError:
    """The error that ends a window `read_failed`."""
    why = one_line(error.__cause__ or error, secrets) or type(error).__name__
    return SourceError(
        f"item {scene.id}, asset {source.key}: cannot read {safe_url(source.href)}: {why}",
        item=scene.id,
        asset=source.key,
    )
