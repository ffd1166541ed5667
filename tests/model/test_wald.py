"""`model.wald`: the low-pass has the MTF asked for, lies half-pixel exact; the nearest consistent image is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.wald import (
    MTF_NYQUIST,
    SHARPENED_MARGIN,
    back_project,
    bicubic,
    consistency_error,
    degrade,
    gaussian_taps,
    mtf_of,
    reach,
    sharpened,
)

RGBN = ("B04", "B03", "B02", "B08")
mtfs = st.floats(0.1, 0.6)


@given(st.floats(0.1, 0.4), st.integers(2, 6))
def test_the_transfer_function_at_the_low_nyquist_is_what_was_asked(mtf: float, factor: int) -> None:
    taps = gaussian_taps(mtf, factor)
    place = torch.arange(len(taps), dtype=torch.float64) - (len(taps) - 1) / 2
    assert len(taps) % 2 == factor % 2 and torch.equal(taps, taps.flip(0))
    assert float(taps.sum()) == pytest.approx(1, abs=1e-12)
    # At 1 / (2 factor) cycles a pixel. A sampled Gaussian has images of its spectrum: under 0.001 of it there.
    assert float((taps * torch.cos(math.pi * place / factor)).sum()) == pytest.approx(mtf, abs=1e-3)


def test_the_taps_against_a_calculation_by_hand() -> None:
    taps = gaussian_taps(math.exp(-0.5 * (math.pi / 4) ** 2), 4)  # a spread of exactly one pixel
    assert len(taps) == 8
    by_hand = [math.exp(-0.5 * x * x) for x in (-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5)]
    np.testing.assert_allclose(taps.numpy(), np.array(by_hand) / sum(by_hand), rtol=1e-12)


def test_what_is_sharpened_degrades_to_the_input_and_depends_on_its_surroundings_alone() -> None:
    mtf = mtf_of(RGBN)
    low = torch.rand(1, 4, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sharpened(low, mtf, 4)
    torch.testing.assert_close(degrade(found, mtf, 4), low)
    assert float((found - bicubic(low, 4)).abs().max()) > 0.05
    margin = SHARPENED_MARGIN
    part = sharpened(low[:, :, 3:37, 3:37], mtf, 4)
    inner = slice(4 * margin, -4 * margin)
    beyond = slice(4 * (margin + 3), -4 * (margin + 3))
    torch.testing.assert_close(part[..., inner, inner], found[..., beyond, beyond], atol=1e-4, rtol=0)


@given(st.floats(-2, 2), st.integers(2, 5), mtfs)
def test_a_constant_stays_what_it_is(value: float, factor: int, mtf: float) -> None:
    x = torch.full((2, 1, 6 * factor, 4 * factor), value, dtype=torch.float64)
    found = degrade(x, (mtf,), factor)
    assert found.shape == (2, 1, 6, 4)
    torch.testing.assert_close(found, torch.full_like(found, value))


@given(st.integers(2, 5), mtfs)
def test_a_ramp_is_sampled_at_the_centres_of_coarse_pixels(factor: int, mtf: float) -> None:
    n = 24 * factor
    centres = torch.arange(n, dtype=torch.float64) + 0.5
    x = (2 * centres[:, None] - 3 * centres[None, :])[None]
    inner = reach((mtf,), factor) // factor
    found = degrade(x, (mtf,), factor)[0, inner:-inner, inner:-inner]
    coarse = ((torch.arange(24, dtype=torch.float64) + 0.5) * factor)[inner:-inner]
    torch.testing.assert_close(found, 2 * coarse[:, None] - 3 * coarse[None, :])


@settings(max_examples=20)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**31))
def test_moving_the_ground_by_a_coarse_pixel_moves_the_result_by_one(down: int, right: int, seed: int) -> None:
    mtf, factor, n = mtf_of(RGBN), 4, 24
    x = torch.rand(4, 4 * (n + 3), 4 * (n + 3), generator=torch.Generator().manual_seed(seed))
    inner = reach(mtf, factor) // factor
    whole = degrade(x, mtf, factor)
    part = degrade(x[:, 4 * down : 4 * (down + n), 4 * right : 4 * (right + n)], mtf, factor)
    there = whole[:, down : down + n, right : right + n]
    torch.testing.assert_close(part[:, inner:-inner, inner:-inner], there[:, inner:-inner, inner:-inner])


def test_each_band_has_its_own_low_pass_and_nan_spreads() -> None:
    x = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(0))
    both = degrade(x, (0.15, 0.5), 4)
    for k, mtf in enumerate((0.15, 0.5)):
        torch.testing.assert_close(both[k : k + 1], degrade(x[k : k + 1], (mtf,), 4))
    x[0, 32, 32] = math.nan
    broken = degrade(x, (0.15, 0.5), 4).isnan()
    assert broken[0].any() and not broken[0].all() and not broken[1].any()


@settings(max_examples=15)
@given(st.sampled_from([2, 3, 4]), st.integers(5, 9), st.integers(5, 9), st.integers(0, 2**31))
def test_back_projection_is_the_nearest_image_that_agrees(factor: int, h: int, w: int, seed: int) -> None:
    mtf, chance = (0.24, 0.3), torch.Generator().manual_seed(seed)
    y = torch.rand(2, factor * h, factor * w, generator=chance, dtype=torch.float64)
    lr = torch.rand(2, h, w, generator=chance, dtype=torch.float64)
    found = back_project(y, lr, mtf, factor)
    assert float(consistency_error(found, lr, mtf, factor)) < 1e-10
    torch.testing.assert_close(back_project(found, lr, mtf, factor), found)
    # Nearest: the change is at right angles to all that degrading does not see.
    unseen = torch.rand(2, factor * h, factor * w, generator=chance, dtype=torch.float64)
    unseen = back_project(unseen, torch.zeros_like(lr), mtf, factor)
    assert abs(float(((found - y) * unseen).sum())) < 1e-8


def test_in_float32_one_step_agrees_far_below_a_count() -> None:
    mtf, chance = mtf_of(RGBN), torch.Generator().manual_seed(1)
    truth = torch.rand(3, 4, 96, 96, generator=chance)
    lr = degrade(truth, mtf, 4)
    start = bicubic(lr, 4)
    assert start.shape == truth.shape and (consistency_error(start, lr, mtf, 4) > 1e-3).all()
    assert (consistency_error(back_project(start, lr, mtf, 4), lr, mtf, 4) < 1e-6).all()
    assert (consistency_error(truth, lr, mtf, 4) == 0).all()


def test_bicubic_keeps_the_centres() -> None:
    n = 16
    x = (torch.arange(n, dtype=torch.float64) + 0.5).expand(1, n, n)
    fine = bicubic(x, 4)
    # a = -0.75 bends a ramp by up to 0.04 of its step between centres, and is symmetric about each.
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(fine, 4)[0, 2:-2, 2:-2], x[0, 2:-2, 2:-2])
    straight = ((torch.arange(4 * n, dtype=torch.float64) + 0.5) / 4)[8:-8]
    assert float((fine[0, 8:-8, 8:-8] - straight).abs().max()) < 0.05


def test_what_does_not_fit_is_said() -> None:
    assert mtf_of(("B03",)) == (MTF_NYQUIST["B03"],)
    with pytest.raises(ValueError, match="no MTF is known of B10, VV"):
        mtf_of(("B10", "B02", "VV"))
    with pytest.raises(ValueError, match="multiples of 4"):
        degrade(torch.zeros(1, 8, 6), (0.2,), 4)
    with pytest.raises(ValueError, match="one a channel"):
        degrade(torch.zeros(2, 8, 8), (0.2,), 4)
    with pytest.raises(ValueError, match="between 0 and 1"):
        gaussian_taps(1.0, 4)
    with pytest.raises(ValueError, match="do not go together"):
        back_project(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), (0.2,), 4)
    assert gaussian_taps(0.3, 1).tolist() == [1.0]
