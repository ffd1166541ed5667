"""Tests that fine pixels come to agree with coarse ones, block by block, and that gaps stay gaps."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr

from eocube.cube.agreeing import agreeing
from model.wald import consistency_error, degrade

MTF = (0.3, 0.25)


def image(values: np.ndarray, metres: float, chunk: int) -> xr.DataArray:
    y = 1000 - (np.arange(values.shape[1]) + 0.5) * metres
    x = 200 + (np.arange(values.shape[2]) + 0.5) * metres
    data = da.from_array(values.astype(np.float32), chunks=(-1, chunk, chunk))
    return xr.DataArray(data, {"band": ["B04", "B08"], "y": y, "x": x}, ("band", "y", "x"))


def pictures(gap: bool = False) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(3)
    truth = rng.uniform(0, 0.4, (2, 192, 192)).astype(np.float32)
    low = degrade(torch.from_numpy(truth)[None], MTF, 4)[0].numpy()
    fine = np.kron(low, np.ones((1, 4, 4), np.float32)) + rng.normal(0, 0.05, truth.shape).astype(np.float32)
    if gap:
        low[:, 10:14, 20:30] = np.nan
        fine[:, 40:56, 80:120] = np.nan
    return image(fine, 2.5, 96), image(low, 10.0, 24)


def test_blocks_agree_with_the_coarse_image_also_where_they_meet() -> None:
    fine, coarse = pictures()
    found = agreeing(fine, coarse, MTF)
    assert found.chunks == fine.chunks
    before, after = (
        float(consistency_error(torch.from_numpy(a.values)[None], torch.from_numpy(coarse.values)[None], MTF, 4))
        for a in (fine, found)
    )
    assert after < 1e-5 < 1e-3 < before
    apart = np.abs(degrade(torch.from_numpy(found.values)[None], MTF, 4)[0].numpy() - coarse.values)
    assert apart.max() < 1e-4


def test_gaps_stay_and_take_nothing_with_them() -> None:
    fine, coarse = pictures(gap=True)
    found = agreeing(fine, coarse, MTF).values
    assert np.array_equal(np.isnan(found), np.isnan(fine.values))


def test_other_ground_is_refused() -> None:
    fine, coarse = pictures()
    with pytest.raises(ValueError, match="does not hold all ground"):
        agreeing(fine, coarse.isel(x=slice(0, 20)), MTF)
