"""One window of one time step: scenes in, pixels at native sampling out, mosaicked, filled and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eocube.catalog import sign
from eocube.errors import SourceError
from eocube.gdal_env import Raster, RasterCache, gdal_environment
from eocube.grid import Lattice, Window
from eocube.network import Network, shared_network
from eocube.radiometry import scl_fractions, to_travelling
from eocube.read_failure import RefusedError, failure, judge_read
from eocube.redaction import secrets_of
from eocube.scene import BandSource, Scene
from eocube.sensors import Sensor
from eocube.storage_options import host_of
from eocube.untrusted import too_large
from eocube.warp import (
    DOWNSAMPLING,
    PixelGrid,
    Region,
    average,
    bilinear,
    mirror_gaps,
    nearest,
    place,
    region_of,
)
from eocube.zones import BBox

UNKNOWN = 255
"""`cloud_percent` (and `valid_percent` of a mask) where no mask says it."""

_SCL_SAMPLING = 20
# An item's bbox is rounded and hugs its data; this many degrees around it still count as touched.
_BBOX_PAD = 1e-3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WindowPixels:
    """The pixels of one window.

    `groups` maps a sampling in metres to (C_g, H_g, W_g) in the sensor's travelling form, bands in the sensor's order;
    when any pixel of the core is valid, all of them are filled. `valid` (core, core) uint8 is the percentage of valid
    source samples, all bands taken together, in each latent pixel of the core; `valid_percent` the same for the whole
    core. 0 is said only where there is none and 100 only where all are valid. `cloud_percent` is that of the core's
    valid part, 255 where no mask says it. `scene_ids` are the scenes that gave pixels, in mosaic order. `bytes_read`
    counts the bytes of the source arrays as they were read (decoded, at the source's sampling), not those that
    travelled compressed.
    """

    groups: Mapping[int, NDArray[Any]]
    valid: NDArray[np.uint8]
    valid_percent: int
    cloud_percent: int
    scene_ids: tuple[str, ...]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class _Mask:
    key: tuple[Window, tuple[Scene, ...]]
    valid_percent: int
    cloud_percent: int
    bytes_read: int


class WindowReader:
    """Reads windows of one lattice for one sensor; for use by many threads, each with file handles of its own.

    The pixels depend on the scenes and the window alone: not on thread, order, bbox or earlier reads. Scenes on the
    zone's own grid are read as they are; others are resampled onto exactly the window's grid: bilinear, or by area
    where the source is more than 1.5 times finer. The file's transform and CRS count, not the item's. Backscatter is
    resampled as linear power. Coarser groups reach `Lattice.margin` beyond the window.

    Args:
        sensor: what to read, and the form the pixels travel in.
        lattice: zone, resolution, window and halo.
        storage_options: fsspec options of the sources; S3 keys are handed on to GDAL.
        retries: how often a remote source is asked again, with growing waits, before its window fails.
        network: None takes this process's own.
    """

    def __init__(
        self,
        sensor: Sensor,
        lattice: Lattice,
        *,
        storage_options: Mapping[str, Any] | None = None,
        retries: int = 3,
        network: Network | None = None,
    ) -> None:
        self.sensor, self.lattice, self.retries = sensor, lattice, retries
        self.network = network or shared_network()
        self._options = dict(storage_options or {})
        self._secrets = secrets_of(self._options)
        self._cache = RasterCache(self._options, network=self.network)
        self._groups = sensor.groups(lattice.resolution)
        self._local = threading.local()

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all sources. No thread may be reading."""
        self._cache.close()

    def mask(self, scenes: Sequence[Scene], window: Window) -> tuple[int, int, int]:
        """(valid percent, cloud percent of the valid part, bytes read) of a core, by the scenes' own masks.

        Reads no band. 255 for both where a touching scene has no mask. Raises SourceError.
        """
        touching = self._touching(scenes, window)
        key = (window, touching)
        known: _Mask | None = getattr(self._local, "mask", None)
        if known is not None and known.key == key:
            return known.valid_percent, known.cloud_percent, 0  # its bytes were counted when it was read
        with gdal_environment(self._options):
            found = self._read_mask(touching, window)
        self._local.mask = _Mask(key, *found)
        return found

    def read(self, scenes: Sequence[Scene], window: Window) -> WindowPixels:
        """The window's pixels from the scenes of one time step, in mosaic order: later ones fill what earlier left.

        What is still missing then is mirrored from what is there (the swath's edge). A window in which some band has
        no pixel at all cannot be filled: it counts as empty (`valid` is 0 throughout, the groups hold nodata).
        Raises SourceError, with the item and the asset, where a source cannot be read.
        """
        touching = self._touching(scenes, window)
        _, cloud, read = self.mask(touching, window)
        groups: dict[int, NDArray[Any]] = {}
        seen: dict[int, NDArray[np.bool_]] = {}
        used: set[str] = set()
        with gdal_environment(self._options):
            for sampling, indices in self._groups.items():
                grid = self._grid(window, sampling)
                shape = (len(indices), grid.size, grid.size)
                pixels = np.full(shape, self.sensor.nodata, dtype=self.sensor.dtype)
                valid = np.zeros(shape, dtype=np.bool_)
                for scene in touching:
                    if valid.all():
                        break
                    gave, count = self._add(scene, indices, grid, pixels, valid)
                    read += count
                    if gave:
                        used.add(scene.id)
                groups[sampling], seen[sampling] = pixels, valid
        ids = tuple(s.id for s in touching if s.id in used)
        if not all(band.any() for valid in seen.values() for band in valid):
            empty = np.zeros((self.lattice.core, self.lattice.core), dtype=np.uint8)
            return WindowPixels(groups, empty, 0, UNKNOWN, ids, read)
        share = self._share(seen)
        for sampling, pixels in groups.items():
            mirror_gaps(pixels, seen[sampling])
        return WindowPixels(groups, percent(share), int(percent(share.mean(keepdims=True))[0, 0]), cloud, ids, read)

    # -- which scenes, which ground

    def _touching(self, scenes: Sequence[Scene], window: Window) -> tuple[Scene, ...]:
        here = self.lattice.lonlat_bounds(self.lattice.source_bounds(window))
        return tuple(scene for scene in scenes if _overlap(scene.bbox, here))

    def _grid(self, window: Window, sampling: int) -> PixelGrid:
        left, _, _, top = self.lattice.group_bounds(window, sampling)
        return PixelGrid(self.lattice.epsg, left, top, float(sampling), self.lattice.group_size(sampling))

    # -- one scene

    def _add(
        self,
        scene: Scene,
        indices: Sequence[int],
        grid: PixelGrid,
        pixels: NDArray[Any],
        valid: NDArray[np.bool_],
    ) -> tuple[bool, int]:
        """Fill what is not yet valid in (C_g, H_g, W_g) from one scene; (whether it gave any pixel, bytes read)."""
        sources = {source.band: source for source in scene.sources}
        files: dict[str, list[tuple[int, BandSource]]] = {}
        for place_in_group, index in enumerate(indices):
            name = self.sensor.bands[index].name
            if name not in sources:
                raise SourceError(f"item {scene.id} has no asset for band {name}", item=scene.id, asset=name)
            if not valid[place_in_group].all():
                files.setdefault(sources[name].href, []).append((place_in_group, sources[name]))
        gave, read = False, 0
        for bands in files.values():
            of_file = [source for _, source in bands]

            def load(of_file: list[BandSource] = of_file) -> tuple[NDArray[Any], NDArray[np.bool_], int] | None:
                return self._load(scene, of_file, grid)

            found = self._attempt(scene, of_file[0], load)
            if found is None:
                continue
            moved, there, count = found
            read += count
            for k, (place_in_group, _) in enumerate(bands):
                new = there[k] & ~valid[place_in_group]
                pixels[place_in_group][new] = moved[k][new]
                valid[place_in_group] |= new
                gave = gave or bool(new.any())
        return gave, read

    def _load(
        self, scene: Scene, sources: Sequence[BandSource], grid: PixelGrid
    ) -> tuple[NDArray[Any], NDArray[np.bool_], int] | None:
        """One file's bands on the grid: travelling form and validity, (N, size, size); None off its ground."""
        raster, crs = self._open(scene, sources[0])
        at = place(grid, raster.transform, crs)
        level = _overview(raster, at.ratio)
        if level is not None:
            raster = self._cache.get(sources[0].href, lambda href: sign(href, scene.signer), level)
            at = place(grid, raster.transform, crs)
        region = region_of(at, grid, raster.height, raster.width)
        inside = region.inside(raster.height, raster.width)
        if inside is None:
            return None
        raw = _read(raster, [s.index for s in sources], inside)
        usable = np.stack(
            [_usable(band, s, raster.dataset.nodatavals[s.index - 1]) for band, s in zip(raw, sources, strict=True)]
        )
        size = raw.nbytes
        if at.exact is not None:
            raw, there = _embed(raw, inside, region, 0), _embed(usable, inside, region, False)
        else:
            values = _embed(np.where(usable, raw, np.nan).astype(np.float64), inside, region, np.nan)
            if at.ratio > DOWNSAMPLING:
                warped = average(values, raster.transform, crs, region, grid)
            else:
                warped = bilinear(values, at, region)
            there = np.isfinite(warped)
            warped = np.where(there, warped, 0.0)
            raw = (np.rint(warped) if raw.dtype.kind in "ui" else warped).astype(raw.dtype)
        moved = np.stack([to_travelling(band, s.radiometry, self.sensor) for band, s in zip(raw, sources, strict=True)])
        nodata = self.sensor.nodata
        there &= ~np.isnan(moved) if np.isnan(nodata) else moved != nodata
        return moved, there, size

    def _open(self, scene: Scene, source: BandSource) -> tuple[Raster, str]:
        raster = self._cache.get(source.href, lambda href: sign(href, scene.signer))
        if not raster.georeferenced:
            raise RefusedError("it has no transform (ground control points only?); use a terrain-corrected product")
        crs = raster.crs or (f"EPSG:{scene.epsg}" if scene.epsg else None)
        if crs is None:
            raise RefusedError("neither the file nor the item says its CRS")
        return raster, crs

    # -- the mask

    def _read_mask(self, scenes: Sequence[Scene], window: Window) -> tuple[int, int, int]:
        sources = [(scene, scene.mask) for scene in scenes if scene.mask is not None]
        if not scenes or len(sources) < len(scenes):
            return UNKNOWN, UNKNOWN, 0
        lattice = self.lattice
        side = lattice.core * lattice.cell
        sampling = max(_SCL_SAMPLING, lattice.resolution)
        sampling = sampling if side % sampling == 0 else lattice.resolution
        left, _, _, top = lattice.core_bounds(window)
        grid = PixelGrid(lattice.epsg, left, top, float(sampling), side // sampling)
        classes, read = np.zeros((grid.size, grid.size), dtype=np.uint8), 0
        for scene, source in sources:

            def load(scene: Scene = scene, source: BandSource = source) -> tuple[NDArray[Any], int] | None:
                raster, crs = self._open(scene, source)
                at = place(grid, raster.transform, crs)
                region = region_of(at, grid, raster.height, raster.width)
                inside = region.inside(raster.height, raster.width)
                if inside is None:
                    return None
                raw = _read(raster, [source.index], inside)
                whole = _embed(raw, inside, region, 0)
                return (whole if at.exact is not None else nearest(whole, at, region))[0], raw.nbytes

            found = self._attempt(scene, source, load)
            if found is not None:
                classes = np.where(classes == 0, found[0], classes)
                read += found[1]
            if classes.all():
                break
        cloud, _, nodata = scl_fractions(classes)
        valid = int(percent(np.array([1.0 - nodata]))[0])
        return valid, round(100 * cloud) if valid else UNKNOWN, read

    # -- failures

    def _attempt(self, scene: Scene, source: BandSource, load: Callable[[], T]) -> T:
        """Run a read; on failure forget the handle, wait, sign and open anew. SourceError when it is no use.

        While the source's host is down the read waits with all others: an outage fails no window before its time.
        """
        host = host_of(source.href, self._options)

        def forget() -> None:
            self._forget(source.href)

        try:
            if not host:
                return load()
            # One read makes several requests: GDAL's own, or, where they are counted out, each by the network's rules.
            return self.network.call(host, load, tries=self.retries + 1, judge=judge_read, failed=forget, request=False)
        except Exception as error:  # drivers and filesystems raise whatever they like
            if not host:
                forget()
            # `from None`: the original error may hold a signed URL.
            raise failure(scene, source, error, self._secrets) from None

    def _forget(self, href: str) -> None:
        try:
            self._cache.drop(href)
        except Exception:  # closing a broken handle may fail too; it is gone from the cache all the same
            return

    def _share(self, seen: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.float64]:
        """Share of valid samples, all bands together, in each latent pixel of the core: (core, core), 0..1."""
        lattice = self.lattice
        total = np.zeros((lattice.core, lattice.core), dtype=np.int64)
        for sampling, valid in seen.items():
            times = sampling // lattice.resolution
            start = lattice.halo_px + lattice.margin(sampling) // lattice.resolution
            count = valid.sum(axis=0, dtype=np.int64)
            core = slice(start, start + lattice.core_px)
            fine = np.repeat(np.repeat(count, times, axis=0), times, axis=1)[core, core]
            total += fine.reshape(lattice.core, lattice.stride, lattice.core, lattice.stride).sum(axis=(1, 3))
        return total / (len(self.sensor.bands) * lattice.stride**2)


def _read(raster: Raster, bands: Sequence[int], inside: Region) -> NDArray[Any]:
    """Source pixels (C, rows, columns); refused where what the file declares would take unbounded memory."""
    why = too_large(raster.dataset, len(bands), inside.row1 - inside.row0, inside.col1 - inside.col0)
    if why is not None:
        raise RefusedError(why)
    pixels: NDArray[Any] = raster.dataset.read(list(bands), window=_slices(inside))
    return pixels


def percent(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Shares 0..1 as whole percents; 0 only for exactly none, 100 only for exactly all."""
    whole = np.rint(share * 100)
    whole = np.where((share > 0) & (whole == 0), 1, whole)
    return np.asarray(np.where((share < 1) & (whole == 100), 99, whole), dtype=np.uint8)


def _usable(raw: NDArray[Any], source: BandSource, file_nodata: float | None) -> NDArray[np.bool_]:
    """Which raw pixels may take part in resampling: neither the item's nor the file's nodata, and a power above 0."""
    usable = np.isfinite(raw) if raw.dtype.kind == "f" else np.ones(raw.shape, dtype=np.bool_)
    for nodata in (source.radiometry.nodata, file_nodata):
        if nodata is not None and not np.isnan(nodata):
            usable &= raw != nodata
    if source.radiometry.kind == "power":
        usable &= ~(raw == 0)
    return usable


def _overview(raster: Raster, ratio: float) -> int | None:
    """The overview to average from: the coarsest that is still twice as fine as the grid, None for the full image."""
    fit = [k for k, factor in enumerate(raster.overviews) if factor * 2 <= ratio * (1 + 1e-6)]
    return max(fit, key=lambda k: raster.overviews[k], default=None)


def _slices(region: Region) -> tuple[tuple[int, int], tuple[int, int]]:
    return (region.row0, region.row1), (region.col0, region.col1)


def _embed(values: NDArray[Any], inside: Region, region: Region, fill: float | bool) -> NDArray[Any]:
    """Lay what was read into the whole region, `fill` around it."""
    if inside == region:
        return values
    whole = np.full((len(values), region.row1 - region.row0, region.col1 - region.col0), fill, dtype=values.dtype)
    row, col = inside.row0 - region.row0, inside.col0 - region.col0
    whole[:, row : row + values.shape[1], col : col + values.shape[2]] = values
    return whole


def _overlap(scene: BBox, here: BBox) -> bool:
    west, south, east, north = scene
    if south - _BBOX_PAD > here[3] or north + _BBOX_PAD < here[1]:
        return False
    east = east + 360.0 if east < west else east
    return any(
        west + turn - _BBOX_PAD <= here[2] and east + turn + _BBOX_PAD >= here[0] for turn in (-360.0, 0.0, 360.0)
    )
