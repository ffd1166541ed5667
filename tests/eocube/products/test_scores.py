"""Quality figures against scikit-image and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

from eocube.products.scores import psnr, rmse, rmse_map, sam, sam_map, seam_ratio


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    reference = rng.uniform(0, 1, (5, 40, 30))
    return reference, reference + rng.normal(0, 0.02, reference.shape)


def test_rmse_and_psnr_equal_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    assert rmse(a, b) == pytest.approx(np.sqrt(mean_squared_error(a, b)), rel=1e-12)
    for data_range in (1.0, 40.0):
        assert psnr(a, b, data_range=data_range) == pytest.approx(
            peak_signal_noise_ratio(a, b, data_range=data_range), rel=1e-12
        )


def test_pixels_that_are_not_finite_do_not_count(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (v.copy() for v in pair)
    a[:, :10], b[:, :, 20:] = np.nan, np.inf
    seen = np.s_[:, 10:, :20]
    assert rmse(a, b) == pytest.approx(rmse(a[seen], b[seen]), rel=1e-12)
    assert psnr(a, b, data_range=1) == pytest.approx(psnr(a[seen], b[seen], data_range=1), rel=1e-12)
    assert sam(a, b) == pytest.approx(sam(a[seen], b[seen]), rel=1e-12)
    assert np.isnan(rmse_map(a, b)[:10]).all() and np.isfinite(rmse_map(a, b)[seen[1:]]).all()


def test_nothing_finite_gives_nan_and_equality_infinity() -> None:
    gone = np.full((2, 3, 3), np.nan)
    assert np.isnan([rmse(gone, gone), psnr(gone, gone, data_range=1), sam(gone, gone)]).all()
    assert psnr(np.ones((2, 3)), np.ones((2, 3)), data_range=1) == np.inf


def test_shapes_and_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        rmse(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="data_range is 0"):
        psnr(np.ones(3), np.ones(3), data_range=0)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, np.pi), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_spectral_angle_of_two_spectra_is_that_between_them(angle: float, one: float, other: float) -> None:
    a = one * np.array([[1.0], [0.0], [0.0]])
    b = other * np.array([[np.cos(angle)], [np.sin(angle)], [0.0]])
    assert sam(a, b) == pytest.approx(angle, abs=1e-12)


def test_the_spectral_angle_equals_the_arc_cosine(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    cosine = (a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    np.testing.assert_allclose(sam_map(a, b), np.arccos(cosine), atol=1e-7)
    assert np.isnan(sam(np.zeros((3, 4)), np.ones((3, 4)))), "a spectrum of zeros has no direction"


def test_rmse_map_is_the_rmse_of_each_pixel(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    assert rmse_map(a, b)[3, 4] == pytest.approx(rmse(a[:, 3, 4], b[:, 3, 4]), rel=1e-12)
    assert np.sqrt(np.square(rmse_map(a, b)).mean()) == pytest.approx(rmse(a, b), rel=1e-12)


@pytest.mark.parametrize("origin", [(0, 0), (5, 0), (3, 11)])
def test_seam_ratio_sees_steps_at_borders_only(origin: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, (4, 160, 160))
    assert seam_ratio(noise, 16, origin=origin) == pytest.approx(1.0, abs=0.03)
    core = (np.add.outer(np.arange(160) + origin[0], np.zeros(160, int)) // 16) + (np.arange(160) + origin[1]) // 16
    assert seam_ratio(noise + 3 * (core % 2), 16, origin=origin) > 1.5
    assert seam_ratio(noise + 3 * (core % 2), 16, origin=(origin[0] + 8, origin[1] + 8)) < 1.0


def test_seam_ratio_leaves_out_what_is_not_finite() -> None:
    noise = np.random.default_rng(3).normal(0, 1, (96, 96))
    noise[:32] = np.nan
    assert seam_ratio(noise, 16) == pytest.approx(seam_ratio(noise[32:], 16), rel=1e-12)
