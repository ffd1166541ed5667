"""Pools figures of a set of tiles, as the paper does or over all, with bootstrap intervals over places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import metrics
from model.sensors import Floats

Doubles = NDArray[np.float64]
LEVEL = 95.0
METRICS = ("rmse", "psnr", "ssim", "sam", "ndvi_mae")
# Weights of this many tiles are held at once: 32 MB.
_CELLS = 2**22


@dataclass(frozen=True, slots=True)
class Sums:
    """What one tile adds to any pooled figure: of C bands, over `pixels` pixels.

    `square` is (C,) the sum of squared errors, `ssim` (C,) its mean, `angle` its mean spectral angle in radians,
    `ndvi` the sum of |NDVI errors| over `ndvi_pixels` pixels. `span` is the data range of PSNR and SSIM.
    """

    ground: str
    pixels: int
    span: float
    square: Doubles
    ssim: Doubles
    angle: float
    ndvi: float = 0.0
    ndvi_pixels: int = 0


def measure(
    prediction: Floats, target: Floats, span: float, ground: str, red_nir: tuple[int, int] | None = None, *,
    borders: bool = False, similarity: bool = True,
) -> Sums:  # fmt: skip
    """Compare two (C, H, W) arrays in one space; `red_nir` only where they are reflectances.

    `borders`: SSIM with them, as published, or without (`model.metrics.ssim_bands`). Without `similarity` it is NaN: it
    takes longer than all the rest.
    """
    square = ((prediction.astype(np.float64) - target) ** 2).sum(axis=(1, 2))
    errors = np.empty(0) if red_nir is None else metrics.ndvi_errors(prediction, target, *red_nir)
    pixels = target.shape[1] * target.shape[2]
    none = np.full(len(target), np.nan)
    ssim = metrics.ssim_bands(prediction, target, span, borders=borders) if similarity else none
    angle = metrics.sam(prediction, target)
    return Sums(ground, pixels, span, square, ssim, angle, float(errors.sum()), len(errors))


def batch_spans(targets: Sequence[Floats], batch: int) -> list[float]:
    """The data range of each tile's batch: max - min of `batch` tiles in turn, as the published evaluation takes it."""
    spans: list[float] = []
    for start in range(0, len(targets), batch):
        part = targets[start : start + batch]
        spans += [float(max(t.max() for t in part) - min(t.min() for t in part))] * len(part)
    return spans


def pooled(sums: Sequence[Sums], weights: Doubles, batch: int | None = None) -> dict[str, Doubles]:
    """Figures of R weightings of T tiles at once: metric -> (R,), per-band ones (R, C) under "rmse_bands" and so on.

    Args:
        sums: the tiles.
        weights: (R, T) how often each tile counts.
        batch: figures are formed over so many tiles at a time and then averaged, as published; None: over all tiles.
    """
    size = batch or len(sums)
    parts = [_pooled(sums[k : k + size], weights[:, k : k + size]) for k in range(0, len(sums), size)]
    with np.errstate(invalid="ignore"):
        return {key: _mean([part[key] for part in parts]) for key in parts[0]}


def _mean(values: Sequence[Doubles]) -> Doubles:
    """Mean over batches, those of no weight left out."""
    stack = np.stack(values)
    known = ~np.isnan(stack)
    mean: Doubles = np.where(known, stack, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return mean


def _pooled(sums: Sequence[Sums], weights: Doubles) -> dict[str, Doubles]:
    pixels = np.array([s.pixels for s in sums], np.float64)
    spans = {s.span for s in sums}
    if len(spans) != 1:
        raise ValueError(f"tiles of one batch have data ranges {sorted(spans)}: their PSNR cannot be pooled")
    span = spans.pop()
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights @ pixels
        share = weights * pixels / total[:, None]
        mse = weights @ np.stack([s.square for s in sums]) / total[:, None]
        ssim = share @ np.stack([s.ssim for s in sums])
        out = {
            "rmse": np.sqrt(mse.mean(1)),
            "psnr": 10 * np.log10(span**2 / mse.mean(1)),
            "ssim": ssim.mean(1),
            "sam": share @ np.array([s.angle for s in sums]),
            "rmse_bands": np.sqrt(mse),
            "psnr_bands": 10 * np.log10(span**2 / mse),
            "ssim_bands": ssim,
        }
        if any(s.ndvi_pixels for s in sums):
            out["ndvi_mae"] = weights @ [s.ndvi for s in sums] / (weights @ [float(s.ndvi_pixels) for s in sums])
    return out


def resampled(grounds: Sequence[str], resamples: int, seed: int) -> Iterator[Doubles]:
    """(r, tiles) weights, `resamples` rows in all: places drawn with replacement, all tiles of a place together.

    They come a few rows at a time, so that memory does not grow with the tiles. Nothing comes of a single place.
    """
    places = sorted(set(grounds))
    if len(places) < 2:
        return
    rng = np.random.default_rng(seed)
    chance, column = np.full(len(places), 1 / len(places)), {place: k for k, place in enumerate(places)}
    columns = [column[ground] for ground in grounds]
    rows = max(1, _CELLS // len(grounds))
    for start in range(0, resamples, rows):
        counts = rng.multinomial(len(places), chance, size=min(rows, resamples - start))
        yield counts[:, columns].astype(np.float64)


def figures(
    sums: Sequence[Sums], *, bands: Sequence[str] = (), batch: int | None = None, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Each metric's value with the bounds of its 95 % percentile interval over places (None where there is one place).

    {"rmse": {"value", "low", "high"}, ..., "bands": {band: {"rmse": ..., "psnr": ..., "ssim": ...}}}
    """
    values = pooled(sums, np.ones((1, len(sums))), batch)
    parts = [
        {key: part[key] for key in part if key in METRICS}
        for part in (pooled(sums, weights, batch) for weights in resampled([s.ground for s in sums], resamples, seed))
    ]
    spread = {key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else ())}
    out: dict[str, Any] = {}
    for key in METRICS:
        if key in values:
            out[key] = {"value": float(values[key][0]), **_bounds(spread.get(key))}
    if bands:
        out["bands"] = {
            band: {key: float(values[f"{key}_bands"][0, k]) for key in ("rmse", "psnr", "ssim")}
            for k, band in enumerate(bands)
        }
    return out


def _bounds(values: Doubles | None) -> dict[str, float | None]:
    if values is None or not np.isfinite(values).any():
        return {"low": None, "high": None}
    low, high = np.percentile(values[np.isfinite(values)], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}
