"""Breaks errors down by land cover, pixel by pixel, with the classes of TerraMesh's LULC.

Source: TerraMesh's LULC is Esri's 10 m land cover (Impact Observatory), whose nine classes are renumbered without gaps
in Esri's own order; TerraMind's tokenizer takes them as ten, 0 to 9. What is no class here is named by its number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES = (
    "no data", "water", "trees", "flooded vegetation", "crops", "built area", "bare ground", "snow and ice", "clouds",
    "rangeland",
)  # fmt: skip
UNLABELLED = -1
"""Label of a pixel whose class is not known, in none of the figures."""
_CODES = 256


def class_name(code: int) -> str:
    """Number and name, for example "2 trees"."""
    return f"{code} {CLASSES[code] if code < len(CLASSES) else 'unknown'}"


@dataclass(slots=True)
class ClassSums:
    """Squared errors, summed over bands, and pixels of each class."""

    bands: int
    square: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_CODES))
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_CODES, np.int64))

    def add(self, prediction: Tensor, target: Tensor, labels: Tensor) -> None:
        """Count a batch: (B, C, H, W) in physical units and labels (B, H, W), 0 to 255 or `UNLABELLED`."""
        known = labels != UNLABELLED
        codes = labels[known].long()
        errors = (prediction.double() - target.double()).square().sum(1)[known]
        self.square += torch.bincount(codes, errors, minlength=_CODES).cpu().numpy()
        self.pixels += torch.bincount(codes, minlength=_CODES).cpu().numpy()

    def counts(self) -> dict[str, int]:
        """Class -> its pixels, of those that occur."""
        return {class_name(code): int(self.pixels[code]) for code in self._occurring()}

    def figures(self, span: float) -> dict[str, Any]:
        """Class -> RMSE and PSNR by the range `span`, pooled over its pixels and all bands; without intervals."""
        out = {}
        for code in self._occurring():
            mse = self.square[code] / (self.pixels[code] * self.bands)
            with np.errstate(divide="ignore"):
                found = {"rmse": float(np.sqrt(mse)), "psnr": float(10 * np.log10(span**2 / mse))}
            out[class_name(code)] = {key: {"value": value, "low": None, "high": None} for key, value in found.items()}
        return out

    def _occurring(self) -> list[int]:
        return [int(code) for code in np.flatnonzero(self.pixels)]
