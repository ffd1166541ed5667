"""Measures images as arrays (bands, H, W): RMSE, PSNR, SSIM, spectral angle, NDVI error.

Definitions: EO-VAE specification, section 11. The PSNR's data range is always an argument: a figure without it means
nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, minimum_filter

Array = NDArray[np.floating]
_SIGMA, _TRUNCATE, _K1, _K2 = 1.5, 3.5, 0.01, 0.03
_WINDOW = 11


def rmse(prediction: Array, target: Array) -> float:
    """Root mean squared error over everything."""
    return float(np.sqrt(np.mean((prediction.astype(np.float64) - target) ** 2)))


def psnr(prediction: Array, target: Array, data_range: float) -> float:
    """10 log10(data_range^2 / mean squared error) in dB; infinite for equal arrays."""
    error = float(np.mean((prediction.astype(np.float64) - target) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(prediction: Array, target: Array, data_range: float) -> float:
    """Structural similarity, mean over bands: Gaussian window of sigma 1.5 and 11 pixels, borders of 5 left out.

    Equals `skimage.metrics.structural_similarity` with gaussian_weights=True, use_sample_covariance=False.
    """
    return float(np.mean(ssim_bands(prediction, target, data_range)))


def ssim_bands(
    prediction: Array,
    target: Array,
    data_range: float,
    *,
    borders: bool = False,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """`ssim` of each band, (bands,). ValueError where a side has fewer than 11 pixels: nothing lies inside borders.

    With `borders` the images are mirrored outwards and every pixel counts: torchmetrics' way, which the published
    figures took. Without, the outermost 5 pixels are left out: the original definition, and scikit-image's.

    Of a mask `valid` (H, W) only places count whose whole window of 11 pixels is valid; NaN where there is none.
    """
    if min(target.shape[-2:]) < _WINDOW:
        raise ValueError(f"image of {target.shape[-2]}x{target.shape[-1]}: SSIM needs {_WINDOW} pixels a side")
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    inner = np.s_[:, :] if borders else np.s_[5:-5, 5:-5]
    counted = None
    if valid is not None:
        prediction, target = (np.where(valid, image, 0) for image in (prediction, target))
        counted = minimum_filter(valid.astype(np.uint8), _WINDOW, mode="mirror")[inner] > 0
    values = []
    for a, b in zip(prediction.astype(np.float64), target.astype(np.float64), strict=True):
        mu_a, mu_b, aa, bb, ab = (
            gaussian_filter(v, _SIGMA, truncate=_TRUNCATE, mode="mirror") for v in (a, b, a * a, b * b, a * b)
        )
        numerator = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
        denominator = (mu_a**2 + mu_b**2 + c1) * (aa - mu_a**2 + bb - mu_b**2 + c2)
        similar = numerator / denominator
        kept = similar[inner] if counted is None else similar[inner][counted]
        values.append(kept.mean() if kept.size else np.nan)
    return np.asarray(values)


def sam(prediction: Array, target: Array) -> float:
    """Mean angle in radians between the spectra (axis 0) of two arrays; a zero spectrum counts as a right angle."""
    a, b = prediction.astype(np.float64), target.astype(np.float64)
    cosine = (a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0) + 1e-12)
    return float(np.arccos(np.clip(cosine, -1, 1)).mean())


def ndvi_mae(prediction: Array, target: Array, red: int, nir: int, floor: float = 0.02) -> float:
    """Mean |NDVI error| of reflectances (bands, H, W), where red + nir of the target exceeds `floor`; NaN if nowhere.

    Below the floor (deep shadow, water) the index is noise over noise. Predictions are clipped to zero first.
    """
    errors = ndvi_errors(prediction, target, red, nir, floor)
    return float(errors.mean()) if errors.size else float("nan")


def ndvi_errors(prediction: Array, target: Array, red: int, nir: int, floor: float = 0.02) -> NDArray[np.float64]:
    """|NDVI error| of the pixels that `ndvi_mae` averages, (n,)."""
    a, b = (np.clip(v.astype(np.float64), 0, None) for v in (prediction, target))
    seen = b[nir] + b[red] > floor
    first, second = ((v[nir] - v[red]) / np.maximum(v[nir] + v[red], 1e-6) for v in (a, b))
    errors: NDArray[np.float64] = np.abs(first - second)[seen]
    return errors
