"""Measures one result against the truth of its pair: errors, spectral angle, consistency, sharpness of the spectrum.

Everything is in reflectance with a data range of 1. Pixels that the truth lacks count for no method and no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model import metrics
from model.evaluation.figures import Sums, pooled
from model.evaluation.super_resolution.pairs import Case
from model.sensors import COLOURS, Floats
from model.spectrum import above_nyquist
from model.wald import degrade

DATA_RANGE = 1.0
FIGURES = ("psnr", "ssim", "rmse", "sam")
_LEAST_VALID = 0.5
"""Share of an image that must be valid for a spectrum to say something of the ground."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one result adds to the figures of its place.

    `bands` is of all bands as they come, `rgb` of red, green and blue clamped to 0..1, as published; None without these
    bands. `consistency` is the mean |degraded result - input| in reflectance. `above` is the share of the result's
    spectral energy above the input's Nyquist frequency, `above_truth` the truth's; `detail` the correlation of both
    above it: 1 where the detail is the truth's, 0 where it is invented. All three NaN where too little is valid.
    """

    bands: Sums
    rgb: Sums | None
    consistency: float
    above: float
    above_truth: float
    detail: float


def measure(result: Floats, case: Case, mtf: Sequence[float]) -> Measured:
    """Figures of a result (C, H, W); `mtf` at the input's Nyquist frequency, a value a band.

    ValueError where the result is not finite or has another shape than the truth, or nothing of the truth is valid.
    """
    if result.shape != case.hr.shape or not np.isfinite(result).all():
        raise ValueError(f"pair {case.pair.id}: the result {result.shape} is not finite, or not of {case.hr.shape}")
    valid = case.valid
    if not valid.any():
        raise ValueError(f"pair {case.pair.id}: no pixel of the truth has all bands: leave it out")
    bands = tuple(case.pair.bands)
    rgb = None
    if set(COLOURS) <= set(bands):
        picks = [bands.index(band) for band in COLOURS]
        rgb = compare(np.clip(result[picks], 0, 1), np.clip(case.hr[picks], 0, 1), valid, case.pair.place)
    above, above_truth, detail = sharpness(result, case)
    return Measured(
        compare(result, case.hr, valid, case.pair.place),
        rgb,
        consistency(result, case, mtf),
        above,
        above_truth,
        detail,
    )


def compare(result: Floats, truth: Floats, valid: NDArray[np.bool_], place: str) -> Sums:
    """Squared errors, SSIM without borders and spectral angle (radians) over the valid pixels (H, W) of (C, H, W)."""
    a, b = result[:, valid], truth[:, valid]
    square = ((a.astype(np.float64) - b) ** 2).sum(1)
    similar = metrics.ssim_bands(result, truth, DATA_RANGE, valid=valid)
    return Sums(place, int(valid.sum()), DATA_RANGE, square, similar, metrics.sam(a, b))


def consistency(result: Floats, case: Case, mtf: Sequence[float]) -> float:
    """Mean |degrade(result) - input| in reflectance, over pixels of the input whose ground the truth has."""
    low = degrade(torch.from_numpy(np.ascontiguousarray(result))[None], mtf, case.factor)[0].numpy()
    counted = case.valid_below
    return float(np.abs(low - case.lr)[:, counted].mean()) if counted.any() else float("nan")


def sharpness(result: Floats, case: Case) -> tuple[float, float, float]:
    """Shares of spectral energy above the input's Nyquist frequency, of the result and of the truth, and how well both
    correlate there.

    What is invalid is the mean of the valid in both alike, so that its edges are the same in both.
    """
    valid = case.valid
    if valid.mean() < _LEAST_VALID:
        return float("nan"), float("nan"), float("nan")
    return above_nyquist(filled_alike(result, valid), filled_alike(case.hr, valid), case.factor)


def filled_alike(image: Floats, valid: NDArray[np.bool_]) -> Floats:
    """(C, H, W) with the valid pixels' mean where nothing is valid."""
    mean = image[:, valid].mean(1, dtype=np.float64).astype(np.float32)
    return np.where(valid, image, mean[:, None, None])


def of_place(rows: Sequence[Measured]) -> dict[str, float]:
    """Figures of one place: errors pooled over all its pixels, shares and the like averaged over its images.

    psnr (dB), ssim, rmse, sam (radians) of all bands, the same as rgb_psnr and so on where there is colour,
    consistency (reflectance), sharpness (result's share above Nyquist by the truth's) and detail.
    """
    found = _pooled([row.bands for row in rows])
    colours = [row.rgb for row in rows if row.rgb is not None]
    if colours:
        found |= {f"rgb_{key}": value for key, value in _pooled(colours).items()}
    above, truth = _mean([row.above for row in rows]), _mean([row.above_truth for row in rows])
    found["consistency"] = _mean([row.consistency for row in rows])
    found["sharpness"] = above / truth if truth > 0 else float("nan")
    found["detail"] = _mean([row.detail for row in rows])
    return found


def over_places(places: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over places, each of the same weight however many images it has; undefined figures left out."""
    keys = dict.fromkeys(key for figures in places.values() for key in figures)
    return {key: _mean([figures[key] for figures in places.values() if key in figures]) for key in keys}


def _pooled(sums: Sequence[Sums]) -> dict[str, float]:
    # An image of which no window of 11 pixels is valid has no SSIM: the others' counts.
    similar = [s for s in sums if np.isfinite(s.ssim).all()]
    found = pooled(sums, np.ones((1, len(sums))))
    one = {key: float(found[key][0]) for key in FIGURES if key != "ssim"}
    ssim = float(pooled(similar, np.ones((1, len(similar))))["ssim"][0]) if similar else float("nan")
    return {key: ssim if key == "ssim" else one[key] for key in FIGURES}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
