"""Finds one basis of principal components a cube, so that pictures of its latents compare between dates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import xarray as xr

from eocube.store.receipts import State

Floats = npt.NDArray[np.float32]
DATES = 4
"""Time steps that a basis is of, at most."""
BLOCK = 4
"""Cells a side whose mean counts. Most channels hold what changes from cell to cell, edges and texture: of single cells
these have the largest variance, and a picture of them is speckle. Means keep what is alike over some ground."""
CLOUD, VALID = 20, 50
"""Percent: a cell with more cloud or fewer source pixels says little of the ground."""
KEPT = 97.5
"""Percent of the means nearest to the middle that count: the rest are clouds that nobody marked, and sensor faults."""
SIDE = 256
"""Cells a side of the ground that a basis is of, at most: about a shard, where the most windows are ok."""
SPREAD, ROOM = 2.0, 2.0
"""Percent of the means at either end that are beyond what is shown, and by how much more than the rest is shown."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Three components of C channels and the range that each is shown over."""

    centre: tuple[float, ...]
    axes: tuple[tuple[float, ...], ...]
    """(3, C); fewer than three channels leave rows of 0."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    dates: int
    """Of how many time steps it is."""

    def components(self, latents: Floats) -> Floats:
        """(C, H, W) latents to (3, H, W) components, NaN where they are not finite."""
        there = np.asarray(np.isfinite(latents).all(axis=0))
        flat = np.where(there, latents, np.nan).reshape(len(self.centre), -1).astype(np.float64)
        values = np.array(self.axes) @ (flat - np.array(self.centre)[:, None])
        return np.asarray(values.reshape(3, *there.shape), np.float32)

    def __call__(self, latents: Floats) -> Floats:
        """(C, H, W) latents to (H, W, 4) colours, 0..1; transparent where they are not finite."""
        values = self.components(latents)
        there = np.asarray(np.isfinite(values).all(axis=0))
        low, high = (np.array(end)[:, None, None] for end in (self.low, self.high))
        scaled = np.where(there, np.clip((values - low) / (high - low), 0.0, 1.0), 0.0)
        return np.concatenate([scaled, there[None]]).transpose(1, 2, 0).astype(np.float32)


def basis_of(ds: xr.Dataset) -> Basis:
    """The basis of a cube: the same one whichever of its dates is drawn.

    Of the means of 4 x 4 cells, of up to four time steps spread over those that have any window. Cloud (where the store
    knows it by cell) and cells with few source pixels are left out, and so are the means farthest from the middle, by
    their distance in robust spreads (median and median deviation of each channel).
    """
    means, single, dates = _cells(ds)
    return _with_room(fit(means, dates), single)


def _with_room(basis: Basis, single: npt.NDArray[np.floating]) -> Basis:
    """The basis with a range in which single cells (N, C) have room, too: over coarse ground they vary far more."""
    if not len(single):
        return basis
    values = (single.astype(np.float64) - np.array(basis.centre)) @ np.array(basis.axes).T
    low, high = np.percentile(values, [SPREAD, 100 - SPREAD], axis=0)
    return replace(
        basis, low=tuple(np.minimum(basis.low, low).tolist()), high=tuple(np.maximum(basis.high, high).tolist())
    )


def fit(cells: npt.NDArray[np.floating], dates: int = 1) -> Basis:
    """The basis of (N, C) finite cells. Signs are fixed: each component's largest loading is positive."""
    channels = cells.shape[1]
    if not len(cells):
        return Basis((0.0,) * channels, ((0.0,) * channels,) * 3, (0.0,) * 3, (1.0,) * 3, dates)
    values = cells.astype(np.float64)
    for _ in range(2):  # the first middle is pulled by what is then left out
        centre = np.median(values, axis=0)
        spread = np.maximum(np.median(np.abs(values - centre), axis=0), 1e-9)
        far = np.square((values - centre) / spread).mean(axis=1)
        values = values[far <= np.percentile(far, KEPT)]
    centre = values.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(values.T).reshape(channels, channels) if len(values) > 1 else np.eye(channels))
    axes = np.zeros((3, channels))
    found = vectors[:, ::-1][:, :3].T
    axes[: len(found)] = found * np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])[:, None]
    low, high = np.percentile((values - centre) @ axes.T, [SPREAD, 100 - SPREAD], axis=0)
    middle, half = (low + high) / 2, np.maximum((high - low) / 2 * ROOM, 1e-6)
    low, high = middle - half, middle + half
    return Basis(
        tuple(centre.tolist()), tuple(tuple(row) for row in axes.tolist()), tuple(low.tolist()), tuple(high.tolist()),
        dates,
    )  # fmt: skip


def _fullest(steps: xr.Dataset) -> dict[str, slice]:
    """Slices of cells to the ground of at most SIDE a side that has the most windows that are ok."""
    if max(steps.sizes["y"], steps.sizes["x"]) <= SIDE or "status" not in steps:
        return {"y": slice(0, SIDE), "x": slice(0, SIDE)}
    ok = (steps["status"].values == State.OK).sum(axis=0)
    core = max(1, round(steps.sizes["y"] / ok.shape[0]))
    high, wide = (min(max(1, SIDE // core), n) for n in ok.shape)
    total = np.pad(np.cumsum(np.cumsum(ok, 0), 1), ((1, 0), (1, 0)))
    sums = total[high:, wide:] - total[:-high, wide:] - total[high:, :-wide] + total[:-high, :-wide]
    row, col = (int(k) for k in np.unravel_index(int(sums.argmax()), sums.shape))
    return {"y": slice(row * core, (row + high) * core), "x": slice(col * core, (col + wide) * core)}


def _cells(ds: xr.Dataset) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], int]:
    """(N, C) means of blocks of cells, (M, C) the cells themselves, and of how many time steps they are."""
    steps = ds if "time" in ds.dims else ds.expand_dims("time")
    filled: Sequence[int] = range(steps.sizes["time"])
    if "status" in steps:
        ok = (steps["status"].values == State.OK).any(axis=(1, 2))
        filled = [int(k) for k in np.flatnonzero(ok)] or filled
    some = sorted({filled[int(k)] for k in np.linspace(0, len(filled) - 1, min(DATES, len(filled))).round()})
    steps = steps.isel(_fullest(steps))
    chosen = steps.isel(time=some)
    values = chosen.eocube.real_values().transpose("time", "y", "x", "channel").values.astype(np.float32)
    good = np.isfinite(values).all(axis=-1)
    clear = good.copy()
    if "valid" in chosen:
        clear &= chosen["valid"].transpose("time", "y", "x").values >= VALID
    for name in ("cloud", "shadow"):
        if name in chosen:
            known = chosen[name].transpose("time", "y", "x").values
            clear &= (known <= CLOUD) | (known > 100)  # above 100: not known
    for mask in (clear, good):
        means = _means(values, mask)
        if len(means) >= 2 * values.shape[-1]:
            return means, values[mask], len(some)
    return values[good], values[good], len(some)


def _means(values: Floats, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.floating]:
    """(N, C) means of blocks of BLOCK x BLOCK cells of (T, H, W, C) values, of those that are at least half there."""
    steps, height, width, channels = values.shape
    high, wide = height // BLOCK, width // BLOCK
    shape = (steps, high, BLOCK, wide, BLOCK)
    inside = mask[:, : high * BLOCK, : wide * BLOCK].reshape(shape)
    cells = values[:, : high * BLOCK, : wide * BLOCK].reshape(*shape, channels)
    count = inside.sum(axis=(2, 4))
    total = np.where(inside[..., None], cells, 0.0).sum(axis=(2, 4))
    kept = count >= BLOCK * BLOCK / 2
    means: npt.NDArray[np.floating] = total[kept] / count[kept][:, None]
    return means
