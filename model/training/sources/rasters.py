"""Cuts patches out of local, georeferenced rasters of any size, window by window: only what is asked for is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from model.sensors import SENSORS, Floats, TrainedSensor
from model.training.sources.images import Source, find_file, read_listing, to_unit, upsample
from model.training.sources.patch import BandError, Patch, Place


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    bands: tuple[str, ...]
    ratio: int
    """Pixels of the finest grid along one of its own."""
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class _Scene:
    source: Source
    files: tuple[_File, ...]
    transform: Affine
    crs: str


@dataclass(frozen=True, slots=True)
class RasterPatches:
    """Squares of `size` pixels, every `stride`, of the listing's sources of one sensor that are not held out.

    Each is read as `load_source` would read the whole image: the same units, the same bilinear upsampling of coarser
    bands. A square without a valid pixel is None. For images small enough to be held in memory there is
    `load_images` with the `Sampler`; here a patch has a place, so that the geographic split applies.

    Raises:
        ValueError: no source of the sensor, a file without a CRS, or grids that do not nest.
        BandError: a source that has fewer bands than the sensor.
        FileNotFoundError: a file that is not there.
    """

    sensor: str
    bands: tuple[str, ...]
    size: int
    places: Sequence[Place]
    _scenes: Sequence[_Scene]
    _corners: Sequence[tuple[int, int, int]] = field(repr=False)

    @classmethod
    def open(
        cls,
        listing: Path,
        root: Path,
        sensor: str,
        size: int,
        stride: int | None = None,
        *,
        sensors: Mapping[str, TrainedSensor] = SENSORS,
    ) -> RasterPatches:
        """The patches of one sensor; see the class."""
        spec = sensors[sensor]
        scenes: list[_Scene] = []
        places: list[Place] = []
        corners: list[tuple[int, int, int]] = []
        for source in read_listing(listing, sensors):
            if source.sensor != sensor or source.held_out or source.kind != "rasters":
                continue
            scene = _scene(source, root, spec)
            for row, column in _corners_of(scene, size, stride or size):
                corners.append((len(scenes), row, column))
                places.append(_place(scene, row, column, size))
            scenes.append(scene)
        if not scenes:
            raise ValueError(f"{listing.name} has no source of {sensor} of kind rasters to train on")
        if not corners:
            raise ValueError(f"no source of {sensor} in {listing.name} is {size} px wide and high: use a smaller size")
        return cls(sensor, spec.bands, size, places, scenes, corners)

    def read(self, index: int) -> Patch | None:
        """One patch, all bands of the sensor in its order; None where it has no valid pixel. OSError as rasterio's."""
        number, row, column = self._corners[index]
        scene = self._scenes[number]
        layers: dict[str, Floats] = {}
        for file in scene.files:
            values = _window(scene.source, file, row, column, self.size)
            layers |= dict(zip(file.bands, values, strict=True))
        data = np.stack([layers[b] for b in self.bands])
        if not np.isfinite(data).any():
            return None
        return Patch(f"{scene.source.name} {row} {column}", self.bands, data, self.places[index])


def _scene(source: Source, root: Path, spec: TrainedSensor) -> _Scene:
    found: list[tuple[Path, tuple[str, ...], Any]] = []
    for pattern, names in source.parts.items():
        path = find_file(source, root / source.path, pattern)
        with rasterio.open(path) as dataset:
            if dataset.crs is None or dataset.transform.is_identity:
                raise ValueError(f"{source.name}: {path.name} does not say where it lies (no CRS): use the Sampler")
            found.append((path, tuple(names), (dataset.transform, dataset.height, dataset.width, dataset.crs.to_wkt())))
    have = {b for _, names, _ in found for b in names}
    lacking = [b for b in spec.bands if b not in have]
    if lacking:
        raise BandError(f"{source.name} has no band {', '.join(lacking)} of {spec.name}: fewer than the sensor")
    finest, _, _, crs = min((facts for _, _, facts in found), key=lambda facts: abs(facts[0].a))
    files = []
    for path, bands, (transform, height, width, _) in found:
        ratio = round(transform.a / finest.a)
        same = math.isclose(transform.c, finest.c, abs_tol=1e-3) and math.isclose(transform.f, finest.f, abs_tol=1e-3)
        if not math.isclose(transform.a, ratio * finest.a, rel_tol=1e-6) or not same:
            raise ValueError(f"{source.name}: {path.name} is not on the finest band's grid: resample it first")
        files.append(_File(path, bands, ratio, height, width))
    return _Scene(source, tuple(files), finest, crs)


def _corners_of(scene: _Scene, size: int, stride: int) -> Iterator[tuple[int, int]]:
    row0, column0 = 0, 0
    rows, columns = (min(n * f.ratio for f, n in zip(scene.files, sides, strict=True)) for sides in (
        [f.height for f in scene.files], [f.width for f in scene.files]
    ))  # fmt: skip
    if scene.source.crop is not None:
        row0, column0, high, wide = scene.source.crop
        rows, columns = min(rows, row0 + high), min(columns, column0 + wide)
    for row in range(row0, rows - size + 1, stride):
        for column in range(column0, columns - size + 1, stride):
            yield row, column


def _place(scene: _Scene, row: int, column: int, size: int) -> Place:
    from rasterio.warp import transform

    x, y = scene.transform * (column + size / 2, row + size / 2)
    lon, lat = transform(scene.crs, "EPSG:4326", [x], [y])
    return Place(float(lon[0]), float(lat[0]), size * scene.source.gsd / 2)


def _window(source: Source, file: _File, row: int, column: int, size: int) -> Floats:
    """The file's bands on the square, in the sensor's unit, upsampled as the whole image would be."""
    r = file.ratio
    # one coarse pixel more on each side: what bilinear upsampling looks at
    top, left = max(0, row // r - 1), max(0, column // r - 1)
    bottom, right = (min(n, -(-(at + size) // r) + 1) for n, at in ((file.height, row), (file.width, column)))
    with rasterio.open(file.path) as dataset:
        raw = dataset.read(list(range(1, len(file.bands) + 1)), window=Window(left, top, right - left, bottom - top))
    whole = upsample(to_unit(raw, source), (bottom - top) * r, (right - left) * r, source.upsampling)
    return whole[:, row - top * r :, column - left * r :][:, :size, :size]
