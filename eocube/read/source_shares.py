"""Counts how much of a window's core its sources cover, pixel by pixel, and how much of that is cloud or shadow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.ground.grid import Lattice
from eocube.read.coverage import UNKNOWN_PERCENT
from eocube.sensors.radiometry import SCL_CLOUD, SCL_NODATA, SCL_SHADOW


def missing_pixels(lattice: Lattice, seen: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    """Pixels of the core (core_px, core_px) that some band lacks, coarser ones by their own sampling; or None."""
    there = np.ones((lattice.core_px,) * 2, dtype=np.bool_)
    for sampling, valid in seen.items():
        if not valid.all():
            there &= _on_core(lattice, np.asarray(valid.all(axis=0)), sampling)
    return None if there.all() else ~there


def _on_core(lattice: Lattice, values: NDArray[Any], sampling: int) -> NDArray[Any]:
    """What a group (H, W) of this sampling says of the core's pixels (core_px, core_px), each under its sample."""
    times = sampling // lattice.metres
    start = lattice.halo_px + lattice.margin(sampling) // lattice.metres
    core = slice(start, start + lattice.core_px)
    return np.repeat(np.repeat(values, times, axis=0), times, axis=1)[core, core]


def valid_share(lattice: Lattice, seen: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Share of valid samples, all bands together, in each latent pixel of the core: (core, core), 0..1."""
    total = np.zeros((lattice.core, lattice.core), dtype=np.int64)
    for sampling, valid in seen.items():
        if valid.all():
            total += len(valid) * lattice.stride**2
            continue
        fine = _on_core(lattice, valid.sum(axis=0, dtype=np.int64), sampling)
        total += fine.reshape(lattice.core, lattice.stride, lattice.core, lattice.stride).sum(axis=(1, 3))
    return total / (sum(len(valid) for valid in seen.values()) * lattice.stride**2)


def as_classes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A mask's numbers as classes: those of another type that no class has are valid, and neither cloud nor shadow."""
    if values.dtype == np.uint8:
        return values
    known = np.isin(values, (SCL_NODATA, SCL_SHADOW, *SCL_CLOUD))
    return np.where(known, values, _OTHER).astype(np.uint8)


def class_counts(classes: NDArray[np.uint8], height: int, width: int) -> NDArray[np.int64]:
    """How many samples of a mask are valid, cloud and cloud shadow in each of height x width latent pixels.

    `classes` (height * n, width * n) -> (3, height, width).
    """
    rows = _BITS[classes].reshape(height, -1, classes.shape[1]).sum(axis=1)
    packed = rows.reshape(height, width, -1).sum(axis=2)
    return np.stack([(packed >> shift) & _FIELD for shift in (0, _WIDTH, 2 * _WIDTH)]).astype(np.int64)


def cloud_cells(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Percent of cloud and of cloud shadow among the valid samples in each latent pixel, by `class_counts`.

    (2, height, width), `UNKNOWN_PERCENT` where no sample is valid.
    """
    valid = counts[0]
    share = counts[1:] / np.maximum(valid, 1)
    return np.asarray(np.where(valid > 0, percent(share), UNKNOWN_PERCENT), dtype=np.uint8)


# A sample's class as what is counted of it, each count in bits of its own: as many samples as a latent pixel may have.
_WIDTH = 21
_FIELD = np.uint64(2**_WIDTH - 1)
_BITS = np.zeros(256, np.uint64)
_BITS += np.arange(256) != SCL_NODATA
_BITS[list(SCL_CLOUD)] += np.uint64(1 << _WIDTH)
_OTHER = 255
_BITS[SCL_SHADOW] += np.uint64(1 << 2 * _WIDTH)


def percent(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Shares 0..1 as whole percents; 0 only for exactly none, 100 only for exactly all."""
    whole = np.rint(share * 100)
    whole = np.where((share > 0) & (whole == 0), 1, whole)
    return np.asarray(np.where((share < 1) & (whole == 100), 99, whole), dtype=np.uint8)
