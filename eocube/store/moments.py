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

    @classmethod
    def of_each(cls, latents: npt.NDArray[Any]) -> list[Moments]:
        """`of` of each of some windows (C, windows, ...), to the bit, in fewer passes."""
        channels, windows = latents.shape[:2]
        values = np.asarray(latents, dtype=np.float64).reshape(channels, windows, -1)
        if values.size == 0 or not np.isfinite(values).all():
            return [cls.of(values[:, k]) for k in range(windows)]
        # Pixel by pixel, as `of` adds them up: its choice of pixels lays them out so.
        values = np.ascontiguousarray(values.reshape(channels * windows, -1).T)
        mean = values.mean(axis=0)
        values -= mean
        m2 = np.square(values, out=values).sum(axis=0)
        means, sums = (v.reshape(channels, windows).T.tolist() for v in (mean, m2))
        return [cls(len(values), tuple(a), tuple(b)) for a, b in zip(means, sums, strict=True)]

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together: Chan, Golub, LeVeque (1979), eq. 2.1."""
        if other.count == 0:
            return self
        return other if self.count == 0 else Moments.merged((self, other))

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """All parts merged in the order given; the last bits depend on that order, so callers sort it.

        Raises:
            ValueError: parts of other numbers of channels.
        """
        count, mean, m2 = 0, np.empty(0), np.empty(0)
        for part in parts:
            if part.count == 0:
                continue
            mean_b, m2_b = np.array(part.mean), np.array(part.m2)
            if count == 0:
                count, mean, m2 = part.count, mean_b, m2_b
                continue
            if len(mean) != len(mean_b):
                raise ValueError(f"moments of {len(mean)} and {len(mean_b)} channels do not merge")
            total, delta = count + part.count, mean_b - mean
            mean = mean + delta * (part.count / total)
            m2 = m2 + m2_b + np.square(delta) * (count * part.count / total)
            count = total
        return cls(count, tuple(mean.tolist()), tuple(m2.tolist()))

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
