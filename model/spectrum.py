"""Measures how much of an image lies above a coarser image's Nyquist frequency, and how much of that is the truth's."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model.sensors import Floats


def above_nyquist(result: Floats, truth: Floats, factor: int) -> tuple[float, float, float]:
    """Of two finite images (C, H, W): the shares of their energy above 1 / (2 factor) cycles a pixel (`share_above`),
    the result's and the truth's, and the correlation of both above it, NaN where either has nothing there.
    """
    shape = (truth.shape[-2], truth.shape[-1])
    a, b = _spectrum(result), _spectrum(truth)
    high = _radius(*shape) > 0.5 / factor
    # the columns of a real transform stand for two each, but for the first and, of an even width, the last
    twice = np.full(a.shape[-1], 2.0)
    twice[0] = 1.0
    if shape[1] % 2 == 0:
        twice[-1] = 1.0
    weight = high * twice
    powers = [np.abs(s) ** 2 for s in (a, b)]
    energies = [(weight * power).sum() for power in powers]
    cross = (weight * (a * b.conj()).real).sum()
    detail = cross / np.sqrt(energies[0] * energies[1]) if min(energies) > 0 else float("nan")
    return share_above(powers[0], factor, shape), share_above(powers[1], factor, shape), float(detail)


def share_above(power: NDArray[np.float64], factor: int, shape: tuple[int, int]) -> float:
    """Share of the radially averaged power (C, H, W // 2 + 1) that lies above 1 / (2 factor) cycles a pixel.

    Each ring of one frequency step counts by its mean, rings up to 1/2 cycle, the mean itself left out; the mean over
    bands. 0 for an image without any variation.
    """
    rings = _rings(*shape)
    flat = rings.reshape(-1)
    counts = np.bincount(flat)
    steps = min(shape)
    frequency = np.arange(len(counts)) / steps
    counted = (frequency > 0) & (frequency <= 0.5) & (counts > 0)
    high = counted & (frequency > 0.5 / factor)
    shares = []
    for band in power:
        mean = np.bincount(flat, band.reshape(-1)) / np.maximum(counts, 1)
        total = mean[counted].sum()
        shares.append(mean[high].sum() / total if total > 0 else 0.0)
    return float(np.mean(shares))


def _spectrum(image: Floats) -> NDArray[np.complex128]:
    """Of each band without its mean, under a Hann window: the borders' jump is not detail."""
    height, width = image.shape[-2:]
    window = np.outer(_hann(height), _hann(width))
    centred = image.astype(np.float64) - image.mean((1, 2), keepdims=True, dtype=np.float64)
    found: NDArray[np.complex128] = np.fft.rfft2(centred * window)
    return found


def _hann(size: int) -> NDArray[np.float64]:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size))


@lru_cache(maxsize=8)
def _radius(height: int, width: int) -> NDArray[np.float64]:
    """(H, W // 2 + 1) cycles a pixel."""
    return np.asarray(np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]))


@lru_cache(maxsize=8)
def _rings(height: int, width: int) -> NDArray[np.int64]:
    return np.asarray(np.rint(_radius(height, width) * min(height, width)), np.int64)
