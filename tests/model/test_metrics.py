"""Metrics against scikit-image, torchmetrics and hand calculation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import metrics


def _pair(seed: int = 0, bands: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.random((bands, 40, 48)).astype(np.float32)
    return target + 0.05 * rng.standard_normal(target.shape).astype(np.float32), target


def test_ssim_and_psnr_equal_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    prediction, target = _pair()
    reference = skimage.structural_similarity(
        target.astype(np.float64), prediction.astype(np.float64), data_range=1.0, channel_axis=0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert metrics.ssim(prediction, target, 1.0) == pytest.approx(reference, abs=1e-5)
    expected = skimage.peak_signal_noise_ratio(target.astype(np.float64), prediction, data_range=1.0)
    assert metrics.psnr(prediction, target, 1.0) == pytest.approx(expected, abs=1e-5)


def test_sam_equals_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image", exc_type=ImportError)
    prediction, target = _pair()
    a, b = (torch.from_numpy(v).double()[None] for v in (prediction, target))
    assert metrics.sam(prediction, target) == pytest.approx(float(functional.spectral_angle_mapper(a, b)), abs=1e-5)


def test_rmse_is_its_formula() -> None:
    prediction, target = _pair()
    expected = math.sqrt(float(((prediction.astype(np.float64) - target) ** 2).mean()))
    assert metrics.rmse(prediction, target) == pytest.approx(expected, abs=1e-9)


def test_perfect_prediction() -> None:
    _, target = _pair()
    assert metrics.psnr(target, target, 1.0) == math.inf
    assert metrics.ssim(target, target, 1.0) == pytest.approx(1.0)
    assert metrics.sam(target, target) == pytest.approx(0.0, abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 10.0), st.integers(0, 1000))
def test_sam_ignores_brightness(gain: float, seed: int) -> None:
    prediction, target = _pair(seed)
    assert metrics.sam(gain * prediction, target) == pytest.approx(metrics.sam(prediction, target), abs=1e-6)


def test_ndvi_error_by_hand_and_floor() -> None:
    target = np.array([[[0.1, 0.001]], [[0.3, 0.001]]])
    prediction = np.array([[[0.2, 0.9]], [[0.2, 0.0]]])
    assert metrics.ndvi_mae(prediction, target, red=0, nir=1) == pytest.approx(0.5)
    assert math.isnan(metrics.ndvi_mae(prediction, np.zeros_like(target), red=0, nir=1))
