"""Holds part of a raster in memory, so that many windows over it are warped without being fetched one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.net.redaction import one_line
from eocube.raster.checks import DEFECTS
from eocube.raster.opening import Raster, gdal_environment
from eocube.raster.warp import PixelGrid, Region, place, region_of
from eocube.read.bands import overview, read_raw
from eocube.read.shard import Submit
from eocube.read.sources import Sources
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors.sensor import Sensor

log = logging.getLogger(__name__)

_SPARE = 4
"""Source pixels held around what the outermost windows need: no map projection bends more between them."""
_FINER = 1.5
"""Source pixels a grid pixel, a side, up to which a raster is held: of finer ones an overview may be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRaster(Raster):
    """A raster of which a region of some bands is there; what is asked beyond it is read of the raster itself."""

    pixels: NDArray[Any]
    """(bands, rows, columns) of the region."""
    region: Region
    bands: tuple[int, ...]
    itself: Callable[[], Raster]

    @classmethod
    def of(cls, raster: Raster, pixels: NDArray[Any], region: Region, bands: Sequence[int], itself: Any) -> HeldRaster:
        """What was read of a raster. `itself` opens it."""
        shared = {f.name: getattr(raster, f.name) for f in fields(Raster)}
        return cls(**shared, pixels=pixels, region=region, bands=tuple(bands), itself=itself)

    def read(self, bands: Sequence[int], rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[Any]:
        """As the raster's own."""
        at = self.region
        inside = at.row0 <= rows[0] and rows[1] <= at.row1 and at.col0 <= cols[0] and cols[1] <= at.col1
        if self.step != 1 or not inside or not set(bands) <= set(self.bands):
            return self._there().read(bands, rows, cols)
        places = [self.bands.index(band) for band in bands]
        return self.pixels[places, rows[0] - at.row0 : rows[1] - at.row0, cols[0] - at.col0 : cols[1] - at.col0]

    def mask(self, bands: Sequence[int], rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.bool_]:
        """As the raster's own."""
        return self._there().mask(bands, rows, cols)

    def _there(self) -> Raster:
        raster = self.itself()
        return raster if self.step == 1 else raster.every(self.step)


@dataclass(slots=True)
class _File:
    """One file to hold: what is asked of it, and on which grids."""

    scene: Scene
    source: BandSource
    sensor: Sensor | None
    bands: dict[int, BandSource]
    grids: list[PixelGrid]


Ask = tuple[Scene, Sequence[BandSource], Iterable[PixelGrid], Sensor | None]
"""Bands of one file, the grids of the outermost windows over it, and the sensor; None of classes."""


def hold(asked: Iterable[Ask], sources: Sources, submit: Submit) -> Mapping[str, tuple[Raster, str]] | None:
    """What windows need of files, read at once, by href with each CRS; None where something cannot be held or read."""
    files: dict[str, _File] = {}
    for scene, bands, grids, sensor in asked:
        file = files.setdefault(bands[0].href, _File(scene, bands[0], sensor, {}, []))
        file.bands |= {band.index: band for band in bands}
        file.grids += grids

    def held(file: _File) -> tuple[Raster, str] | None:
        with gdal_environment(sources.options):
            try:
                return sources.tried(file.source, lambda: _read(file, sources))
            except DEFECTS:
                raise
            except Exception as error:  # each window that it concerns fails in its own words
                log.debug("not held: %s", one_line(error))
                return None

    jobs: dict[str, Future[tuple[Raster, str] | None]] = {}
    for href, file in files.items():
        jobs[href] = submit(href, partial(held, file))
    found = {href: job.result() for href, job in jobs.items()}
    return {href: one for href, one in found.items() if one} if all(found.values()) else None


def _read(file: _File, sources: Sources) -> tuple[Raster, str] | None:
    raster, crs = sources.open(file.scene, file.source)
    if any(raster.masked):
        return None
    regions = []
    for grid in file.grids:
        at = place(grid, raster.transform, crs)
        if at.ratio > _FINER or overview(raster, at.ratio) is not None:
            return None
        regions.append(region_of(at, grid, raster.height, raster.width))
    around = Region(
        min(r.row0 for r in regions) - _SPARE, min(r.col0 for r in regions) - _SPARE,
        max(r.row1 for r in regions) + _SPARE, max(r.col1 for r in regions) + _SPARE,
    )  # fmt: skip
    inside = around.inside(raster.height, raster.width)
    bands = list(file.bands.values())
    if inside is None:
        inside, pixels = Region(0, 0, 0, 0), np.zeros((len(bands), 0, 0), np.uint8)
    else:
        pixels = read_raw(raster, bands, inside, file.sensor)
    itself = partial(_opened, sources, file)
    return HeldRaster.of(raster, pixels, inside, list(file.bands), itself), crs


def _opened(sources: Sources, file: _File) -> Raster:
    return sources.open(file.scene, file.source)[0]
