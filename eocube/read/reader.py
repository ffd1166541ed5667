"""Reads one window of one time step: scenes in, pixels at native sampling out, mosaicked, filled and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from eocube.errors import RefusedError, SourceError
from eocube.ground.grid import Lattice, Window
from eocube.net.network import Network, shared_network
from eocube.net.redaction import secrets_of
from eocube.net.storage_options import host_of
from eocube.net.trust import here
from eocube.raster.cache import RasterCache
from eocube.raster.checks import DEFECTS, judge_read
from eocube.raster.opening import Raster, gdal_environment
from eocube.raster.warp import PixelGrid, Placement, mirror_gaps, place
from eocube.read.bands import (
    Band,
    columns_apart,
    failure,
    gapless,
    overview,
    read_along,
    read_bands,
    read_classes,
    thinned,
)
from eocube.read.place import misplaced, touches
from eocube.read.source_shares import cloud_cells, missing_pixels, percent, valid_share
from eocube.read.window_pixels import UNKNOWN, Mask, WindowPixels, fill
from eocube.scenes.scene import BandSource, Scene
from eocube.scenes.search import sign
from eocube.sensors.radiometry import scl_fractions
from eocube.sensors.sensor import Sensor

__all__ = ["UNKNOWN", "WindowPixels", "WindowReader"]

_SCL_SAMPLING = 20

# What a window asks for over and over: three groups and a mask from each scene.
_PLACES = 16
# Windows whose ground is remembered from one time step to the next: those of some shards.
_WINDOWS = 1024

T = TypeVar("T")
Place = Callable[[PixelGrid, Affine, str], Placement]


class WindowReader:
    """Reads windows of one lattice for one sensor; for use by many threads, which share what they open on this machine.

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
        self._groups = sensor.groups(lattice.metres)
        self._local = threading.local()
        self._ground = lru_cache(_WINDOWS)(lambda window: lattice.lonlat_bounds(lattice.source_bounds(window)))

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
        with gdal_environment(self._options):
            found = self._mask(self._touching(scenes, window), window, place)
        return found.valid_percent, found.cloud_percent, found.bytes_read

    def read(self, scenes: Sequence[Scene], window: Window) -> WindowPixels:
        """The window's pixels from the scenes of one time step, in mosaic order: later ones fill what earlier left.

        What is still missing then is mirrored from what is there (the swath's edge). A window in which some band has
        no pixel at all cannot be filled: it counts as empty (`valid` is 0 throughout, the groups hold nodata).
        Raises SourceError, with the item and the asset, where a source cannot be read.
        """
        touching = self._touching(scenes, window)
        groups: dict[int, NDArray[Any]] = {}
        seen: dict[int, NDArray[np.bool_]] = {}
        used: set[str] = set()
        # A scene's bands lie alike on a group's grid: where is worked out once.
        placed = lru_cache(_PLACES)(place)
        with gdal_environment(self._options):
            mask = self._mask(touching, window, placed)
            cloud, read = mask.cloud_percent, mask.bytes_read
            for sampling, indices in self._groups.items():
                grid = self._grid(window, sampling)
                shape = (len(indices), grid.size, grid.size)
                pixels = np.full(shape, self.sensor.nodata, dtype=self.sensor.dtype)
                valid = np.zeros(shape, dtype=np.bool_)
                for scene in touching:
                    if valid.all():
                        break
                    gave, count = self._add(scene, indices, grid, pixels, valid, placed)
                    read += count
                    if gave:
                        used.add(scene.id)
                groups[sampling], seen[sampling] = pixels, valid
        ids = tuple(s.id for s in touching if s.id in used)
        if not all(band.any() for valid in seen.values() for band in valid):
            empty = np.zeros((self.lattice.core, self.lattice.core), dtype=np.uint8)
            return WindowPixels(groups, empty, 0, UNKNOWN, ids, read)
        if all(valid.all() for valid in seen.values()):
            full = np.full((self.lattice.core, self.lattice.core), 100, dtype=np.uint8)
            return WindowPixels(groups, full, 100, cloud, ids, read, None, mask.clouds)
        share, lacking = valid_share(self.lattice, seen), missing_pixels(self.lattice, seen)
        for sampling, pixels in groups.items():
            mirror_gaps(pixels, seen[sampling])
        whole = int(percent(share.mean(keepdims=True))[0, 0])
        return WindowPixels(groups, percent(share), whole, cloud, ids, read, lacking, mask.clouds)

    def read_strip(
        self, scenes: Sequence[Scene], windows: Sequence[Window], max_cloud: float | None = None
    ) -> tuple[WindowPixels, ...] | None:
        """Windows side by side, west to east, read as one: of each what `read` gives of it alone, several times faster.

        None where it takes more than copying: several scenes, one that is remote, off the grid, with a gap or an
        edge, a window cloudier than `max_cloud` percent, and whatever fails; then each is to be read on its own.
        """
        touching = self._touching(scenes, windows[0])
        if len(touching) != 1 or any(self._touching(scenes, window) != touching for window in windows[1:]):
            return None
        (scene,) = touching
        if not all(here(source.href) for source in scene.sources):
            return None
        try:
            with gdal_environment(self._options):
                return self._read_strip(scene, windows, max_cloud)
        except DEFECTS:
            raise
        except Exception:  # the window that it concerns fails in its own words
            return None

    def _read_strip(
        self, scene: Scene, windows: Sequence[Window], max_cloud: float | None
    ) -> tuple[WindowPixels, ...] | None:
        masks = self._mask_run(scene, windows)
        if masks is None or (
            max_cloud is not None and any(UNKNOWN != mask.cloud_percent > max_cloud for mask in masks)
        ):
            return None
        groups: list[dict[int, NDArray[Any]]] = [{} for _ in windows]
        bytes_read = 0
        for sampling, indices in self._groups.items():
            first, last = self._grid(windows[0], sampling), self._grid(windows[-1], sampling)
            width = columns_apart(first, last) + last.size
            pixels = np.empty((len(indices), first.size, width), dtype=self.sensor.dtype)
            for bands in self._files(scene, indices).values():
                of_file = [source for _, source in bands]
                raster, crs = self._open(scene, of_file[0])
                raw = read_along(raster, crs, first, last, of_file, self.sensor)
                if raw is None:
                    return None
                for band, (place_in_group, source) in zip(raw, bands, strict=True):
                    moved = gapless(band, source, raster.nodata[source.index - 1], self.sensor)
                    if moved is None:
                        return None
                    pixels[place_in_group] = moved
                bytes_read += len(raw) * first.size**2 * raw.itemsize  # what each would have read
            for window, group in zip(windows, groups, strict=True):
                left = columns_apart(first, self._grid(window, sampling))
                group[sampling] = pixels[:, :, left : left + first.size]
        full = np.full((self.lattice.core, self.lattice.core), 100, dtype=np.uint8)
        return tuple(
            WindowPixels(
                group, full, 100, mask.cloud_percent, (scene.id,), bytes_read + mask.bytes_read, None, mask.clouds
            )
            for group, mask in zip(groups, masks, strict=True)
        )

    def _mask_run(self, scene: Scene, windows: Sequence[Window]) -> list[Mask] | None:
        """What the scene's mask says of each core; None where it is off the grid."""
        if scene.mask is None:
            return [Mask()] * len(windows)
        first, last = (self._mask_grid(window) for window in (windows[0], windows[-1]))
        raster, crs = self._open(scene, scene.mask)
        raw = read_along(raster, crs, first, last, [scene.mask], None)
        if raw is None:
            return None
        size = first.size
        cores = (raw[0, :, k * size : (k + 1) * size] for k in range(len(windows)))
        return [self._of_classes(core, size**2 * raw.itemsize) for core in cores]

    # -- which scenes, which ground

    def _touching(self, scenes: Sequence[Scene], window: Window) -> tuple[Scene, ...]:
        here = self._ground(window)
        return tuple(scene for scene in scenes if touches(scene.bbox, here))

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
        placed: Place,
    ) -> tuple[bool, int]:
        """Fill what is not yet valid in (C_g, H_g, W_g) from one scene; (whether it gave any pixel, bytes read)."""
        gave, read = False, 0
        for every in self._files(scene, indices).values():
            bands = [(place_in_group, source) for place_in_group, source in every if not valid[place_in_group].all()]
            if not bands:
                continue
            of_file = [source for _, source in bands]

            def load(of_file: list[BandSource] = of_file) -> tuple[list[Band], int] | None:
                return self._load(scene, of_file, grid, placed)

            found = self._attempt(scene, of_file[0], load)
            if found is None:
                continue
            read += found[1]
            for (place_in_group, _), (moved, there) in zip(bands, found[0], strict=True):
                gave = fill(pixels[place_in_group], valid[place_in_group], moved, there) or gave
        return gave, read

    def _files(self, scene: Scene, indices: Sequence[int]) -> dict[str, list[tuple[int, BandSource]]]:
        """The bands of a group by the file they are in, each with its place in the group."""
        sources = {source.band: source for source in scene.sources}
        files: dict[str, list[tuple[int, BandSource]]] = {}
        for place_in_group, index in enumerate(indices):
            name = self.sensor.bands[index].name
            if name not in sources:
                raise SourceError(f"item {scene.id} has no asset for band {name}", item=scene.id, asset=name)
            files.setdefault(sources[name].href, []).append((place_in_group, sources[name]))
        return files

    def _load(
        self, scene: Scene, sources: Sequence[BandSource], grid: PixelGrid, placed: Place
    ) -> tuple[list[Band], int] | None:
        """One file's bands on the grid, and the bytes read; None off its ground."""
        raster, crs = self._open(scene, sources[0])
        at = placed(grid, raster.transform, crs)
        level = overview(raster, at.ratio)
        if level is not None:
            coarse = self._cache.get(sources[0].href, lambda href: sign(href, scene.signer), level)
            if coarse.masked == raster.masked:  # a mask may have no overviews
                raster = coarse
                at = placed(grid, raster.transform, crs)
        thin = thinned(raster, at, grid, len(sources))
        if thin is not raster:
            raster, at = thin, placed(grid, thin.transform, crs)
        found = read_bands(raster, crs, at, sources, grid, self.sensor)
        if found is None:
            _check_place(scene, raster, crs)
        return found

    def _open(self, scene: Scene, source: BandSource) -> tuple[Raster, str]:
        raster = self._cache.get(source.href, lambda href: sign(href, scene.signer))
        if not raster.georeferenced:
            raise RefusedError("it has no transform (ground control points only?); use a terrain-corrected product")
        crs = raster.crs or (f"EPSG:{scene.epsg}" if scene.epsg else None)
        if crs is None:
            raise RefusedError("neither the file nor the item says its CRS")
        return raster, crs

    # -- the mask

    def _mask(self, touching: tuple[Scene, ...], window: Window, placed: Place) -> Mask:
        key = (window, touching)
        known: tuple[tuple[Window, tuple[Scene, ...]], Mask] | None = getattr(self._local, "mask", None)
        if known is not None and known[0] == key:
            return replace(known[1], bytes_read=0)  # they were counted when it was read
        found = self._read_mask(touching, window, placed)
        self._local.mask = key, found
        return found

    def _read_mask(self, scenes: Sequence[Scene], window: Window, placed: Place) -> Mask:
        sources = [(scene, scene.mask) for scene in scenes if scene.mask is not None]
        if not scenes or len(sources) < len(scenes):
            return Mask()
        grid = self._mask_grid(window)
        classes, read = np.zeros((grid.size, grid.size), dtype=np.uint8), 0
        for scene, source in sources:

            def load(scene: Scene = scene, source: BandSource = source) -> tuple[NDArray[Any], int] | None:
                raster, crs = self._open(scene, source)
                raster = thinned(raster, placed(grid, raster.transform, crs), grid, 1)
                found = read_classes(raster, placed(grid, raster.transform, crs), source, grid)
                if found is None:
                    _check_place(scene, raster, crs)
                return found

            found = self._attempt(scene, source, load)
            if found is not None:
                classes = np.where(classes == 0, found[0], classes)
                read += found[1]
            if classes.all():
                break
        return self._of_classes(classes, read)

    def _of_classes(self, classes: NDArray[Any], bytes_read: int) -> Mask:
        """What a core's classes (n, n) come to."""
        cloud, _, nodata = scl_fractions(classes)
        valid = int(percent(np.array([1.0 - nodata]))[0])
        clouds = cloud_cells(classes, self.lattice.core)
        return Mask(valid, round(100 * cloud) if valid else UNKNOWN, clouds, bytes_read)

    def _mask_grid(self, window: Window) -> PixelGrid:
        """The core's pixels at a mask's sampling."""
        lattice = self.lattice
        side = lattice.core * lattice.cell
        sampling = max(_SCL_SAMPLING, lattice.metres)
        sampling = sampling if lattice.cell % sampling == 0 else lattice.metres
        left, _, _, top = lattice.core_bounds(window)
        return PixelGrid(lattice.epsg, left, top, float(sampling), side // sampling)

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
        except DEFECTS:
            raise
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


def _check_place(scene: Scene, raster: Raster, crs: str) -> None:
    """RefusedError where a raster that a window does not meet lies beside its item's whole footprint."""
    why = misplaced(scene, crs, raster.transform, raster.height, raster.width)
    if why is not None:
        raise RefusedError(why)
