"""Holds what a step of training on pixels takes: patches of one sensor's bands, or of some of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.sensors import S2L2A, TrainedSensor

# Sets of bands that archives and papers use: 10 and 20 m, VIS to SWIR at 10 m, no SWIR, all but B08, NDVI's two.
COMMON_SUBSETS = (
    ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    ("B02", "B03", "B04", "B08", "B11", "B12"),
    ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A"),
    ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B09", "B11", "B12"),
    ("B04", "B08"),
)


def random_subset(rng: np.random.Generator) -> list[int]:
    """Positions of some of S2L2A's bands, in order: a common choice two times in five, else any from 1 to 11."""
    if rng.random() < 0.4:
        return S2L2A.index(COMMON_SUBSETS[rng.integers(len(COMMON_SUBSETS))])
    return sorted(int(i) for i in rng.choice(12, size=int(rng.integers(1, 12)), replace=False))


@dataclass(frozen=True, slots=True)
class Batch:
    """`x` (B, C, H, W) z-scores of `sensor`'s bands."""

    x: Tensor
    sensor: TrainedSensor

    def __len__(self) -> int:
        return len(self.x)

    def pinned(self) -> Batch:
        """The same in pinned memory."""
        return replace(self, x=self.x.pin_memory())

    @property
    def wavelengths(self) -> Tensor:
        """(C,) micrometres."""
        return torch.tensor(self.sensor.wavelengths)
