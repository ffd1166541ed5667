"""Measures the statistics of a sensor that has none: mean and deviation per band, streamed, mergeable, said."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.pixels import SensorLike
from model.sensors import Floats, TrainedSensor
from model.training.sources.patch import BandError, Feed, PatchLike

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of each band, over finite pixels, in float64."""

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, data: Floats) -> Moments:
        """The moments of one array (C, ...)."""
        flat = data.reshape(len(data), -1).astype(np.float64)
        finite = np.isfinite(flat)
        count = finite.sum(1).astype(np.float64)
        mean = np.where(finite, flat, 0).sum(1) / np.maximum(count, 1)
        squares = np.where(finite, flat - mean[:, None], 0.0)
        return cls(count, mean, (squares**2).sum(1))

    def merged(self, other: Moments) -> Moments:
        """Both together; the pairwise update of Chan, Golub and LeVeque (1979)."""
        count = self.count + other.count
        safe = np.maximum(count, 1)
        step = other.mean - self.mean
        return Moments(
            count,
            self.mean + step * other.count / safe,
            self.squares + other.squares + step**2 * self.count * other.count / safe,
        )

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each band, of the pixels as the whole population."""
        return np.asarray(np.sqrt(self.squares / np.maximum(self.count, 1)))


def measure(patches: Iterable[PatchLike], bands: Sequence[str]) -> Moments:
    """Moments of the named bands over the patches.

    Raises:
        BandError: a patch that lacks one of the bands.
        ValueError: no patch with a finite pixel, or a band that never varies.
    """
    total: Moments | None = None
    for patch in patches:
        lacking = [b for b in bands if b not in patch.bands]
        if lacking:
            raise BandError(f"{patch.name} has no band {', '.join(lacking)}: fewer than the sensor")
        found = Moments.of(patch.data[[patch.bands.index(b) for b in bands]])
        total = found if total is None else total.merged(found)
    if total is None or not (total.count > 0).all():
        raise ValueError("no data to compute statistics from")
    flat = [b for b, s in zip(bands, total.std, strict=True) if not s > 0]
    if flat:
        raise ValueError(f"band {', '.join(flat)} never varies in the data: its statistics would divide by 0")
    return total


def some(feed: Feed, sensor: str, count: int) -> Iterator[PatchLike]:
    """`count` patches of a feed, which is put back to where it was."""
    state = feed.state_dict()
    try:
        for _ in range(count):
            yield feed.next(sensor)
    finally:
        feed.load_state_dict(state)


def with_statistics(sensor: TrainedSensor, patches: Iterable[PatchLike]) -> TrainedSensor:
    """The sensor with mean and std computed from the patches, which is logged band by band."""
    moments = measure(patches, sensor.bands)
    mean, std = (tuple(float(v) for v in values) for values in (moments.mean, moments.std))
    said = ", ".join(f"{b} {m:.6g} / {s:.6g}" for b, m, s in zip(sensor.bands, mean, std, strict=True))
    pixels = int(moments.count.min())
    log.info(
        "%s has no statistics: mean / std computed from %d pixels: %s (%s)", sensor.name, pixels, said, sensor.unit
    )
    return replace(sensor, mean=mean, std=std)


def trained_sensor(sensor: SensorLike, unit: str) -> TrainedSensor:
    """A sensor as the pixel pipeline knows it as one to train: same bands, wavelengths and statistics.

    `unit` is that of the statistics: "reflectance*1e4", "dB" or "dn8".
    """
    bands: Sequence[Any] = sensor.bands
    return TrainedSensor(
        sensor.name,
        unit,
        tuple(b.name for b in bands),
        tuple(b.wavelength for b in bands),
        tuple(b.mean for b in bands),
        tuple(b.std for b in bands),
        tuple(b.gsd for b in bands),
    )
