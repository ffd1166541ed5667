"""Gives the demo landscape its seeded randomness: fractal fields, numbers per cell, small image helpers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


def stream(seed: int, *path: int) -> np.random.Generator:
    """An independent generator for one purpose: changing one part of the scene leaves the others as they were."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *path])))


def fractal(
    rng: np.random.Generator, shape: tuple[int, int], largest: float, exponent: float, smallest: float = 0
) -> F32:
    """A Gaussian random field of zero mean and unit variance.

    shape: (H, W). largest, smallest: wavelengths in pixels beyond which power is flat, below which it is cut.
    exponent: the amplitude falls as frequency ** -exponent. Made on a larger torus and cropped, so it does not wrap.
    """
    padded = tuple(scipy.fft.next_fast_len(int(n + min(largest, 0.5 * n)), real=True) for n in shape)
    noise = rng.standard_normal(padded, dtype=np.float32)
    half = padded[0] // 2 + 1  # negative frequencies have the gain of positive ones: a power each for half the rows
    k2 = scipy.fft.fftfreq(padded[0])[:half, None] ** 2 + scipy.fft.rfftfreq(padded[1])[None] ** 2
    gain = (k2 + 1.0 / largest**2) ** (-exponent / 2)
    if smallest:
        gain *= np.exp(-k2 * smallest**2)
    gain[0, 0] = 0
    spectrum = scipy.fft.rfft2(noise)
    spectrum[:half] *= gain.astype(np.float32)
    spectrum[half:] *= gain[padded[0] - half : 0 : -1].astype(np.float32)
    field = scipy.fft.irfft2(spectrum, s=padded, overwrite_x=True)[: shape[0], : shape[1]]
    return np.asarray((field - field.mean()) / (field.std() + 1e-12), dtype=np.float32)


def cell_random(seed: int, *ids: NDArray[np.int32]) -> F32:
    """A number in [0, 1) for every combination of integer ids, the same wherever it is asked for.

    The mixing steps are those of the public-domain `lowbias32` integer hash.
    """
    state = np.full(ids[0].shape, (seed * 0x9E3779B1 + 0x85EBCA6B) & 0xFFFFFFFF, dtype=np.uint32)
    for part in ids:
        state = (state ^ part.astype(np.uint32)) * np.uint32(0x9E3779B1)
        state ^= state >> np.uint32(16)
        state *= np.uint32(0x7FEB352D)
        state ^= state >> np.uint32(15)
        state *= np.uint32(0x846CA68B)
        state ^= state >> np.uint32(16)
    return (state >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


@dataclass(frozen=True, slots=True)
class Draws:
    """A family of independent cell_random fields of one seed, told apart by a small number."""

    seed: int
    first: int = 0

    def __call__(self, which: int, *ids: NDArray[np.int32]) -> F32:
        """Numbers in [0, 1), one for each combination of ids."""
        return cell_random(self.seed * 64 + self.first + which, *ids)


def smoothstep(low: float, high: float, value: NDArray[np.floating[Any]]) -> F32:
    """0 below low, 1 above high, and a cubic between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def shifted(image: NDArray[np.generic], down: int, right: int) -> NDArray[np.generic]:
    """The image moved by whole pixels; what enters at the edge repeats the edge."""
    rows = np.clip(np.arange(image.shape[0]) - down, 0, image.shape[0] - 1)
    cols = np.clip(np.arange(image.shape[1]) - right, 0, image.shape[1] - 1)
    return image[rows[:, None], cols[None]]


def block_mean(image: NDArray[np.generic], factor: int) -> F32:
    """The mean over factor x factor blocks; (H, W) -> (H // factor, W // factor)."""
    h, w = image.shape[0] // factor, image.shape[1] // factor
    cut = image[: h * factor, : w * factor].astype(np.float32, copy=False)
    return np.asarray(cut.reshape(h, factor, w, factor).mean(axis=(1, 3)), dtype=np.float32)
