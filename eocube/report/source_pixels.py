"""Reads a cube's source pixels again by its plan, on the decoded grid, for decoded ones to be compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from eocube.errors import InputError, SourceError, StoreError
from eocube.ground.grid import Window
from eocube.net.storage_options import check_reach
from eocube.plan.plan import Plan
from eocube.read.reader import WindowReader
from model.pixels import PixelPipeline

Pixels = npt.NDArray[np.float32]


def read_source(
    plan: Plan,
    truth: PixelPipeline,
    time: int,
    *,
    threads: int = 4,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """The requested cores of one time step in physical units, at the cube's resolution.

    Args:
        plan: the cube's frozen plan.
        truth: the pixel pipeline of the plan's sensor; it upsamples coarser bands as the encoder does.
        time: index of the time step.
        threads: windows read at once.
        storage_options: fsspec options of the sources.

    Returns:
        (band, y, x) float32, pixel-centre coordinates. NaN where it cannot be read and where some band has no pixel:
        what the reader mirrors there is filler, nothing to compare with.
    """
    if plan.derived is not None:
        raise InputError(
            f"made from {plan.derived.parent} at {plan.derived.resolution:g} m: no source shows its ground at "
            f"{plan.grid.lattice.resolution:g} m, so there is none to compare with"
        )
    _check_places(plan, storage_options)
    grid, lattice = plan.grid, plan.grid.lattice
    row0, col0, row1, col1 = grid.extent
    px = lattice.stride
    out = np.full((len(plan.sensor.bands), (row1 - row0) * px, (col1 - col0) * px), np.nan, dtype=np.float32)
    reader = WindowReader(plan.sensor, lattice, storage_options=storage_options)

    def place(window: Window) -> None:
        core = _core(plan, truth, reader, time, window)
        if core is None:
            return
        wy, wx = grid.place_in_status(window)
        top, left = (wy * lattice.core - row0) * px, (wx * lattice.core - col0) * px
        out[:, top : top + lattice.core_px, left : left + lattice.core_px] = core

    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(place, grid.requested_windows()))
    finally:
        reader.close()
    west, north = grid.transform.c + col0 * lattice.cell, grid.transform.f - row0 * lattice.cell
    return _labelled(plan, out, west, north)


def read_windows(
    plan: Plan,
    truth: PixelPipeline,
    time: int,
    windows: Iterable[Window],
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[xr.DataArray]:
    """The cores of some windows in turn, each as `read_source` gives the whole; unreadable ones are left out."""
    _check_places(plan, storage_options)
    lattice = plan.grid.lattice
    with WindowReader(plan.sensor, lattice, storage_options=storage_options) as reader:
        for window in windows:
            core = _core(plan, truth, reader, time, window)
            if core is not None:
                left, _, _, top = lattice.core_bounds(window)
                yield _labelled(plan, core, left, top)


def _check_places(plan: Plan, storage_options: Mapping[str, Any] | None) -> None:
    """StoreError where a plan leads to places that a cube from where it lies may not name."""
    for scene in plan.scenes:
        for source in (*scene.sources, *([] if scene.mask is None else [scene.mask])):
            try:
                check_reach(source.href, storage_options)
            except SourceError as error:
                raise StoreError(f"item {scene.id}, asset {source.key} of the cube's plan: {error}") from None


def _core(plan: Plan, truth: PixelPipeline, reader: WindowReader, time: int, window: Window) -> Pixels | None:
    """A window's core in physical units, NaN where some band has no pixel; None without a pixel."""
    lattice = plan.grid.lattice
    scenes = plan.scenes_of(time, window)
    if not scenes:
        return None
    try:
        pixels = reader.read(scenes, window)
    except SourceError:
        return None
    if not pixels.valid.any():
        return None
    inner = slice(lattice.halo_px, lattice.halo_px + lattice.core_px)
    groups = {s: torch.from_numpy(np.ascontiguousarray(a))[None] for s, a in pixels.groups.items()}
    physical = truth.physical(groups)[0, :, inner, inner].cpu().numpy()
    if pixels.missing is not None:
        physical[:, pixels.missing] = np.nan
    return np.asarray(physical, dtype=np.float32)


def _labelled(plan: Plan, pixels: Pixels, west: float, north: float) -> xr.DataArray:
    fine = plan.grid.lattice.resolution
    return xr.DataArray(
        pixels,
        dims=("band", "y", "x"),
        coords={
            "band": [b.name for b in plan.sensor.bands],
            "y": north - (np.arange(pixels.shape[1]) + 0.5) * fine,
            "x": west + (np.arange(pixels.shape[2]) + 0.5) * fine,
        },
        name=plan.sensor.unit,
    )
