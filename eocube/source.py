"""The source pixels of a cube, read again by its plan onto the decoded grid: what decoded pixels are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import xarray as xr

from eocube.errors import SourceError
from eocube.grid import Window
from eocube.plan import Plan
from eocube.reader import WindowReader
from model.pixels import PixelPipeline


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
        (band, y, x) float32, pixel-centre coordinates. NaN where it cannot be read and in latent pixels that source
        pixels do not cover whole: what the reader mirrors there is filler, nothing to compare with.
    """
    grid, lattice = plan.grid, plan.grid.lattice
    row0, col0, row1, col1 = grid.extent
    px = lattice.stride
    out = np.full((len(plan.sensor.bands), (row1 - row0) * px, (col1 - col0) * px), np.nan, dtype=np.float32)
    inner = slice(lattice.halo_px, lattice.halo_px + lattice.core_px)
    reader = WindowReader(plan.sensor, lattice, storage_options=storage_options)

    def place(window: Window) -> None:
        scenes = plan.scenes_of(time, window)
        if not scenes:
            return
        try:
            pixels = reader.read(scenes, window)
        except SourceError:
            return
        if not pixels.valid.any():
            return
        groups = {s: torch.from_numpy(np.ascontiguousarray(a))[None] for s, a in pixels.groups.items()}
        physical = truth.physical(groups)[0, :, inner, inner].cpu().numpy()
        seen = np.repeat(np.repeat(pixels.valid == 100, px, 0), px, 1)
        wy, wx = grid.place_in_status(window)
        top, left = (wy * lattice.core - row0) * px, (wx * lattice.core - col0) * px
        out[:, top : top + lattice.core_px, left : left + lattice.core_px] = np.where(seen, physical, np.nan)

    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(place, grid.requested_windows()))
    finally:
        reader.close()
    fine = lattice.resolution
    west, north = grid.transform.c + col0 * lattice.cell, grid.transform.f - row0 * lattice.cell
    return xr.DataArray(
        out,
        dims=("band", "y", "x"),
        coords={
            "band": [b.name for b in plan.sensor.bands],
            "y": north - (np.arange(out.shape[1]) + 0.5) * fine,
            "x": west + (np.arange(out.shape[2]) + 0.5) * fine,
        },
        name=plan.sensor.unit,
    )
