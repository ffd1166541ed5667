"""Composites: the medians of what is clear in each period, lazily, with how many observations there were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import eocube
from eocube.errors import InputError
from eocube.store.receipts import State
from tests.eocube.cubes import make_plan, make_store, make_weights

TIMES = ("2023-08-15T09:57:57Z", "2023-08-20T09:57:57Z", "2023-08-25T09:57:57Z", "2023-10-01T09:57:57Z",
         "2023-12-02T09:57:57Z")  # fmt: skip


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Five dates in three months; one window not read at the first, a cloud over part of the ground at every one."""
    folder = tmp_path_factory.mktemp("composite")
    torch.set_num_threads(1)
    plan = make_plan(make_weights(folder / "tiny.safetensors"), times=TIMES)
    clouds = np.zeros((2, *plan.grid.shape), np.uint8)
    row, col = plan.grid.extent[:2]
    clouds[0, row : row + 3, col : col + 3], clouds[1, row + 3, col] = 15, 60
    made = make_store(str(folder / "cube.zarr"), plan, {(0, row // 6 + 1, col // 6): State.READ_FAILED}, clouds=clouds)
    return eocube.open(made.url)


def test_a_month_is_the_median_of_what_is_clear(ds: xr.Dataset) -> None:
    made = ds.eocube.composite("1MS", bands=["B04", "B08"], clear=20)
    assert made.chunks is not None and made.dims == ("time", "band", "y", "x")
    assert [str(t)[:10] for t in made.time.values] == ["2023-08-01", "2023-10-01", "2023-12-01"]
    decoded = ds.eocube.decode(bands=["B04", "B08"]).compute()
    with np.errstate(all="ignore"):
        wanted = decoded.isel(time=slice(0, 3)).median("time")
    shadow = np.s_[3 * 8 : 4 * 8, 0:8]  # 60 % of it: never clear
    wanted.values[:, *shadow] = np.nan
    made = made.compute()
    np.testing.assert_allclose(made.isel(time=0).values, wanted.values, rtol=1e-6)
    counts = made.observations.isel(time=0).values
    assert set(np.unique(counts)) == {0, 2, 3} and (counts[shadow] == 0).all()
    assert (np.isfinite(made.isel(time=0, band=0).values) == (counts > 0)).all()
    strict = ds.eocube.composite("1MS", bands=["B04"], clear=10).isel(time=0).compute()
    assert np.isnan(strict.values[0, :24, :24]).all() and np.isfinite(strict.values[0, 32:40, 24:40]).all()


@pytest.mark.parametrize("how", ["mean", "min", "max", "median"])
def test_latents_by_season(ds: xr.Dataset, how: Any) -> None:
    made = ds.eocube.composite("season", how, None, what="latents").compute()
    assert [str(t)[:10] for t in made.time.values] == ["2023-06-01", "2023-09-01", "2023-12-01"]
    summer = ds.eocube.latents().isel(time=slice(0, 3)).compute()
    np.testing.assert_allclose(made.isel(time=0).values, getattr(summer, how)("time").values, rtol=1e-5)
    assert made.attrs["cell_methods"] == f"time: {how}"


def test_it_can_be_written_and_cut_to_a_box(ds: xr.Dataset, tmp_path: Path) -> None:
    box = (11.508, 48.105, 11.510, 48.107)
    made = ds.eocube.composite("1MS", bands=["B04"], bbox=box)
    assert made.sizes["x"] < 30
    made.to_dataset(name="monthly").to_zarr(tmp_path / "m.zarr")
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "m.zarr").monthly.values, made.values)


@pytest.mark.parametrize(
    ("how", "said"),
    [({"period": "fortnight"}, "as pandas names"), ({"how": "mode"}, "take median"), ({"clear": 120}, "0 to 100"),
     ({"what": "tokens"}, "decoded or latents")],
)  # fmt: skip
def test_what_cannot_be_is_refused(ds: xr.Dataset, how: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ds.eocube.composite(**{"period": "1MS", **how})
