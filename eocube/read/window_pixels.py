"""Holds what is read of a window: its pixels, what masks say of its core, and how one scene fills what another left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.read.coverage import UNKNOWN_PERCENT

UNKNOWN = UNKNOWN_PERCENT
"""`cloud_percent` (and `valid_percent` of a mask) where no mask says it."""


@dataclass(frozen=True, slots=True)
class WindowPixels:
    """The pixels of one window.

    `groups` maps a sampling in metres to (C_g, H_g, W_g) in the sensor's travelling form, bands in the sensor's order;
    when any pixel of the core is valid, all of them are filled. `valid` (core, core) uint8 is the percentage of valid
    source samples, all bands taken together, in each latent pixel of the core; `valid_percent` the same for the whole
    core. 0 is said only where there is none and 100 only where all are valid. `cloud_percent` is that of the core's
    valid part, 255 where no mask says it. `scene_ids` are the scenes that gave pixels, in mosaic order. `bytes_read`
    counts the bytes of the source arrays as they were read (decoded, at the source's sampling), not those that
    travelled compressed. `missing` is set on the pixels of the core, `core_px` a side, that some band lacks, a coarser
    band at its own sampling; None where none does. `clouds` (2, core, core) uint8 is the percentage of cloud and of
    cloud shadow among the mask's valid samples in each latent pixel, 255 where it has none; None where no mask says it.
    """

    groups: Mapping[int, NDArray[Any]]
    valid: NDArray[np.uint8]
    valid_percent: int
    cloud_percent: int
    scene_ids: tuple[str, ...]
    bytes_read: int
    missing: NDArray[np.bool_] | None = None
    clouds: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """What the masks say of a core: percents, the cloud in each latent pixel (None: no mask says it), bytes read."""

    valid_percent: int = UNKNOWN
    cloud_percent: int = UNKNOWN
    clouds: NDArray[np.uint8] | None = None
    bytes_read: int = 0


def fill(pixels: NDArray[Any], valid: NDArray[np.bool_], moved: NDArray[Any], there: NDArray[np.bool_]) -> bool:
    """Fill what is not yet valid of a band (H, W) in place; whether there was anything."""
    new = there & ~valid if valid.any() else there
    if new.all():
        pixels[...], valid[...] = moved, True
        return True
    np.copyto(pixels, moved, where=new)
    valid |= new
    return bool(new.any())
