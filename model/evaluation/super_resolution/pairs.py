"""Says what a pair is to the evaluation, and which of its pixels count: those that the truth has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.sensors import Floats

TRAIN = "train"


class PairLike(Protocol):
    """Low and high resolution of one ground: `lr` (C, h, w) and `hr` (C, f h, f w) in reflectance, NaN where there is
    nothing; `transform` (a, b, c, d, e, f) of `hr` as affine has it."""

    @property
    def id(self) -> str: ...
    @property
    def lr(self) -> Floats: ...
    @property
    def hr(self) -> Floats: ...
    @property
    def bands(self) -> Sequence[str]: ...
    @property
    def crs(self) -> int | None: ...
    @property
    def transform(self) -> Sequence[float] | None: ...
    @property
    def place(self) -> str: ...
    @property
    def split(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Case:
    """One pair as every method gets it: `lr` finite everywhere, `hr` the truth with its NaN.

    `lr_latents` (z, h/8, w/8), `hr_latents`, `lr_up_latents` and `lr_sharp_latents` (of the input on the fine grid, by
    bicubic, and put right by the MTF) are what a store has of it, None without one. `number` seeds what is drawn.
    """

    pair: PairLike
    number: int
    lr: Floats
    hr: Floats
    lr_latents: Floats | None = None
    hr_latents: Floats | None = None
    lr_up_latents: Floats | None = None
    lr_sharp_latents: Floats | None = None

    @classmethod
    def of(cls, pair: PairLike, number: int, latents: Mapping[str, Floats] | None = None) -> Case:
        """ValueError, in one line, for a truth that is no whole multiple of the input, or of other bands."""
        lr, hr = np.asarray(pair.lr, np.float32), np.asarray(pair.hr, np.float32)
        factor = scale_of(pair)
        if factor < 2:
            raise ValueError(f"pair {pair.id}: the truth has the input's own size: nothing is super-resolved")
        if not len(lr) == len(hr) == len(pair.bands):
            raise ValueError(
                f"pair {pair.id}: {len(lr)} bands below, {len(hr)} above and {len(pair.bands)} names: all must agree"
            )
        kept = latents or {}
        return cls(pair, number, filled(lr), hr, kept.get("lr"), kept.get("hr"), kept.get("lr_up"),
                   kept.get("lr_sharp"))  # fmt: skip

    @property
    def factor(self) -> int:
        """Pixels of the truth a pixel of the input and side."""
        factor: int = self.hr.shape[-1] // self.lr.shape[-1]
        return factor

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(H, W): the truth has every band there."""
        return np.asarray(np.isfinite(self.hr).all(0))

    @property
    def valid_below(self) -> NDArray[np.bool_]:
        """(h, w): the input has every band there, and the truth all of the pixel's ground."""
        factor = self.factor
        height, width = self.lr.shape[1:]
        whole = self.valid.reshape(height, factor, width, factor).all((1, 3))
        return np.asarray(whole & np.isfinite(np.asarray(self.pair.lr)).all(0))


def scale_of(pair: PairLike) -> int:
    """Truth over input, a side; ValueError where it is no whole number, or not the same in both directions."""
    (low, wide), (high, long) = pair.lr.shape[-2:], pair.hr.shape[-2:]
    if high % low or long % wide or high // low != long // wide:
        raise ValueError(f"pair {pair.id}: {high}x{long} pixels are no whole multiple of {low}x{wide}")
    factor: int = high // low
    return factor


def filled(image: Floats) -> Floats:
    """(C, H, W) with the mean of what is valid in each band's stead where there is nothing; 0 in a band of nothing."""
    if np.isfinite(image).all():
        return image
    known = np.isfinite(image)
    count = known.sum((1, 2), keepdims=True)
    mean = np.where(known, image, 0).sum((1, 2), keepdims=True, dtype=np.float64) / np.maximum(count, 1)
    return np.where(known, image, mean).astype(np.float32)
