"""Figures of results against scikit-image and known answers; what the truth lacks counts nowhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.evaluation.super_resolution.measure import measure, of_place, over_places, sharpness
from model.evaluation.super_resolution.pairs import Case, filled
from model.wald import back_project, bicubic
from tests.model.evaluation.super_resolution.scenes import MTF, below, pair, with_hole


def test_the_truth_has_no_error_and_its_own_sharpness() -> None:
    case = Case.of(pair(0), 0)
    figures = of_place([measure(case.hr, case, MTF)])
    assert figures["psnr"] == float("inf") and figures["rmse"] == 0 and figures["ssim"] == pytest.approx(1)
    assert figures["consistency"] == pytest.approx(0, abs=1e-6)
    assert figures["sharpness"] == pytest.approx(1) and figures["detail"] == pytest.approx(1)


def test_psnr_and_ssim_equal_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    case = Case.of(pair(0), 0)
    rough = (case.hr + np.random.default_rng(1).normal(0, 0.02, case.hr.shape)).astype(np.float32)
    figures = of_place([measure(rough, case, MTF)])
    how = {"data_range": 1.0, "channel_axis": 0, "gaussian_weights": True, "use_sample_covariance": False}
    assert figures["psnr"] == pytest.approx(skimage.peak_signal_noise_ratio(case.hr, rough, data_range=1.0), abs=1e-4)
    assert figures["ssim"] == pytest.approx(skimage.structural_similarity(case.hr, rough, **how), abs=1e-5)
    a, b = np.clip(rough[:3], 0, 1), np.clip(case.hr[:3], 0, 1)
    assert figures["rgb_psnr"] == pytest.approx(skimage.peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-4)


def test_bicubic_is_less_sharp_and_noise_is_no_detail() -> None:
    case = Case.of(pair(1), 0)
    smooth = bicubic(torch.from_numpy(case.lr)[None], 4)[0].numpy()
    above, truth, detail = sharpness(smooth, case)
    assert 0 < above < 0.5 * truth
    noisy = smooth + np.random.default_rng(0).normal(0, 0.05, smooth.shape).astype(np.float32)
    noisy_above, _, noisy_detail = sharpness(noisy, case)
    assert noisy_above > truth and abs(noisy_detail) < 0.1 < detail


def test_a_wave_below_nyquist_has_nothing_above_it() -> None:
    wave = np.broadcast_to(np.sin(2 * np.pi * np.arange(64) * 6 / 64), (4, 64, 64)).astype(np.float32)
    fine = np.broadcast_to(np.sin(2 * np.pi * np.arange(64) * 16 / 64), (4, 64, 64)).astype(np.float32)
    made = replace(pair(0), hr=fine.copy())
    above, truth, _ = sharpness(wave, Case.of(made, 0))  # Nyquist of the input: 8 waves
    assert above < 0.06 and truth > 0.99


def test_a_back_projected_result_is_consistent() -> None:
    case = Case.of(pair(2), 0)
    low = torch.from_numpy(case.lr)[None]
    first = bicubic(low, 4)
    found = [measure(y[0].numpy(), case, MTF).consistency for y in (first, back_project(first, low, MTF, 4, 50))]
    assert found[1] < 1e-4 < found[0]


def test_what_the_truth_lacks_counts_nowhere() -> None:
    made = pair(3)
    holed = with_hole(made, slice(8, 24), slice(0, 20))
    case = Case.of(holed, 0)
    wrong = made.hr.copy()
    wrong[:, 8:24, 0:20] = 7.0
    right = of_place([measure(made.hr, case, MTF)])
    for key in ("psnr", "ssim", "rmse", "sam", "rgb_rmse", "sharpness", "detail"):
        assert of_place([measure(wrong, case, MTF)])[key] == pytest.approx(right[key], abs=1e-12), key
    assert right["rmse"] == 0 and case.valid_below.sum() == 256 - 4 * 5
    # an error elsewhere counts over what is valid
    off = made.hr + np.float32(0.01)
    assert of_place([measure(off, case, MTF)])["rmse"] == pytest.approx(0.01, rel=1e-3)


def test_places_weigh_the_same() -> None:
    rows = {}
    for seed, error in ((0, 0.01), (1, 0.1)):
        case = Case.of(pair(seed), 0)
        rows[case.pair.place] = of_place([measure(case.hr + np.float32(error), case, MTF)] * (1 + 3 * seed))
    assert [row["psnr"] for row in rows.values()] == pytest.approx([40, 20], abs=1e-3)
    assert over_places(rows)["psnr"] == pytest.approx(30, abs=1e-3)


def test_bad_pairs_and_results_are_said_in_one_line() -> None:
    made = pair(0)
    with pytest.raises(ValueError, match="p0: 60x64 pixels are no whole multiple of 16x16"):
        Case.of(replace(made, hr=made.hr[:, :-4]), 0)
    with pytest.raises(ValueError, match="p0: 3 bands below, 4 above"):
        Case.of(replace(made, lr=made.lr[:3]), 0)
    with pytest.raises(ValueError, match="super-resolved"):
        Case.of(replace(made, lr=made.hr), 0)
    case = Case.of(made, 0)
    with pytest.raises(ValueError, match="not finite"):
        measure(np.full_like(made.hr, np.nan), case, MTF)
    with pytest.raises(ValueError, match="no pixel of the truth"):
        measure(made.hr, Case.of(with_hole(made, slice(None), slice(None)), 0), MTF)


def test_an_input_with_holes_is_filled_with_the_bands_means() -> None:
    image = np.ones((2, 3, 3), np.float32) * np.array([1, 2], np.float32)[:, None, None]
    image[0, 1, 1] = np.nan
    image[1] = np.nan
    assert filled(image)[0].tolist() == [[1] * 3] * 3 and (filled(image)[1] == 0).all()
    assert below(pair(0).hr).shape == (4, 16, 16)
