"""Reads many windows of a shard as one: each file's part once, settled as a whole; windows are views of it.

What comes out is what `WindowReader.read` gives of each window, to the bit, or nothing for it: then it is read on its
own. So for scenes off the zone's grid and files with masks, where more than copying is to be done, for windows of which
something cannot be read, and where the kind of the numbers is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from eocube.errors import SourceError
from eocube.ground.grid import Lattice, Window
from eocube.net.failures import Failure
from eocube.raster.checks import DEFECTS, judge_read
from eocube.raster.opening import Raster, gdal_environment
from eocube.raster.warp import Region
from eocube.read.areas import Area, Layout, areas, halves, origin_in, region_around, shifted, within
from eocube.read.bands import read_raw
from eocube.read.buffers import Buffers
from eocube.read.layers import Layer, Piece, check_piece
from eocube.read.place import misplaced
from eocube.read.source_shares import class_counts, cloud_cells
from eocube.read.sources import Sources, check_place
from eocube.read.window_pixels import UNKNOWN, Cut, Mask, WindowPixels, settled, without_gaps
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

    def _all_bands(self, touching: Mapping[Window, tuple[Scene, ...]], order: Sequence[Scene]) -> list[_Mosaic]:
        mosaics = [
            _Mosaic(self._sensor, self._lattice, self._buffers, area, {window: touching[window] for window in windows})
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

    def _add(self, mosaic: _Mosaic, scene: Scene) -> None:
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
                want = {w: [not group.full[mosaic.place[w], k] for k, _ in bands] for w in need}
                windows = [w for w in need if any(want[w])]
                if windows:
                    part = self._band_part(mosaic, scene, group, bands, want)
                    jobs.append(self._in_parts(bands[0][1], windows, part))
        for job in jobs:
            mosaic.leave_out(job.result())
        mosaic.end(scene)

    def _band_part(
        self,
        mosaic: _Mosaic,
        scene: Scene,
        group: _Group,
        every: Sequence[tuple[int, BandSource]],
        want: Mapping[Window, Sequence[bool]],
    ) -> Callable[[Sequence[Window]], Sequence[Window]]:
        layout, sensor = group.layout, self._sensor

        def part(windows: Sequence[Window]) -> Sequence[Window]:
            asked = [k for k in range(len(every)) if any(want[w][k] for w in windows)]
            sources = [every[k][1] for k in asked]
            raster, crs = self._sources.open(scene, sources[0])
            origin = origin_in(raster, crs, layout, windows)
            # What the file lacks of its bands is said by reading them.
            there = [source.index - 1 for source in sources if 1 <= source.index <= len(raster.dtypes)]
            if origin is None:
                self.warped.update(windows)
            if origin is None or any(raster.masked[k] for k in there) or len({raster.dtypes[k] for k in there}) > 1:
                return windows
            inside = region_around(origin, layout, windows).inside(raster.height, raster.width)
            if inside is None:
                check_place(scene, raster, crs)
                return ()
            raw = read_raw(raster, sources, inside, sensor)
            held = {w: region_around(origin, layout, [w]).inside(raster.height, raster.width) for w in windows}
            odd: set[Window] = set()
            if any(region is None for region in held.values()) and misplaced_in(scene, raster, crs):
                odd.update(w for w, region in held.items() if region is None)
            parts = {w: within(region, inside) for w, region in held.items() if region is not None}
            pieces = [Piece(band, source, raster, sensor) for band, source in zip(raw, sources, strict=True)]
            for k, piece in zip(asked, pieces, strict=True):
                odd |= check_piece(piece, {w: where for w, where in parts.items() if want[w][k]}, layout.size)
            # From here on nothing fails: a part that is tried again has filled nothing yet.
            for w, region in held.items():
                if region is not None and w not in odd:
                    mosaic.read[mosaic.place[w], group.column[every[0][0]]] += (
                        sum(want[w]) * _pixels(region) * raw.itemsize
                    )
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


class _Group:
    """The bands of one sampling over an area."""

    def __init__(self, sensor: Sensor, layout: Layout, buffers: Buffers, indices: Sequence[int], count: int) -> None:
        self.indices, self.layout = indices, layout
        self.pixels = buffers.array((len(indices), *layout.shape), sensor.dtype)
        self.layers = [Layer(pixels, sensor.nodata) for pixels in self.pixels]
        self.full = np.zeros((count, len(indices)), np.bool_)
        """Of which bands (columns) a window (row) has every pixel."""
        self.column: list[int] = []


class _Mosaic:
    """The pixels of an area's windows as scenes are laid into it, and which windows have what.

    Every pixel is the first scene's that has it, of those that touch its window; a window for which that differs from
    its neighbour's, since a raster reaches beyond what its item says, is left out.
    """

    def __init__(
        self,
        sensor: Sensor,
        lattice: Lattice,
        buffers: Buffers,
        area: Area,
        touching: Mapping[Window, tuple[Scene, ...]],
    ) -> None:
        self._lattice, self._touching, self._area = lattice, touching, area
        self.windows = sorted(touching)
        self.place = {window: k for k, window in enumerate(self.windows)}
        self.groups = {
            sampling: _Group(sensor, Layout.of_group(lattice, area, sampling), buffers, indices, len(self.windows))
            for sampling, indices in sensor.groups(lattice.metres).items()
        }
        self._arrays = {sampling: group.pixels for sampling, group in self.groups.items()}
        self._steps = {sampling: group.layout.step for sampling, group in self.groups.items()}
        bands = 0
        for group in self.groups.values():
            group.column = list(range(bands, bands + len(group.indices)))
            bands += len(group.indices)
        # A column a band: the threads that read its files each write their own.
        self.read = np.zeros((len(self.windows), bands), np.int64)
        self._gave = np.zeros((len(self.windows), bands), np.bool_)
        self._used: dict[Window, list[str]] = {window: [] for window in self.windows}

    def lacking(self, scene: Scene, group: _Group) -> list[Window]:
        """Windows that the scene touches and that lack pixels of the group."""
        full = np.asarray(group.full.all(axis=1))
        return [w for w in self.windows if not full[self.place[w]] and scene in self._touching[w]]

    def leave_out(self, windows: Iterable[Window]) -> None:
        """Give these windows up."""
        gone = set(windows)
        if gone:
            self.windows = [w for w in self.windows if w not in gone]

    def fill(self, group: _Group, band: int, piece: Piece, at: tuple[slice, slice]) -> None:
        """Lay a scene's piece of a band at its place, where nothing is yet."""
        layer, column = group.layers[band], group.column[band]
        new = layer.add(piece, at)
        if new is None:
            self._gave[:, column] = True
            group.full[:, band] = True
            return
        for window, k in self.place.items():
            if not group.full[k, band]:
                where = group.layout.of(window)
                self._gave[k, column] |= new[where].any()
                group.full[k, band] = layer.seen(where).all()

    def end(self, scene: Scene) -> None:
        """Note which windows the scene gave pixels; those that it does not touch are left out."""
        gave = np.asarray(self._gave.any(axis=1))
        self._gave[:] = False
        self.leave_out(w for w in self.windows if gave[self.place[w]] and scene not in self._touching[w])
        for window in self.windows:
            if gave[self.place[window]]:
                self._used[window].append(scene.id)

    def cut(self, window: Window, mask: Mask) -> WindowPixels:
        """A window's pixels: views where all are there."""
        k = self.place[window]
        parts = {sampling: group.layout.of(window) for sampling, group in self.groups.items()}
        groups = {sampling: group.pixels[:, *parts[sampling]] for sampling, group in self.groups.items()}
        ids, read = tuple(self._used[window]), mask.bytes_read + int(self.read[k].sum())
        if all(group.full[k].all() for group in self.groups.values()):
            cut = Cut(self._arrays, self._steps, window.row - self._area.row0, window.col - self._area.col0)
            return without_gaps(self._lattice, groups, mask, ids, read, cut)
        for group in self.groups.values():
            for layer in group.layers:
                layer.blank()
        seen = {
            sampling: np.stack([layer.seen(parts[sampling]) for layer in group.layers])
            for sampling, group in self.groups.items()
        }
        # Its own copies: what is missing is mirrored within the window.
        return settled(self._lattice, {s: g.copy() for s, g in groups.items()}, seen, mask, ids, read)


def mosaic_order(each: Iterable[tuple[Scene, ...]]) -> list[Scene] | None:
    """All scenes in one order that every window's own agrees with; None where there is none."""
    sorter: TopologicalSorter[Scene] = TopologicalSorter()
    for scenes in set(each):
        for scene in scenes:
            sorter.add(scene)
        for first, second in pairwise(scenes):
            sorter.add(second, first)
    try:
        return list(sorter.static_order())
    except CycleError:
        return None


def misplaced_in(scene: Scene, raster: Raster, crs: str) -> bool:
    """Whether a raster lies beside its item's whole footprint."""
    return misplaced(scene, crs, raster.transform, raster.height, raster.width) is not None


def _pixels(region: Region) -> int:
    return (region.row1 - region.row0) * (region.col1 - region.col0)
