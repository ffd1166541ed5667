"""Lays scenes over each other in an area of windows, each pixel the first one's that has it, and cuts windows of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from eocube.ground.grid import Lattice, Window
from eocube.read.areas import Area, Layout
from eocube.read.buffers import Buffers
from eocube.read.layers import Layer, Piece
from eocube.read.window_pixels import Cut, Mask, WindowPixels, settled, without_gaps
from eocube.scenes.scene import Scene
from eocube.sensors.sensor import Sensor


class Group:
    """The bands of one sampling over an area."""

    def __init__(self, sensor: Sensor, layout: Layout, buffers: Buffers, indices: Sequence[int], count: int) -> None:
        self.indices, self.layout = indices, layout
        self.pixels = buffers.array((len(indices), *layout.shape), sensor.dtype)
        self.layers = [Layer(pixels, sensor.nodata) for pixels in self.pixels]
        self.full = np.zeros((count, len(indices)), np.bool_)
        """Of which bands (columns) a window (row) has every pixel."""
        self.column: list[int] = []


class Mosaic:
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
        self._all = sorted(touching)
        self.windows = self._all
        self.place = {window: k for k, window in enumerate(self._all)}
        self._touched: dict[int, NDArray[np.bool_]] = {}
        self.groups = {
            sampling: Group(sensor, Layout.of_group(lattice, area, sampling), buffers, indices, len(self._all))
            for sampling, indices in sensor.groups(lattice.metres).items()
        }
        self._arrays = {sampling: group.pixels for sampling, group in self.groups.items()}
        self._steps = {sampling: group.layout.step for sampling, group in self.groups.items()}
        bands = 0
        for group in self.groups.values():
            group.column = list(range(bands, bands + len(group.indices)))
            bands += len(group.indices)
        # A column a band: the threads that read its files each write their own.
        self.read = np.zeros((len(self._all), bands), np.int64)
        self._gave = np.zeros((len(self._all), bands), np.bool_)
        self._used: list[list[str]] = [[] for _ in self._all]

    def places(self, windows: Sequence[Window]) -> NDArray[np.intp]:
        """Where windows, in their order, stand among all."""
        if len(windows) == len(self._all):
            return np.arange(len(windows))
        return np.array([self.place[w] for w in windows], np.intp)

    def _touches(self, scene: Scene) -> NDArray[np.bool_]:
        """Which of all windows the scene touches."""
        if id(scene) not in self._touched:
            self._touched[id(scene)] = np.array([scene in self._touching[w] for w in self._all])
        return self._touched[id(scene)]

    def lacking(self, scene: Scene, group: Group) -> list[Window]:
        """Windows that the scene touches and that lack pixels of the group."""
        lack = self._touches(scene) & ~group.full.all(axis=1)
        if lack.all():
            return self.windows
        return [w for w, here in zip(self.windows, lack[self.places(self.windows)], strict=True) if here]

    def leave_out(self, windows: Iterable[Window]) -> None:
        """Give these windows up."""
        gone = set(windows)
        if gone:
            self.windows = [w for w in self.windows if w not in gone]

    def fill(self, group: Group, band: int, piece: Piece, at: tuple[slice, slice]) -> None:
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
        gave, touched = self._gave.any(axis=1), self._touches(scene)
        self._gave[:] = False
        self.leave_out(self._all[k] for k in np.flatnonzero(gave & ~touched))
        for k in np.flatnonzero(gave):
            self._used[k].append(scene.id)

    @cached_property
    def _whole(self) -> list[bool]:
        """Which of all windows have every pixel, once everything was read."""
        found: list[bool] = np.all([group.full.all(axis=1) for group in self.groups.values()], axis=0).tolist()
        return found

    @cached_property
    def _counted(self) -> list[int]:
        """Bytes that were read for each of all windows, once everything was."""
        found: list[int] = self.read.sum(axis=1).tolist()
        return found

    def cut(self, window: Window, mask: Mask) -> WindowPixels:
        """A window's pixels: views where all are there."""
        k = self.place[window]
        parts = {sampling: group.layout.of(window) for sampling, group in self.groups.items()}
        groups = {sampling: group.pixels[:, *parts[sampling]] for sampling, group in self.groups.items()}
        ids, read = tuple(self._used[k]), mask.bytes_read + self._counted[k]
        if self._whole[k]:
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
    for scenes in {tuple(map(id, scenes)): scenes for scenes in each}.values():  # comparing scenes takes long
        for scene in scenes:
            sorter.add(scene)
        for first, second in pairwise(scenes):
            sorter.add(second, first)
    try:
        return list(sorter.static_order())
    except CycleError:
        return None
