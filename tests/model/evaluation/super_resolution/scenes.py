"""Makes pairs with known answers: smooth ground with some texture, degraded by Wald's protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from model.sensors import SENSORS, Floats
from model.wald import degrade, mtf_of

BANDS = SENSORS["RGBN"].bands
MTF = mtf_of(BANDS)


@dataclass(frozen=True, slots=True)
class Made:
    """A pair as `PairLike` wants it."""

    id: str
    lr: Floats
    hr: Floats
    bands: tuple[str, ...]
    crs: int | None
    transform: tuple[float, ...] | None
    place: str
    split: str | None


def pair(seed: int, side: int = 64, split: str = "val", place: str = "", factor: int = 4) -> Made:
    """Ground with energy at every frequency, different in each band."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    fall = 1 / np.maximum(radius, 1 / side) ** 1.2
    common, *own = (np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * fall).real for _ in range(5))
    bands = np.stack([common + 0.4 * part for part in own])
    bands = (bands - bands.mean()) / bands.std()
    hr = (np.array([0.10, 0.09, 0.07, 0.30])[:, None, None] * (1 + 0.25 * bands)).astype(np.float32)
    transform = (10.0, 0.0, 500_000.0 + 1000 * seed, 0.0, -10.0, 5_000_000.0)
    return Made(f"p{seed}", below(hr, factor), hr, BANDS, 32633, transform, place or f"place{seed}", split)


def below(hr: Floats, factor: int = 4) -> Floats:
    """The truth, degraded."""
    return np.asarray(degrade(torch.from_numpy(hr)[None], MTF, factor)[0].numpy())


def with_hole(made: Made, rows: slice, columns: slice) -> Made:
    """The truth with a hole, the input as it was."""
    hr = made.hr.copy()
    hr[:, rows, columns] = np.nan
    return replace(made, hr=hr)
