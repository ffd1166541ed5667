"""Decodes values to pixels, lazily: one task a window's decoding, one a core that blends the windows over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from eocube.products.storage import known, none_of
from eocube.read.coverage import fine, unseen

Floats = npt.NDArray[np.float32]
Decode = Callable[[Floats], Floats]
"""(z, h, w) latents -> (bands, h * stride, w * stride) pixels."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where an array lies on the lattice along one axis: `size` latents from lattice row or column `start` on."""

    start: int
    size: int
    core: int

    @property
    def cores(self) -> range:
        """The cores it touches, cut ones included."""
        return range(self.start // self.core, -(-(self.start + self.size) // self.core))

    @property
    def chunks(self) -> tuple[int, ...]:
        """Its size cut at the borders of cores."""
        edges = [max(self.start, k * self.core) for k in self.cores] + [self.start + self.size]
        return tuple(b - a for a, b in pairwise(edges))

    def first(self, core: int) -> int:
        """The lattice row or column at which the array's part of a core begins."""
        return max(self.start, core * self.core)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How latents become pixels: both axes, the halo in latents, pixels a latent, and the width of the blending.

    `blend` is in pixels each side of a core's border, at most the halo's; 0 does not blend.
    """

    rows: Span
    cols: Span
    halo: int
    stride: int
    blend: int

    @property
    def reach(self) -> int:
        """How many cores away a neighbour's latents still lie within a window."""
        return math.ceil(self.halo / self.rows.core)

    @property
    def window(self) -> int:
        """Latents a side of a window."""
        return self.rows.core + 2 * self.halo


@dataclass(frozen=True, slots=True)
class Ground:
    """Where decoded pixels have a source.

    `valid` (time, y, x) is the percent of source pixels in each latent pixel; latents under `min_valid` are left out,
    `everywhere` or only where `missing` (time, y, x, bytes; `eocube.read.coverage`) does not know better.
    """

    valid: da.Array
    missing: da.Array | None = None
    min_valid: int = 1
    everywhere: bool = False


def decode_array(latents: da.Array, ground: Ground | None, tiling: Tiling, decode: Decode, bands: int) -> da.Array:
    """Latents (time, z, y, x), NaN where there are none, to pixels (time, bands, y * stride, x * stride) float32.

    NaN where the latents are, and where the ground has no source. Every core is decoded once a compute, in a
    window with `halo` latents of its neighbours around; what no neighbour has is mirrored. One chunk is one core.
    """
    rows, cols = tiling.rows.chunks, tiling.cols.chunks
    latents = latents.rechunk(  # type: ignore[no-untyped-call]
        (1, -1, rows, cols)
    )
    sources: list[Any] = [latents]
    names: dict[str, str] = {}
    for name, array in (("valid", ground.valid), ("missing", ground.missing)) if ground is not None else ():
        if array is not None:
            array = array.rechunk((1, rows, cols, *[-1] * (array.ndim - 3)))  # type: ignore[no-untyped-call]
            sources.append(array)
            names[name] = array.name
    rule = (1, False) if ground is None else (ground.min_valid, ground.everywhere)
    token = tokenize(*sources, rule, tiling, decode, bands)
    windows, output = f"eocube-window-{token}", f"eocube-decode-{token}"
    tasks: dict[Any, Any] = {}
    near = range(-tiling.reach, tiling.reach + 1)
    for t in range(latents.numblocks[0]):
        for i, row in enumerate(tiling.rows.cores):
            for j, col in enumerate(tiling.cols.cores):
                around = {
                    (di, dj): (i + di, j + dj)
                    for di in near
                    for dj in near
                    if 0 <= i + di < len(rows) and 0 <= j + dj < len(cols)
                }
                places = tuple(
                    (
                        tiling.rows.first(row + di) - row * tiling.rows.core + tiling.halo,
                        tiling.cols.first(col + dj) - col * tiling.cols.core + tiling.halo,
                    )
                    for di, dj in around
                )
                blocks = [(latents.name, t, 0, a, b) for a, b in around.values()]
                tasks[windows, t, i, j] = (partial(decode_window, tiling, decode, places), blocks)
                steps = tuple(step for step in around if max(map(abs, step)) <= (1 if tiling.blend else 0))
                top = tiling.rows.first(row) - row * tiling.rows.core
                left = tiling.cols.first(col) - col * tiling.cols.core
                area = (top, left, rows[i], cols[j])
                tasks[output, t, 0, i, j] = (
                    partial(merge_core, tiling, area, steps, bands, rule),
                    (latents.name, t, 0, i, j),
                    [(windows, t, *around[step]) for step in steps],
                    (names["valid"], t, i, j) if "valid" in names else None,
                    (names["missing"], t, i, j, 0) if "missing" in names else None,
                )
    graph = HighLevelGraph.from_collections(output, tasks, dependencies=sources)
    stride = tiling.stride
    chunks = (
        latents.chunks[0], (bands,), tuple(n * stride for n in rows), tuple(n * stride for n in cols),
    )  # fmt: skip
    return da.Array(graph, output, chunks=chunks, dtype=np.float32)  # type: ignore[no-untyped-call]


def decode_window(
    tiling: Tiling, decode: Decode, places: Sequence[tuple[int, int]], blocks: Sequence[npt.NDArray[Any]]
) -> Floats | None:
    """Put a window together from the cores about it and decode it; None where its own core has no latents.

    `places` are each block's first row and column within the window; the rest of a block lies outside of it.
    """
    size = tiling.window
    window = np.full((blocks[0].shape[1], size, size), none_of(blocks[0].dtype), dtype=blocks[0].dtype)
    for (top, left), block in zip(places, blocks, strict=True):
        height, width = block.shape[-2:]
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + height, size), min(left + width, size)
        window[:, y0:y1, x0:x1] = block[0, :, y0 - top : y1 - top, x0 - left : x1 - left]
    there = np.asarray(known(window).all(axis=0))
    inner = slice(tiling.halo, size - tiling.halo)
    if not there[inner, inner].any():
        return None
    return decode(mirror_fill(window, there))


def mirror_fill(window: Floats, there: npt.NDArray[np.bool_]) -> Floats:
    """Fill (z, h, w) where `there` (h, w) is False, as `mirror_sources` says; the window itself where nothing lacks."""
    if there.all():
        return window
    from eocube.raster.warp import mirror_sources  # GDAL with it: not before something is decoded

    filled: Floats = window.copy()
    gaps, sources = mirror_sources(there)
    filled[:, *gaps] = window[:, *sources]
    return filled


def merge_core(
    tiling: Tiling,
    area: tuple[int, int, int, int],
    steps: Sequence[tuple[int, int]],
    bands: int,
    rule: tuple[int, bool],
    latents: npt.NDArray[Any],
    decoded: Sequence[Floats | None],
    valid: npt.NDArray[np.uint8] | None,
    missing: npt.NDArray[np.uint8] | None,
) -> Floats:
    """The pixels of (a cut of) one core, cross-faded with the windows that reach over it.

    `area` is (row, column, height, width) of the cut within the core, in latents; `decoded` are the windows at `steps`
    (in cores) from this one, None where there is none; `latents`, `valid` and `missing` are the cut's own, the last two
    judged by `rule`: a `Ground`'s `min_valid` and `everywhere`.
    """
    stride, halo = tiling.stride, tiling.halo
    top, left, height, width = (n * stride for n in area)
    shape = (bands, height, width)
    own = decoded[steps.index((0, 0))]
    if own is None:
        return np.full((1, *shape), np.nan, dtype=np.float32)
    margin, core = halo * stride, tiling.rows.core * stride
    if sum(window is not None for window in decoded) == 1:
        y, x = top + margin, left + margin
        out: Floats = own[:, y : y + height, x : x + width].copy()
    else:
        fade = _fade(tiling.window * stride, margin, tiling.blend)
        total = np.zeros(shape, dtype=np.float32)
        weights = np.zeros(shape[1:], dtype=np.float32)
        for (di, dj), window in zip(steps, decoded, strict=True):
            if window is None:
                continue
            # Where the cut lies in that window: cores are `core` pixels apart, windows start `margin` before theirs.
            y, x = top + margin - di * core, left + margin - dj * core
            y0, x0 = max(0, -y), max(0, -x)
            y1, x1 = min(height, window.shape[1] - y), min(width, window.shape[2] - x)
            if y1 <= y0 or x1 <= x0:
                continue
            weight = fade[y + y0 : y + y1, None] * fade[None, x + x0 : x + x1]
            total[:, y0:y1, x0:x1] += weight * window[:, y + y0 : y + y1, x + x0 : x + x1]
            weights[y0:y1, x0:x1] += weight
        out = np.divide(total, weights, dtype=np.float32)
    blank = np.asarray(~known(latents[0]).all(axis=0))
    if blank.any():
        out[:, fine(blank, stride)] = np.nan
    if valid is not None:
        gone = unseen(valid[0], None if missing is None else missing[0], *rule, stride)
        if gone is not None:
            out[:, gone] = np.nan
    return out[None]


def _fade(size: int, margin: int, blend: int) -> Floats:
    """A window's weight along one axis: 0 outside, 1 inside, rising over `blend` pixels each side of the core's border.

    A raised cosine of the distance to the border: those of two neighbours add up to 1, and it leaves the outermost
    pixels, which the network knows least about, almost without weight.
    """
    at = np.arange(size) + 0.5
    inside = np.minimum(at, size - at) - margin
    share = np.clip((inside + blend) / (2 * blend), 0.0, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * share), dtype=np.float32)
