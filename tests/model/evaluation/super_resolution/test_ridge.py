"""The ridge finds a linear map, chooses its parameter by places left out, and comes back from its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.evaluation.super_resolution.measure import measure, of_place
from model.evaluation.super_resolution.pairs import Case
from model.evaluation.super_resolution.ridge import Ridge, fit_ridge, load_ridge, save_ridge
from model.wald import bicubic
from tests.model.evaluation.super_resolution.scenes import BANDS, MTF, Made, pair, with_hole


def linear(seed: int) -> Made:
    """A truth that is a linear function of the input's 3x3 neighbours: another weight in each of the 16 pixels."""
    made = pair(seed)
    rng = np.random.default_rng(7)
    padded = np.pad(made.lr, ((0, 0), (1, 1), (1, 1)), mode="edge")
    hr = np.zeros_like(made.hr)
    for row in range(4):
        for column in range(4):
            taps = rng.normal(0, 0.2, (3, 3, 4, 4))
            taps[1, 1] += np.eye(4)
            hr[:, row::4, column::4] = 0.02 + sum(
                np.einsum("oc,chw->ohw", taps[i, j], padded[:, i : i + 16, j : j + 16])
                for i in range(3) for j in range(3)
            )  # fmt: skip
    return replace(made, hr=hr.astype(np.float32))


def test_it_recovers_a_linear_map() -> None:
    ridge = fit_ridge([linear(seed) for seed in range(4)])
    left_out = linear(9)
    assert np.abs(ridge(left_out.lr) - left_out.hr).max() < 1e-4
    assert ridge.parameter == 1e-8 and not ridge.turned  # the map is no rotation's own mirror image
    assert ridge.places == ("place0", "place1", "place2", "place3") and ridge.pixels == 4 * 256
    assert ridge.parameters == 100 * 64 + 64


def test_it_beats_bicubic_on_a_place_left_out() -> None:
    ridge = fit_ridge([pair(seed, side=128) for seed in range(1, 7)])
    case = Case.of(pair(0, side=128), 0)
    smooth = bicubic(torch.from_numpy(case.lr)[None], 4)[0].numpy()
    ours, theirs = (of_place([measure(y, case, MTF)])["psnr"] for y in (ridge(case.lr), smooth))
    assert ours > theirs + 0.3
    assert ridge.turned  # isotropic ground: eight times the data


def test_with_nothing_to_learn_it_is_bicubic() -> None:
    """Noise above: the parameter is the largest, and the result is near bicubic."""
    rng = np.random.default_rng(0)

    def noise(seed: int) -> Made:
        made = pair(seed)
        smooth = bicubic(torch.from_numpy(made.lr)[None], 4)[0].numpy()
        return replace(made, hr=(smooth + rng.normal(0, 0.05, smooth.shape)).astype(np.float32))

    pairs = [noise(seed) for seed in range(4)]
    ridge = fit_ridge(pairs)
    assert ridge.parameter >= 0.1


def test_invalid_pixels_are_not_fitted_on() -> None:
    whole = [linear(seed) for seed in range(3)]
    holed = [with_hole(made, slice(0, 8), slice(0, 8)) for made in whole]
    ridge = fit_ridge(holed)
    assert ridge.pixels == 3 * (256 - 4)
    assert np.abs(ridge(whole[0].lr) - whole[0].hr).max() < 1e-3


def test_one_place_is_split_by_its_images() -> None:
    ridge = fit_ridge([replace(linear(seed), place="one") for seed in range(3)])
    assert ridge.places == ("one",) and ridge.parameter == 1e-8


def test_bad_pairs_are_said_in_one_line() -> None:
    with pytest.raises(ValueError, match="no pair to fit the ridge on"):
        fit_ridge([])
    with pytest.raises(ValueError, match=r"p1 is 2x of .*, earlier ones 4x"):
        fit_ridge([pair(0), pair(1, factor=2)])
    with pytest.raises(ValueError, match="3 bands were given"):
        fit_ridge([pair(0)])(pair(0).lr[:3])


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    ridge = fit_ridge([pair(seed) for seed in range(2)])
    save_ridge(ridge, tmp_path / "ridge.safetensors")
    again = load_ridge(tmp_path / "ridge.safetensors")
    assert isinstance(again, Ridge) and again.bands == BANDS and again.parameter == ridge.parameter
    assert np.abs(again(pair(5).lr) - ridge(pair(5).lr)).max() < 1e-6
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no ridge"):
        load_ridge(tmp_path / "bad.safetensors")
