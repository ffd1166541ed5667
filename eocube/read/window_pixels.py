"""Holds what is read of a window: its pixels, what masks say of its core, how scenes fill gaps, and what is left of
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.ground.grid import Lattice
from eocube.raster.warp import mirror_gaps
from eocube.read.coverage import UNKNOWN_PERCENT
from eocube.read.source_shares import missing_pixels, percent, valid_share

UNKNOWN = UNKNOWN_PERCENT
"""`cloud_percent` (and `valid_percent` of a mask) where no mask says it."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Where a window lies in what was read of many: its groups are these parts of `arrays`, and nothing else.

    `arrays` maps a sampling to (C_g, H, W); the same object for all windows of the same arrays. One window begins
    `steps` pixels of that sampling after the one before it, and this one is the `row`th from the top and the `col`th
    from the left.
    """

    arrays: Mapping[int, NDArray[Any]]
    steps: Mapping[int, int]
    row: int
    col: int


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
    `cut` says what the groups are views of; None where they are arrays of their own.
    """

    groups: Mapping[int, NDArray[Any]]
    valid: NDArray[np.uint8]
    valid_percent: int
    cloud_percent: int
    scene_ids: tuple[str, ...]
    bytes_read: int
    missing: NDArray[np.bool_] | None = None
    clouds: NDArray[np.uint8] | None = None
    cut: Cut | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """What the masks say of a core: percents, the cloud in each latent pixel (None: no mask says it), bytes read."""

    valid_percent: int = UNKNOWN
    cloud_percent: int = UNKNOWN
    clouds: NDArray[np.uint8] | None = None
    bytes_read: int = 0

    @classmethod
    def of_counts(cls, counts: NDArray[np.int64], samples: int, bytes_read: int, clouds: NDArray[np.uint8]) -> Mask:
        """Of a core's `class_counts` (3, core, core) among so many samples, and its `cloud_cells`."""
        there, cloudy = int(counts[0].sum()), int(counts[1].sum())
        nodata = 1.0 - there / samples if there else 1.0
        valid = int(percent(np.array([1.0 - nodata]))[0])
        return cls(valid, round(100 * (cloudy / there)) if valid else UNKNOWN, clouds, bytes_read)


def fill(pixels: NDArray[Any], valid: NDArray[np.bool_], moved: NDArray[Any], there: NDArray[np.bool_]) -> bool:
    """Fill what is not yet valid of a band (H, W) in place; whether there was anything."""
    new = there & ~valid if valid.any() else there
    if new.all():
        pixels[...], valid[...] = moved, True
        return True
    np.copyto(pixels, moved, where=new)
    valid |= new
    return bool(new.any())


def settled(
    lattice: Lattice,
    groups: Mapping[int, NDArray[Any]],
    seen: Mapping[int, NDArray[np.bool_]],
    mask: Mask,
    scene_ids: tuple[str, ...],
    bytes_read: int,
) -> WindowPixels:
    """A window of which some pixels may lack: what is missing is mirrored, in place, from what is there.

    Without any pixel in some band it counts as empty.
    """
    if not all(band.any() for valid in seen.values() for band in valid):
        empty = np.zeros((lattice.core, lattice.core), dtype=np.uint8)
        return WindowPixels(groups, empty, 0, UNKNOWN, scene_ids, bytes_read)
    if all(valid.all() for valid in seen.values()):
        return without_gaps(lattice, groups, mask, scene_ids, bytes_read)
    share, lacking = valid_share(lattice, seen), missing_pixels(lattice, seen)
    for sampling, pixels in groups.items():
        mirror_gaps(pixels, seen[sampling])
    whole = int(percent(share.mean(keepdims=True))[0, 0])
    return WindowPixels(groups, percent(share), whole, mask.cloud_percent, scene_ids, bytes_read, lacking, mask.clouds)


def without_gaps(
    lattice: Lattice,
    groups: Mapping[int, NDArray[Any]],
    mask: Mask,
    scene_ids: tuple[str, ...],
    bytes_read: int,
    cut: Cut | None = None,
) -> WindowPixels:
    """A window all of whose pixels are there."""
    full = np.full((lattice.core, lattice.core), 100, dtype=np.uint8)
    return WindowPixels(groups, full, 100, mask.cloud_percent, scene_ids, bytes_read, None, mask.clouds, cut)
