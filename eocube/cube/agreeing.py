"""Makes decoded pixels agree with coarser ones: averaged back by the sensor's MTF they are what those say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import dask.array as da
import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from eocube.cube.decode import mirror_fill
from model.wald import back_project

Floats = npt.NDArray[np.float32]
DEPTH = 16
"""Coarse pixels around a block that its correction is computed with: what is further off weighs nothing."""


def agreeing(fine: xr.DataArray, coarse: xr.DataArray, mtf: Sequence[float]) -> xr.DataArray:
    """The nearest image to `fine` (band, y, x) of which degrading makes `coarse`, lazily; NaN stays where it is.

    Block by block, each with `DEPTH` coarse pixels around it (`model.wald.back_project`, exact within a block).

    Args:
        fine: decoded; its sides a whole multiple of the other's, its edges the same or within.
        coarse: decoded from the cube that it was made from, the same bands.
        mtf: of each band at the coarse Nyquist frequency.

    Raises:
        ValueError: ground that does not go together.
    """
    metres = [abs(float(image.x[1] - image.x[0])) for image in (fine, coarse)]
    scale = round(metres[1] / metres[0])
    half = (metres[1] - metres[0]) / 2
    x, y = fine.x.values[::scale] + half, fine.y.values[::scale] - half
    try:
        part = coarse.sel(x=x, y=y)
    except KeyError:
        raise ValueError("the coarse cube does not hold all ground of the fine one") from None
    repeated = da.repeat(da.repeat(part.data, scale, axis=1), scale, axis=2).rechunk(fine.data.chunks)
    depth = {0: 0, 1: DEPTH * scale, 2: DEPTH * scale}
    data = da.map_overlap(  # type: ignore[no-untyped-call]
        partial(_agree, scale=scale, mtf=tuple(mtf)), fine.data, repeated, depth=depth, boundary="none",
        dtype=np.float32, allow_rechunk=True,
    )  # fmt: skip
    return fine.copy(data=data.rechunk(fine.data.chunks))


def _agree(fine: Floats, repeated: Floats, *, scale: int, mtf: tuple[float, ...]) -> Floats:
    there = np.asarray(np.isfinite(fine).all(axis=0) & np.isfinite(repeated).all(axis=0))
    if not there.any():
        return fine
    # What has no pixels is mirrored for the low-pass, and blank again behind it.
    filled, coarse = mirror_fill(fine, there), mirror_fill(repeated, there)[:, ::scale, ::scale]
    found = back_project(torch.from_numpy(filled.copy()), torch.from_numpy(coarse.copy()), mtf, scale).numpy()
    return np.where(np.isfinite(fine), found, np.float32(np.nan)).astype(np.float32)
