"""Decodes the windows that a place needs, keeps them, and blends them to the pixels of `ds.eocube.decode()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from eocube.cube.decode import Span, Tiling, decode_window, merge_core
from eocube.cube.labels import WHOLE
from eocube.products.decoder_cache import DecoderSpec, check, decode_one, spec_of
from eocube.products.storage import none_of
from eocube.serve.cube import Bounds, ServedCube
from eocube.serve.keeping import Kept
from eocube.serve.pool import LatestFirst, Leave
from eocube.serve.raster import MARGIN, Raster
from eocube.store.receipts import State
from eocube.store.store import CubeStore

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.half]
Box = tuple[int, int, int, int]
"""Rows and columns of cells, half-open: (row0, col0, row1, col1)."""

_EMPTY = np.empty((0, 0, 0), np.half)
"""A window in whose core there is nothing."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as it is stored, and what is known of its sources."""

    values: npt.NDArray[Any]
    """(C, side, side)."""
    valid: npt.NDArray[np.uint8] | None
    missing: npt.NDArray[np.uint8] | None

    @property
    def bytes(self) -> int:
        """What it takes."""
        return sum(a.nbytes for a in (self.values, self.valid, self.missing) if a is not None)


class Stored:
    """A cube's stored values and masks, shard by shard; each is read once, whole, in one request."""

    def __init__(self, cube: ServedCube, kept: Kept) -> None:
        self.cube, self._kept = cube, kept

    @cached_property
    def store(self) -> CubeStore:
        """The store, opened when it is first read from."""
        return CubeStore.open(self.cube.url, storage_options=self.cube.options)

    def shard(self, time: int, row: int, col: int) -> Shard:
        """A shard; all fill where the store has none."""

        def read() -> tuple[Shard, int]:
            made = Shard(self.store.read_shard(time, row, col), *self._masks(time, row, col))
            return made, made.bytes

        return self._kept.once(("shard", self.cube.key, time, row, col), read)

    def _masks(self, time: int, row: int, col: int) -> tuple[Any, Any]:
        group, side = self.cube.group, self.cube.frame.shard
        if "valid" not in group:
            return None, None
        at = np.s_[time, row * side : (row + 1) * side, col * side : (col + 1) * side]
        valid = _cut(group, "valid", at)
        whole = bool((valid == WHOLE).all()) or "missing" not in group
        return valid, None if whole else _cut(group, "missing", at)

    def cut(self, time: int, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
        """Unpacked values (C, h, w), `valid` (h, w) and `missing` (h, w, bytes) of a box of cells within the array."""
        row0, col0, row1, col1 = box
        storage = self.store.storage
        kind = np.dtype(storage.unpacked)
        values = np.full((self.cube.info.product.channels, row1 - row0, col1 - col0), none_of(kind), kind)
        valid = missing = None
        for shard, inner, outer in self._parts(time, box):
            values[:, *outer] = storage.unpack(np.ascontiguousarray(shard.values[:, *inner]))
            if shard.valid is not None:
                valid = np.zeros(values.shape[1:], np.uint8) if valid is None else valid
                valid[outer] = shard.valid[inner]
            if shard.missing is not None:
                if missing is None:
                    missing = np.zeros((*values.shape[1:], shard.missing.shape[-1]), np.uint8)
                missing[outer] = shard.missing[inner]
        return values, valid, missing

    def _parts(self, time: int, box: Box) -> Iterator[tuple[Shard, tuple[slice, slice], tuple[slice, slice]]]:
        row0, col0, row1, col1 = box
        side = self.cube.frame.shard
        for i in range(row0 // side, -(-row1 // side)):
            for j in range(col0 // side, -(-col1 // side)):
                top, left = max(row0, i * side), max(col0, j * side)
                bottom, right = min(row1, (i + 1) * side), min(col1, (j + 1) * side)
                inner = np.s_[top - i * side : bottom - i * side, left - j * side : right - j * side]
                yield self.shard(time, i, j), inner, np.s_[top - row0 : bottom - row0, left - col0 : right - col0]


class Decoding:
    """Decoded pixels of one cube, window by window.

    A window is decoded in all bands, on one thread, and kept as float16: 0.05 % of a reflectance at most, a tenth of
    what a picture shows. Windows that a place needs and that are not kept are decoded together.
    """

    def __init__(self, stored: Stored, kept: Kept, pool: LatestFirst) -> None:
        self.stored, self.cube, self._kept, self._pool = stored, stored.cube, kept, pool
        frame, info = self.cube.frame, self.cube.info
        halo = info.halo
        self._tiling = Tiling(
            Span(0, frame.shape[0], frame.core), Span(0, frame.shape[1], frame.core), halo, info.stride,
            halo * info.stride,
        )  # fmt: skip

    @cached_property
    def spec(self) -> DecoderSpec:
        """The decoder; StoreError where its weights are not to be had."""
        made = spec_of(self.cube.info.product, self.cube.info.sensor.band_names)
        check(made)
        return made

    def raster(self, time: int, bounds: Bounds, bands: Sequence[str], leave: Leave | None = None) -> Raster | None:
        """The pixels of some bands around bounds in metres of the zone; None where the cube has no ground there."""
        box = self._box(bounds)
        return None if box is None else self._pixels(time, box, bands, leave)

    def ahead(self, times: Sequence[int], box: Box, leave: Leave | None = None) -> None:
        """Decode and keep what a box of cells is made of at several dates, all at once."""
        places = sorted({w for _, near in self._cores(box) for w in near})
        self._decoded([(time, *place) for time in times for place in places], leave)

    def windows_of(self, bounds: Bounds) -> int:
        """How many windows the pixels around bounds are made of, kept or not."""
        box = self._box(bounds)
        return 0 if box is None else len({w for _, around in self._cores(box) for w in around})

    def alone(self, places: Sequence[tuple[int, int, int]]) -> Iterator[tuple[Floats, Floats]]:
        """Of some windows, (time, row, column), the values and all bands' pixels of the core, without their neighbours.

        (C, core, core) and (bands, core_px, core_px): for a sample, which seams do not matter to.
        """
        core, count = self._tiling.rows.core, len(self.cube.info.sensor.band_names)
        found = self._decoded(places, None)
        for (time, row, col), window in found.items():
            if not window.size:
                continue
            box = (row * core, col * core, (row + 1) * core, (col + 1) * core)
            values, valid, missing = self.stored.cut(time, box)
            pixels = merge_core(
                self._tiling, (0, 0, core, core), ((0, 0),), count, (WHOLE, False), values[None],
                [window.astype(np.float32)], None if valid is None else valid[None],
                None if missing is None else missing[None],
            )[0]  # fmt: skip
            yield values, pixels

    def cells(self, time: int, box: Box, bands: Sequence[str]) -> Floats:
        """(bands, h, w) pixels of a box of cells."""
        return self._pixels(time, box, bands, None).data

    def _box(self, bounds: Bounds) -> Box | None:
        """The cells around bounds and a margin, within what was asked for."""
        frame, more = self.cube.frame, MARGIN * self.cube.frame.pixel
        grown = (bounds[0] - more, bounds[1] - more, bounds[2] + more, bounds[3] + more)
        rows, cols = frame.blocks_in(grown, 1)
        return None if not rows or not cols else (rows.start, cols.start, rows.stop, cols.stop)

    def _cores(self, box: Box) -> Iterator[tuple[Box, dict[tuple[int, int], tuple[int, int]]]]:
        """The cuts of cores in a box of cells, and the windows that each is blended of: {window: its step from it}."""
        core, halo = self._tiling.rows.core, self._tiling.halo
        down, across = self.cube.frame.cores
        row0, col0, row1, col1 = box
        for i in range(row0 // core, -(-row1 // core)):
            for j in range(col0 // core, -(-col1 // core)):
                cut = (max(row0, i * core), max(col0, j * core), min(row1, (i + 1) * core), min(col1, (j + 1) * core))
                near = {
                    (i + di, j + dj): (di, dj)
                    for di in range(-1, 2)
                    for dj in range(-1, 2)
                    if 0 <= i + di < down
                    and 0 <= j + dj < across
                    # A neighbour's window reaches over the border by the halo.
                    and _reaches(di, cut[0] - i * core, cut[2] - i * core, core, halo)
                    and _reaches(dj, cut[1] - j * core, cut[3] - j * core, core, halo)
                }
                yield cut, near

    def _pixels(self, time: int, box: Box, bands: Sequence[str], leave: Leave | None) -> Raster:
        frame, stride, core = self.cube.frame, self._tiling.stride, self._tiling.rows.core
        cores = list(self._cores(box))
        windows = self._windows(time, sorted({w for _, near in cores for w in near}), leave)
        names = self.cube.info.sensor.band_names
        chosen = [names.index(band) for band in bands]
        wide = {place: window[chosen].astype(np.float32) for place, window in windows.items()}
        row0, col0, row1, col1 = box
        out = np.full((len(chosen), (row1 - row0) * stride, (col1 - col0) * stride), np.nan, np.float32)
        values, valid, missing = self.stored.cut(time, box)
        for cut, near in cores:
            inner = np.s_[cut[0] - row0 : cut[2] - row0, cut[1] - col0 : cut[3] - col0]
            i, j = cut[0] // core, cut[1] // core
            if self.cube.status[time, i, j] != State.OK:
                continue
            area = (cut[0] - i * core, cut[1] - j * core, cut[2] - cut[0], cut[3] - cut[1])
            decoded = [wide.get(window) for window in near]
            merged = merge_core(
                self._tiling, area, tuple(near.values()), len(chosen), (WHOLE, False), values[None, :, *inner],
                decoded, None if valid is None else valid[None, *inner],
                None if missing is None else missing[None, *inner],
            )[0]  # fmt: skip
            top, left = (cut[0] - row0) * stride, (cut[1] - col0) * stride
            out[:, top : top + merged.shape[1], left : left + merged.shape[2]] = merged
        left_m, top_m = frame.left + col0 * frame.cell, frame.top - row0 * frame.cell
        return Raster(out, left_m, top_m, frame.pixel, frame.epsg)

    def _windows(
        self, time: int, wanted: Sequence[tuple[int, int]], leave: Leave | None
    ) -> dict[tuple[int, int], Halves]:
        """The windows of one date that have anything, by place."""
        found = self._decoded([(time, *place) for place in wanted], leave)
        return {place[1:]: window for place, window in found.items() if window.size}

    def _decoded(
        self, wanted: Sequence[tuple[int, int, int]], leave: Leave | None
    ) -> dict[tuple[int, int, int], Halves]:
        """The windows that are ok, (time, row, column), decoded together where they are not kept."""
        found: dict[tuple[int, int, int], Halves] = {}
        left: dict[tuple[str, str, int, int, int], Callable[[], Halves]] = {}
        for place in wanted:
            if self.cube.status[place] != State.OK:
                continue
            kept = self._kept.get(self._key(*place))
            if kept is not None:
                found[place] = kept
            else:
                left[self._key(*place)] = partial(self._decode, *place)
        if left:
            for key, made in self._pool.all(left, leave).items():
                found[key[-3:]] = made
        return found

    def _key(self, time: int, row: int, col: int) -> tuple[str, str, int, int, int]:
        return "window", self.cube.key, time, row, col

    def _decode(self, time: int, row: int, col: int) -> Halves:
        key = self._key(time, row, col)
        kept: Halves | None = self._kept.get(key)
        if kept is not None:
            return kept
        tiling, (height, width) = self._tiling, self.cube.frame.shape
        core, halo = tiling.rows.core, tiling.halo
        top, left = row * core - halo, col * core - halo
        box = (max(top, 0), max(left, 0), min(top + tiling.window, height), min(left + tiling.window, width))
        values, _, _ = self.stored.cut(time, box)
        made = decode_window(tiling, partial(decode_one, self.spec), [(box[0] - top, box[1] - left)], [values[None]])
        window = _EMPTY if made is None else made.astype(np.half)
        self._kept.put(key, window, window.nbytes)
        return window


def _cut(group: zarr.Group, name: str, at: tuple[int, slice, slice]) -> npt.NDArray[Any]:
    """A part of an array of a store."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[at])


def _reaches(step: int, first: int, last: int, core: int, halo: int) -> bool:
    """Whether the window `step` cores away reaches cells first..last of a core."""
    return step == 0 or (first < halo if step < 0 else last > core - halo)
