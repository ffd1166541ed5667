"""Pooled figures against scikit-image, torchmetrics and hand calculation; bootstrap over places."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model import metrics
from model.evaluation.figures import Sums, batch_spans, figures, measure, pooled, resampled


def pairs(count: int, bands: int = 4, size: int = 32) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Targets and noisy copies, the noise growing from tile to tile."""
    rng = np.random.default_rng(7)
    targets = [(rng.normal(size=(bands, size, size)) * (1 + k)).astype(np.float32) for k in range(count)]
    noisy = [t + np.float32(0.1 * (k + 1)) * rng.normal(size=t.shape).astype(np.float32) for k, t in enumerate(targets)]
    return noisy, targets


def measured(noisy: list[np.ndarray], targets: list[np.ndarray], batch: int) -> list[Sums]:
    spans = batch_spans(targets, batch)
    return [
        measure(a, b, s, f"p{k}", borders=True) for k, (a, b, s) in enumerate(zip(noisy, targets, spans, strict=True))
    ]


def test_one_batch_equals_torchmetrics_with_its_range() -> None:
    image = pytest.importorskip("torchmetrics.functional.image", exc_type=ImportError)
    regression = pytest.importorskip("torchmetrics.functional.regression", exc_type=ImportError)
    noisy, targets = pairs(3)
    a, b = (torch.from_numpy(np.stack(v)).double() for v in (noisy, targets))
    span = float(b.max() - b.min())
    out = figures(measured(noisy, targets, 16), batch=16)
    mse = regression.mean_squared_error(a, b)
    expected = {
        "rmse": float(mse.sqrt()),
        "psnr": float(image.peak_signal_noise_ratio(a, b, data_range=span)),
        "ssim": float(image.structural_similarity_index_measure(a, b, data_range=span)),
        "sam": float(image.spectral_angle_mapper(a, b)),
    }
    assert {key: out[key]["value"] for key in expected} == pytest.approx(expected, abs=1e-5)


def test_published_figures_are_means_over_batches() -> None:
    noisy, targets = pairs(5)
    whole = figures(measured(noisy, targets, 2), batch=2)
    parts = [figures(measured(noisy[k : k + 2], targets[k : k + 2], 2), batch=2) for k in (0, 2, 4)]
    for key in ("rmse", "psnr", "ssim", "sam"):
        assert whole[key]["value"] == pytest.approx(np.mean([p[key]["value"] for p in parts]))


def test_per_band_figures_equal_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    noisy, targets = pairs(1)
    bands = figures([measure(noisy[0], targets[0], 1.0, "p")], bands=list("abcd"))["bands"]
    for k, band in enumerate("abcd"):
        a, b = (v[0][k].astype(np.float64) for v in (noisy, targets))
        assert bands[band]["rmse"] == pytest.approx(math.sqrt(skimage.mean_squared_error(b, a)), abs=1e-5)
        assert bands[band]["psnr"] == pytest.approx(skimage.peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-5)
        similar = skimage.structural_similarity(
            b, a, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert bands[band]["ssim"] == pytest.approx(similar, abs=1e-5)


def test_ndvi_pools_pixels_over_tiles() -> None:
    rng = np.random.default_rng(1)
    targets = [rng.random((2, 16, 16)).astype(np.float32) * 0.5 for _ in range(2)]
    targets[1][:, :8] = 0  # deep shadow: left out
    noisy = [t + np.float32(0.05) for t in targets]
    sums = [measure(a, b, 1.0, f"p{k}", (0, 1)) for k, (a, b) in enumerate(zip(noisy, targets, strict=True))]
    expected = metrics.ndvi_mae(np.concatenate(noisy, axis=1), np.concatenate(targets, axis=1), 0, 1)
    assert figures(sums)["ndvi_mae"]["value"] == pytest.approx(expected)


def test_weights_count_tiles_as_often_as_repeating_them() -> None:
    noisy, targets = pairs(3)
    sums = [measure(a, b, 3.0, f"p{k}") for k, (a, b) in enumerate(zip(noisy, targets, strict=True))]
    weighted = pooled(sums, np.array([[2.0, 0.0, 1.0]]))
    repeated = pooled([sums[0], sums[0], sums[2]], np.ones((1, 3)))
    for key, value in repeated.items():
        np.testing.assert_allclose(weighted[key], value)


def test_bootstrap_keeps_the_tiles_of_a_place_together() -> None:
    (weights,) = resampled(["a", "b", "a", "c"], 50, seed=3)
    assert weights.shape == (50, 4)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(1), 3)
    assert not list(resampled(["a", "a"], 50, seed=3))


def test_many_tiles_are_weighed_a_few_rows_at_a_time_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    grounds = ["a", "b", "a", "c"]
    (whole,) = resampled(grounds, 50, seed=3)
    monkeypatch.setattr("model.evaluation.figures._CELLS", 4 * 20)
    parts = list(resampled(grounds, 50, seed=3))
    assert [len(part) for part in parts] == [20, 20, 10]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_interval_covers_the_value_and_one_place_has_none() -> None:
    noisy, targets = pairs(6)
    out = figures(measured(noisy, targets, 16), batch=16, resamples=500)
    for key in ("rmse", "psnr", "ssim", "sam"):
        assert out[key]["low"] < out[key]["value"] < out[key]["high"]
    alone = figures([measure(noisy[0], targets[0], 1.0, "p")])
    assert alone["rmse"]["low"] is None and alone["rmse"]["high"] is None


def test_interval_equals_scipys_percentile_bootstrap_of_a_mean() -> None:
    """SAM over equal tiles is a plain mean over places, of which scipy has the interval too."""
    stats = pytest.importorskip("scipy.stats")
    angles = np.array([0.1, 0.4, 0.2, 0.9, 0.3, 0.5, 0.7, 0.25])
    one = np.ones(1)
    sums = [Sums(f"p{k}", 10, 1.0, one, one, float(a)) for k, a in enumerate(angles)]
    out = figures(sums, resamples=20_000)["sam"]
    expected = stats.bootstrap(
        (angles,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (out["low"], out["high"]) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_ranges_of_one_batch_are_never_mixed() -> None:
    one = np.ones(1)
    with pytest.raises(ValueError, match="data ranges"):
        pooled([Sums("a", 1, 1.0, one, one, 0.0), Sums("b", 1, 2.0, one, one, 0.0)], np.ones((1, 2)))


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(np.zeros((1, 8, 30)), np.zeros((1, 8, 30)), 1.0)
