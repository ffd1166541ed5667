"""Reads many windows of a shard as one: each file's part once, settled as a whole; windows are views of it.

What comes out is what `WindowReader.read` gives of each window, to the bit, or nothing for it: then it is read on its
own. So for scenes off the zone's grid and files with masks, where more than copying is to be done, for windows of which
something cannot be read, and where the kind of the numbers is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from eocube.errors import SourceError
from eocube.ground.grid import Lattice, Window
from eocube.net.failures import Failure
from eocube.raster.checks import DEFECTS, judge_read
from eocube.raster.opening import Raster, gdal_environment
from eocube.raster.warp import Region
from eocube.read.areas import Area, Layout, Part, areas, halves, origin_in, region_around, shifted, within
from eocube.read.bands import read_raw
from eocube.read.buffers import Buffers
from eocube.read.layers import Piece, check_piece, is_plain
from eocube.read.mosaic import Group, Mosaic, mosaic_order
from eocube.read.place import misplaced
from eocube.read.source_shares import class_counts, cloud_cells
from eocube.read.sources import Sources, check_place
from eocube.read.window_pixels import UNKNOWN, Mask, WindowPixels
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors.sensor import Sensor

T = TypeVar("T")
_SCL_SAMPLING = 20

Asked = tuple[Mask, WindowPixels | None]
"""What the masks say of a window, and its pixels; None of a window that is too cloudy to be read."""


class Submit(Protocol):
    """Runs a piece of work on a thread; those of the same file on the same one, which keeps it open."""

    def __call__(self, href: str, work: Callable[[], T], /) -> Future[T]:
        """The work's result to come."""
        ...


def mask_sampling(lattice: Lattice) -> int:
    """Metres a sample at which a mask is looked at."""
    sampling = max(_SCL_SAMPLING, lattice.metres)
    return sampling if lattice.cell % sampling == 0 else lattice.metres


class ShardRead:
    """One reading of some windows of a shard.

    Args:
        sensor, lattice, sources, buffers: the reader's.
        submit: runs the reading of one file on a thread.
    """

    def __init__(self, sensor: Sensor, lattice: Lattice, sources: Sources, buffers: Buffers, submit: Submit) -> None:
        self._sensor, self._lattice, self._sources, self._submit = sensor, lattice, sources, submit
        self._buffers = buffers
        self.warped: set[Window] = set()
        """Windows that were left out since a file of theirs is not on their grid, and not for a failure."""

    def read(self, touching: Mapping[Window, tuple[Scene, ...]], max_cloud: float | None) -> dict[Window, Asked]:
        """The windows that can be given, by the scenes that touch each, in mosaic order."""
        order = mosaic_order(touching.values())
        if order is None or not touching:
            return {}
        if max_cloud is None:
            with ThreadPoolExecutor(1) as beside:  # neither waits for the other
                masking = beside.submit(copy_context().run, self._all_masks, touching, order)
                mosaics = self._all_bands(touching, order)
                masks = masking.result()
            return {w: (masks[w], mosaic.cut(w, masks[w])) for mosaic in mosaics for w in mosaic.windows if w in masks}
        masks = self._all_masks(touching, order)
        cloudy = {w for w, mask in masks.items() if UNKNOWN != mask.cloud_percent > max_cloud}
        found: dict[Window, Asked] = {window: (masks[window], None) for window in cloudy}
        for mosaic in self._all_bands({w: touching[w] for w in masks.keys() - cloudy}, order):
            found |= {w: (masks[w], mosaic.cut(w, masks[w])) for w in mosaic.windows}
        return found

    def _all_masks(self, touching: Mapping[Window, tuple[Scene, ...]], order: Sequence[Scene]) -> dict[Window, Mask]:
        masks: dict[Window, Mask] = {}
        for area, windows in areas(sorted(touching)):
            masks |= self._masks(area, {window: touching[window] for window in windows}, order)
        return masks

    def _all_bands(self, touching: Mapping[Window, tuple[Scene, ...]], order: Sequence[Scene]) -> list[Mosaic]:
        mosaics = [
            Mosaic(self._sensor, self._lattice, self._buffers, area, {window: touching[window] for window in windows})
            for area, windows in areas(sorted(touching))
        ]
        for mosaic in mosaics:
            for scene in order:
                self._add(mosaic, scene)
        return mosaics

    # -- masks

    def _masks(
        self, area: Area, touching: Mapping[Window, tuple[Scene, ...]], order: Sequence[Scene]
    ) -> dict[Window, Mask]:
        """What the masks say of each core; of those that have none, that it is not known."""
        found = {w: Mask() for w, scenes in touching.items() if not scenes or any(s.mask is None for s in scenes)}
        left = {window for window in touching if window not in found}
        layout = Layout.of_cores(self._lattice, area, mask_sampling(self._lattice))
        classes = np.zeros(layout.shape, np.uint8)
        read = dict.fromkeys(touching, 0)
        for scene in order:
            need = [w for w in sorted(left) if scene in touching[w] and not classes[layout.of(w)].all()]
            if scene.mask is None or not need:
                continue
            alone = self._in_parts(scene.mask, need, self._mask_part(scene, scene.mask, layout, classes, read))
            left.difference_update(alone.result())
        core = self._lattice.core
        high, wide = area.row1 - area.row0, area.col1 - area.col0
        counts = class_counts(classes, high * core, wide * core)
        clouds = cloud_cells(counts)
        for window in left:
            row, col = (window.row - area.row0) * core, (window.col - area.col0) * core
            cells = np.s_[:, row : row + core, col : col + core]
            found[window] = Mask.of_counts(counts[cells], layout.size**2, read[window], clouds[cells])
        return found

    def _mask_part(
        self, scene: Scene, source: BandSource, layout: Layout, classes: NDArray[np.uint8], read: dict[Window, int]
    ) -> Callable[[Sequence[Window]], Sequence[Window]]:
        def part(windows: Sequence[Window]) -> Sequence[Window]:
            raster, crs = self._sources.open(scene, source)
            origin = origin_in(raster, crs, layout, windows)
            if origin is None:
                self.warped.update(windows)
            if origin is None or raster.masked[source.index - 1] or raster.dtypes[source.index - 1] != "uint8":
                return windows
            region = region_around(origin, layout, windows)
            inside = region.inside(raster.height, raster.width)
            if inside is None:
                check_place(scene, raster, crs)
                return ()
            (raw,) = read_raw(raster, [source], inside, None)
            if inside == region and len(windows) == Area.around(windows).count:  # cores lie side by side
                there = classes[shifted(inside, origin)]
                np.copyto(there, raw, where=there == 0)
                for window in windows:
                    read[window] += layout.size**2 * raw.itemsize
                return ()
            beyond = []
            for window in windows:
                held = region_around(origin, layout, [window]).inside(raster.height, raster.width)
                if held is None:
                    beyond.append(window)
                    continue
                there = classes[shifted(held, origin)]
                np.copyto(there, raw[within(held, inside)], where=there == 0)
                read[window] += _pixels(held) * raw.itemsize
            return beyond if beyond and misplaced_in(scene, raster, crs) else ()

        return part

    # -- bands

    def _add(self, mosaic: Mosaic, scene: Scene) -> None:
        """Fill what is not there yet from one scene: all its files at once."""
        jobs = []
        for group in mosaic.groups.values():
            need = mosaic.lacking(scene, group)
            if not need:
                continue
            try:
                files = self._sources.files(scene, group.indices)
            except SourceError:  # it has no such band: each window says so
                mosaic.leave_out(need)
                continue
            for bands in files.values():
                # Which windows still want which band, as each would ask on its own.
                want: NDArray[np.bool_] = ~group.full[:, [k for k, _ in bands]]
                asking = np.asarray(want.any(axis=1))
                windows = [w for w in need if asking[mosaic.place[w]]] if not asking.all() else need
                if windows:
                    part = self._band_part(mosaic, scene, group, bands, want)
                    jobs.append(self._in_parts(bands[0][1], windows, part))
        for job in jobs:
            mosaic.leave_out(job.result())
        mosaic.end(scene)

    def _band_part(
        self,
        mosaic: Mosaic,
        scene: Scene,
        group: Group,
        every: Sequence[tuple[int, BandSource]],
        want: NDArray[np.bool_],
    ) -> Callable[[Sequence[Window]], Sequence[Window]]:
        layout, sensor = group.layout, self._sensor

        def part(windows: Sequence[Window]) -> Sequence[Window]:
            places = mosaic.places(windows)
            asked = np.flatnonzero(want[places].any(axis=0)).tolist()
            sources = [every[k][1] for k in asked]
            raster, crs = self._sources.open(scene, sources[0])
            origin = origin_in(raster, crs, layout, windows)
            # What the file lacks of its bands is said by reading them.
            there = [source.index - 1 for source in sources if 1 <= source.index <= len(raster.dtypes)]
            if origin is None:
                self.warped.update(windows)
            if origin is None or any(raster.masked[k] for k in there) or len({raster.dtypes[k] for k in there}) > 1:
                return windows
            around = region_around(origin, layout, windows)
            inside = around.inside(raster.height, raster.width)
            if inside is None:
                check_place(scene, raster, crs)
                return ()
            raw = read_raw(raster, sources, inside, sensor)
            pieces = [Piece(band, source, raster, sensor) for band, source in zip(raw, sources, strict=True)]
            odd: set[Window] = set()
            area = np.full(len(windows), layout.size**2)  # pixels of each window that the file has
            parts: dict[Window, Part] | None = None
            if inside != around:
                held = [region_around(origin, layout, [w]).inside(raster.height, raster.width) for w in windows]
                if not all(held) and misplaced_in(scene, raster, crs):
                    odd.update(w for w, region in zip(windows, held, strict=True) if region is None)
                area = np.array([0 if region is None else _pixels(region) for region in held])
                parts = {w: within(r, inside) for w, r in zip(windows, held, strict=True) if r is not None}
            for k, piece in zip(asked, pieces, strict=True):
                if is_plain(piece):
                    continue
                if parts is None:
                    parts = {w: within(region_around(origin, layout, [w]), inside) for w in windows}
                wanting = {w for w, row in zip(windows, places, strict=True) if want[row, k]}
                odd |= check_piece(piece, {w: where for w, where in parts.items() if w in wanting}, layout.size)
            # From here on nothing fails: a part that is tried again has filled nothing yet.
            if odd:
                area[[w in odd for w in windows]] = 0
            mosaic.read[places, group.column[every[0][0]]] += want[places].sum(axis=1) * area * raw.itemsize
            for k, piece in zip(asked, pieces, strict=True):
                mosaic.fill(group, every[k][0], piece, shifted(inside, origin))
            return sorted(odd)

        return part

    def _in_parts(
        self,
        source: BandSource,
        windows: Sequence[Window],
        part: Callable[[Sequence[Window]], Sequence[Window]],
    ) -> Future[list[Window]]:
        """Read a file's part for some windows, by halves where it fails; the windows that are to be read alone."""

        def work() -> list[Window]:
            with gdal_environment(self._sources.options):
                return self._halved(source, windows, part)

        return self._submit(source.href, work)

    def _halved(
        self, source: BandSource, windows: Sequence[Window], part: Callable[[Sequence[Window]], Sequence[Window]]
    ) -> list[Window]:
        try:
            return list(self._sources.tried(source, lambda: part(windows)))
        except DEFECTS:
            raise
        except Exception as error:  # each window that it concerns fails in its own words
            if len(windows) == 1 or judge_read(error) is Failure.FINAL:
                return list(windows)
        return [window for half in halves(windows) for window in self._halved(source, half, part)]


def misplaced_in(scene: Scene, raster: Raster, crs: str) -> bool:
    """Whether a raster lies beside its item's whole footprint."""
    return misplaced(scene, crs, raster.transform, raster.height, raster.width) is not None


def _pixels(region: Region) -> int:
    return (region.row1 - region.row0) * (region.col1 - region.col0)
