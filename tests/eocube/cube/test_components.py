"""One basis of components a cube: the same colours for the same latents at every date, and clouds do not make it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import eocube
from eocube.cube.colours import Composite, Stretch
from eocube.cube.components import Basis, basis_of, fit
from eocube.store.receipts import State
from tests.eocube.cubes import make_plan, make_store, make_weights


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("components")
    made = make_store(str(folder / "cube.zarr"), make_plan(make_weights(folder / "tiny.safetensors")))
    return eocube.open(made.url)


def shown(basis: Basis, cells: np.ndarray) -> np.ndarray:
    return basis(cells.T[:, :, None].astype("float32"))[:, 0]


def test_components_are_those_of_the_cells_sorted_and_with_fixed_signs() -> None:
    rng = np.random.default_rng(2)
    cells = rng.normal(size=(4000, 6)) * [5, 4, 3, 0.1, 0.1, 0.1] @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    basis = fit(cells)
    axes = np.array(basis.axes)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    spread = (cells @ axes.T).std(axis=0)
    assert (np.diff(spread) < 0).all() and spread[2] > 2
    assert (axes[np.arange(3), np.abs(axes).argmax(axis=1)] > 0).all()
    assert basis == fit(cells), "the same cells give the same colours"


def test_outliers_change_the_colours_of_the_ground_little() -> None:
    rng = np.random.default_rng(3)
    ground = rng.normal(size=(3000, 8)) * [4, 3, 2, 0.3, 0.3, 0.3, 0.3, 0.3]
    cloud = rng.normal(size=(60, 8)) + 40.0  # two percent of cells that nobody marked as cloud
    alone, together = fit(ground), fit(np.concatenate([ground, cloud]))
    assert np.abs(shown(alone, ground) - shown(together, ground)).mean() < 0.05
    values = np.linalg.eigh(np.cov(np.concatenate([ground, cloud]).T))[1][:, -1]
    assert abs(values @ np.ones(8)) > 2, "which is what the strongest plain component would have been"


def test_few_channels_few_cells_and_none() -> None:
    assert fit(np.zeros((0, 5)))(np.full((5, 2, 2), np.nan, "float32"))[..., 3].sum() == 0
    two = fit(np.random.default_rng(0).normal(size=(100, 2)))
    assert np.array(two.axes)[2].tolist() == [0, 0] and np.isfinite(two(np.zeros((2, 3, 3), "float32"))).all()
    assert np.isfinite(np.array(fit(np.ones((1, 4))).high)).all()


def test_every_date_is_drawn_by_the_cubes_one_basis(ds: xr.Dataset) -> None:
    basis = basis_of(ds)
    assert basis.dates == ds.sizes["time"] > 1 and len(basis.axes[0]) == ds.sizes["channel"]
    latents = ds.eocube.real_values().isel(time=0).transpose("channel", "y", "x").values
    colours = basis(latents)
    there = np.isfinite(latents).all(axis=0)
    assert ((colours[..., 3] == 1) == there).all() and colours.min() >= 0 and colours.max() <= 1
    assert basis_of(ds.isel(time=0)).dates == 1, "of a part of the cube it is that part's"


def test_cells_under_cloud_do_not_count(ds: xr.Dataset) -> None:
    clouded = ds.load().copy(deep=True)
    name = ds.eocube.info.product.array
    half = clouded.sizes["x"] // 2
    if "cloud" not in clouded:
        clouded["cloud"] = xr.zeros_like(clouded["valid"])
    clouded["cloud"][:] = 0
    plain = basis_of(clouded)
    clouded["cloud"][..., :half] = 100
    marked = basis_of(clouded)
    spoiled = clouded.copy(deep=True)
    spoiled[name][..., :half] = spoiled[name][..., :half] * 0
    assert basis_of(spoiled) == marked != plain
    assert (ds["status"].values == State.OK).any()


@pytest.mark.parametrize(
    ("unit", "joint", "said"),
    [
        ("reflectance", True, "0 to 0.3, gamma 1.6"), ("reflectance", False, "0 to 0.5, gamma 1.3"),
        ("dB", False, "-22 to 0, -28 to -6, 2 to 15"), ("dn8", True, "0 to 255"),
    ],
)  # fmt: skip
def test_a_stretch_is_stated_and_the_same_for_every_picture(unit: str, joint: bool, said: str) -> None:
    rng = np.random.default_rng(1)
    one, other = (Composite(rng.normal(k, 1, (3, 5, 5)).astype("float32"), "", joint) for k in (0, 9))
    assert Stretch.fixed(one, unit) == Stretch.fixed(other, unit) and Stretch.fixed(one, unit).said == said
    assert Stretch.fixed(one, "kelvin") == Stretch.of(one)


def test_a_quicklook_of_another_date_has_the_same_basis(ds: xr.Dataset, tmp_path: Path) -> None:
    from eocube.cube.quicklook import _gather

    first, second = (_gather(ds, None, k) for k in (0, 1))
    assert first.basis == second.basis
    left, right, bottom, top = first.extent
    x0, x1, y0, y1 = first.latents_extent
    assert x0 <= left and x1 >= right and y0 <= bottom and y1 >= top, "cells reach over the picture"
    assert np.isfinite(first.decoded).all(0).any(axis=0)[[0, -1]].all(), "cut to where there are pixels"
