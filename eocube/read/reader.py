"""Reads one window of one time step: scenes in, pixels at native sampling out, mosaicked, filled and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from eocube.errors import SourceError
from eocube.ground.grid import Lattice, Window
from eocube.net.network import Network
from eocube.raster.opening import Raster, gdal_environment
from eocube.raster.warp import PixelGrid, Placement, place
from eocube.read.areas import Area, areas
from eocube.read.bands import Band, overview, read_bands, read_classes, thinned
from eocube.read.buffers import Buffers
from eocube.read.held import Ask, hold
from eocube.read.place import touches
from eocube.read.shard import Asked, ShardRead, Submit, mask_sampling
from eocube.read.source_shares import as_classes, class_counts, cloud_cells
from eocube.read.sources import Sources, check_place
from eocube.read.window_pixels import UNKNOWN, Mask, WindowPixels, fill, settled
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors.sensor import Sensor

__all__ = ["UNKNOWN", "WindowPixels", "WindowReader"]

# What a window asks for over and over: three groups and a mask from each scene.
_PLACES = 16
# Windows whose ground is remembered from one time step to the next: those of some shards.
_WINDOWS = 1024

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
        self.sensor, self.lattice = sensor, lattice
        self._sources = Sources(sensor, storage_options or {}, retries, network)
        self._groups, self._buffers = sensor.groups(lattice.metres), Buffers()
        self._local = threading.local()
        self._ground = lru_cache(_WINDOWS)(lambda window: lattice.lonlat_bounds(lattice.source_bounds(window)))

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all sources. No thread may be reading."""
        self._sources.close()

    def mask(self, scenes: Sequence[Scene], window: Window) -> tuple[int, int, int]:
        """(valid percent, cloud percent of the valid part, bytes read) of a core, by the scenes' own masks.

        Reads no band. 255 for both where a touching scene has no mask. Raises SourceError.
        """
        with gdal_environment(self._sources.options):
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
        with gdal_environment(self._sources.options):
            mask = self._mask(touching, window, placed)
            read = mask.bytes_read
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
        return settled(self.lattice, groups, seen, mask, ids, read)

    def read_shard(
        self, wanted: Mapping[Window, Sequence[Scene]], max_cloud: float | None, submit: Submit
    ) -> dict[Window, Asked]:
        """Windows of one shard, read together: of each what `read` gives of it alone, many times faster.

        Where it takes no more than copying, windows are views of what is settled at once; where scenes lie off the grid
        the files' parts are read at once and each window is warped out of them as alone. Those that are not given are
        to be read on their own: files with masks or far finer pixels, and what cannot be read, which `read` then says
        in its own words.

        Args:
            wanted: the windows, each with the scenes of its time step, in mosaic order.
            max_cloud: bands of windows whose core is cloudier, in percent of its valid pixels, are not read.
            submit: runs the reading of one file on a thread; the file's href tells which files are the same.
        """
        touching = {window: self._touching(scenes, window) for window, scenes in wanted.items()}
        shard = ShardRead(self.sensor, self.lattice, self._sources, self._buffers, submit)
        found = shard.read(touching, max_cloud)
        for area, windows in areas(sorted(shard.warped - found.keys())):
            found |= self._read_warped(area, {w: touching[w] for w in windows}, max_cloud, submit)
        return found

    def _read_warped(
        self, area: Area, touching: Mapping[Window, tuple[Scene, ...]], max_cloud: float | None, submit: Submit
    ) -> dict[Window, Asked]:
        """Windows read one by one, out of what was read of their files at once; none where that cannot be."""
        corners = {Window(r, c) for r in (area.row0, area.row1 - 1) for c in (area.col0, area.col1 - 1)}
        scenes = list(dict.fromkeys(scene for some in touching.values() for scene in some))
        masks: list[Ask] = [
            (scene, [scene.mask], [self._mask_grid(w) for w in corners], None) for scene in scenes if scene.mask
        ]
        held = hold(masks, self._sources, submit)
        if held is None:
            return {}
        found = self._asked(held, touching, submit, max_cloud, bands=False)
        clear = {w: some for w, some in touching.items() if w in found and not _cloudy(found[w][0], max_cloud)}
        scenes = list(dict.fromkeys(scene for some in clear.values() for scene in some))
        try:
            bands: list[Ask] = [
                (scene, [source for _, source in of_file], [self._grid(w, sampling) for w in corners], self.sensor)
                for scene in scenes
                for sampling, indices in self._groups.items()
                for of_file in self._sources.files(scene, indices).values()
            ]
        except SourceError:  # it has no such band: each window that needs it says so
            bands, clear = [], {}
        more = hold(bands, self._sources, submit)
        whole = self._asked({**held, **more}, clear, submit, max_cloud, bands=True) if more is not None else {}
        return {w: asked for w, asked in found.items() if _cloudy(asked[0], max_cloud)} | whole

    def _asked(
        self,
        held: Mapping[str, tuple[Raster, str]],
        touching: Mapping[Window, tuple[Scene, ...]],
        submit: Submit,
        max_cloud: float | None,
        *,
        bands: bool,
    ) -> dict[Window, Asked]:
        """What the masks say of windows and, where bands are to be read, their pixels; without those that fail."""
        reader = copy(self)
        reader._sources, reader._local = self._sources.holding(held), threading.local()

        def one(window: Window) -> Asked | None:
            scenes = touching[window]
            try:
                with gdal_environment(self._sources.options):
                    mask = reader._read_mask(scenes, window, place)
                    if not bands:
                        return mask, None
                    reader._local.mask = (window, scenes), mask
                pixels = reader.read(scenes, window)
            except SourceError:
                return None
            return mask, replace(pixels, bytes_read=pixels.bytes_read + mask.bytes_read)

        jobs = {window: submit("", partial(one, window)) for window in touching}
        found = {window: job.result() for window, job in jobs.items()}
        return {window: asked for window, asked in found.items() if asked is not None}

    # -- which scenes, which ground

    def _touching(self, scenes: Sequence[Scene], window: Window) -> tuple[Scene, ...]:
        here = self._ground(window)
        return tuple(scene for scene in scenes if touches(scene.bbox, here))

    def _grid(self, window: Window, sampling: int) -> PixelGrid:
        left, _, _, top = self.lattice.group_bounds(window, sampling)
        return PixelGrid(self.lattice.epsg, left, top, float(sampling), self.lattice.group_size(sampling))

    def _mask_grid(self, window: Window) -> PixelGrid:
        """The core's pixels at a mask's sampling."""
        left, _, _, top = self.lattice.core_bounds(window)
        side, sampling = self.lattice.core * self.lattice.cell, mask_sampling(self.lattice)
        return PixelGrid(self.lattice.epsg, left, top, float(sampling), side // sampling)

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
        for every in self._sources.files(scene, indices).values():
            bands = [(place_in_group, source) for place_in_group, source in every if not valid[place_in_group].all()]
            if not bands:
                continue
            of_file = [source for _, source in bands]

            def load(of_file: list[BandSource] = of_file) -> tuple[list[Band], int] | None:
                return self._load(scene, of_file, grid, placed)

            found = self._sources.attempt(scene, of_file[0], load)
            if found is None:
                continue
            read += found[1]
            for (place_in_group, _), (moved, there) in zip(bands, found[0], strict=True):
                gave = fill(pixels[place_in_group], valid[place_in_group], moved, there) or gave
        return gave, read

    def _load(
        self, scene: Scene, sources: Sequence[BandSource], grid: PixelGrid, placed: Place
    ) -> tuple[list[Band], int] | None:
        """One file's bands on the grid, and the bytes read; None off its ground."""
        raster, crs = self._sources.open(scene, sources[0])
        at = placed(grid, raster.transform, crs)
        level = overview(raster, at.ratio)
        if level is not None:
            coarse = self._sources.overview(scene, sources[0], level)
            if coarse.masked == raster.masked:  # a mask may have no overviews
                raster = coarse
                at = placed(grid, raster.transform, crs)
        thin = thinned(raster, at, grid, len(sources))
        if thin is not raster:
            raster, at = thin, placed(grid, thin.transform, crs)
        found = read_bands(raster, crs, at, sources, grid, self.sensor)
        if found is None:
            check_place(scene, raster, crs)
        return found

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
                raster, crs = self._sources.open(scene, source)
                raster = thinned(raster, placed(grid, raster.transform, crs), grid, 1)
                found = read_classes(raster, placed(grid, raster.transform, crs), source, grid)
                if found is None:
                    check_place(scene, raster, crs)
                return found

            found = self._sources.attempt(scene, source, load)
            if found is not None:
                classes = np.where(classes == 0, found[0], classes)
                read += found[1]
            if classes.all():
                break
        core = self.lattice.core
        counts = class_counts(as_classes(classes), core, core)
        return Mask.of_counts(counts, classes.size, read, cloud_cells(counts))


def _cloudy(mask: Mask, max_cloud: float | None) -> bool:
    return max_cloud is not None and UNKNOWN != mask.cloud_percent > max_cloud
