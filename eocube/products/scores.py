"""Measures how near decoded pixels come to their source: PSNR, RMSE, spectral angle, how visible seams are.

Bands come first: arrays are (C, ...) in physical units. Pixels that are not finite in either array do not count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DATA_RANGE = {"reflectance": 1.0, "dB": 40.0, "dn8": 255.0}
"""The range that PSNR is stated against, by physical unit: reflectance 0..1, backscatter -30..10 dB, 8-bit numbers."""


def _pair(reference: npt.ArrayLike, estimate: npt.ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(estimate, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"reference has shape {a.shape}, estimate {b.shape}: they must be the same")
    return a, b


def rmse(reference: npt.ArrayLike, estimate: npt.ArrayLike) -> float:
    """Root mean square difference over every value finite in both, in their unit; NaN where there is none."""
    a, b = _pair(reference, estimate)
    squared = np.square(a - b)
    squared = squared[np.isfinite(squared)]
    return float(np.sqrt(squared.mean())) if squared.size else float("nan")


def rmse_map(reference: npt.ArrayLike, estimate: npt.ArrayLike) -> Floats:
    """RMSE over the bands at each pixel: (C, H, W) twice -> (H, W), NaN where a band is not finite."""
    a, b = _pair(reference, estimate)
    return np.asarray(np.sqrt(np.square(a - b).mean(axis=0)), dtype=np.float64)


def psnr(reference: npt.ArrayLike, estimate: npt.ArrayLike, *, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, 20 log10(data_range / RMSE).

    The range is the caller's to state (`DATA_RANGE` has the one of each unit): one taken from the data makes figures of
    two scenes incomparable. Infinite for equal arrays, NaN where nothing is finite.
    """
    if not data_range > 0:
        raise ValueError(f"data_range is {data_range}: it must be positive")
    error = rmse(reference, estimate)
    return float("inf") if error == 0 else float(20.0 * np.log10(data_range / error))


def sam_map(reference: npt.ArrayLike, estimate: npt.ArrayLike) -> Floats:
    """Spectral angle at each pixel in radians, 0..pi: (C, ...) twice -> (...).

    The angle between two spectra seen as vectors of C reflectances (Kruse et al. 1993); NaN where either is zero or not
    finite. Its half-angle form, 2 atan2(|a/|a| - b/|b||, |a/|a| + b/|b||), keeps small angles exact where the arc
    cosine loses half of the digits.
    """
    a, b = _pair(reference, estimate)
    with np.errstate(invalid="ignore", divide="ignore"):
        a = a / np.sqrt(np.square(a).sum(axis=0))
        b = b / np.sqrt(np.square(b).sum(axis=0))
        apart, along = np.square(a - b).sum(axis=0), np.square(a + b).sum(axis=0)
        return np.asarray(2.0 * np.arctan2(np.sqrt(apart), np.sqrt(along)), dtype=np.float64)


def sam(reference: npt.ArrayLike, estimate: npt.ArrayLike) -> float:
    """Mean spectral angle in radians over the pixels where it is known (see `sam_map`); NaN where there is none."""
    angles = sam_map(reference, estimate)
    angles = angles[np.isfinite(angles)]
    return float(angles.mean()) if angles.size else float("nan")


def seam_ratio(image: npt.ArrayLike, period: int, *, origin: tuple[int, int] = (0, 0)) -> float:
    """How much larger the steps across core borders are than steps elsewhere; 1 where no seam can be told.

    The root mean square step between the two pixels either side of a border, over that between neighbours anywhere
    else, rows and columns together. Give the error (decoded minus source) rather than the picture where the source is
    at hand: the ground's own texture hides seams.

    Args:
        image: (..., H, W), any unit.
        period: pixels between borders: a core's size.
        origin: row and column of the first pixel within its core; 0 where the image starts on a border.
    """
    a = np.asarray(image, dtype=np.float64)
    seams: list[Floats] = []
    others: list[Floats] = []
    for axis, first in ((-2, origin[0]), (-1, origin[1])):
        steps = np.square(np.moveaxis(np.diff(a, axis=axis), axis, 0))
        on_border = (np.arange(1, a.shape[axis]) + first) % period == 0
        seams.append(steps[on_border].ravel())
        others.append(steps[~on_border].ravel())
    seam, other = (_root_mean(np.concatenate(parts)) for parts in (seams, others))
    return seam / other if other > 0 else float("nan")


def _root_mean(squares: Floats) -> float:
    squares = squares[np.isfinite(squares)]
    return float(np.sqrt(squares.mean())) if squares.size else float("nan")
