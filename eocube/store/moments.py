"""Computes per-channel moments that merge without the data: count, mean and sum of squared deviations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Moments:
    """Count of latent pixels, and per channel their mean and `m2`, the sum of squared deviations from it.

    `mean` and `m2` have one value a channel; both are empty when `count` is 0 and the channels are not known.
    """

    count: int
    mean: tuple[float, ...]
    m2: tuple[float, ...]

    @classmethod
    def of(cls, latents: npt.ArrayLike) -> Moments:
        """Moments of latents (C, ...) in float64; a pixel not finite in some channel is left out."""
        values = np.asarray(latents, dtype=np.float64)
        values = values.reshape(values.shape[0], -1)
        values = values[:, np.isfinite(values).all(axis=0)]
        count = values.shape[1]
        if count == 0:
            return cls(0, (0.0,) * values.shape[0], (0.0,) * values.shape[0])
        mean = values.mean(axis=1)
        m2 = np.square(values - mean[:, None]).sum(axis=1)
        return cls(count, tuple(mean.tolist()), tuple(m2.tolist()))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together: Chan, Golub, LeVeque (1979), eq. 2.1."""
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        if len(self.mean) != len(other.mean):
            raise ValueError(f"moments of {len(self.mean)} and {len(other.mean)} channels do not merge")
        count = self.count + other.count
        mean_a, mean_b = np.array(self.mean), np.array(other.mean)
        delta = mean_b - mean_a
        mean = mean_a + delta * (other.count / count)
        m2 = np.array(self.m2) + np.array(other.m2) + np.square(delta) * (self.count * other.count / count)
        return Moments(count, tuple(mean.tolist()), tuple(m2.tolist()))

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """All parts merged in the order given; the last bits depend on that order, so callers sort it."""
        total = cls(0, (), ())
        for part in parts:
            total = total.merge(part)
        return total

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation per channel (divisor `count`)."""
        return tuple(float(np.sqrt(v / self.count)) if self.count else 0.0 for v in self.m2)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"count": self.count, "mean": list(self.mean), "m2": list(self.m2)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Moments:
        """Inverse of `to_dict`; unknown keys are left alone."""
        return cls(int(data["count"]), tuple(map(float, data["mean"])), tuple(map(float, data["m2"])))
