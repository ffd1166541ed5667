"""Defines a pair of pixels and what is known of it beforehand; orders and splits what a store is to hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import pyproj
from numpy.typing import NDArray

from eocube.cube.window_index import Ground
from eocube.errors import InputError

Floats = NDArray[np.float32]
Transform = tuple[float, float, float, float, float, float]
SPLITS = ("train", "val", "test")
NOWHERE: Transform = (math.nan,) * 6
_DEGREE = 111_195.0  # metres of one, at the equator
FLIPS = 8
"""Symmetries of a square: `flipped`."""


@dataclass(frozen=True, slots=True)
class PairNote:
    """What is known of a pair before it is read.

    `id` is its own in a store. `place` groups pairs of one ground, `level` is the kind of image ("S2L2A", "S2L1C",
    "naip"). `resolution` in metres and `side` in pixels are of the high-resolution image, `transform` its affine
    (a, b, c, d, e, f), NaN where it is not known where it lies; `epsg` is None then. A pair with `flip` other than 0 is
    `flipped` so after it was cut, its transform that of the ground as it lies.
    """

    id: str
    place: str
    level: str
    resolution: float
    side: int
    split: str | None = None
    epsg: int | None = None
    transform: Transform = NOWHERE
    flip: int = 0

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in the CRS; NaN where it is not known."""
        a, b, c, d, e, f = self.transform
        xs = [c, c + a * self.side, c + b * self.side, c + (a + b) * self.side]
        ys = [f, f + d * self.side, f + e * self.side, f + (d + e) * self.side]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def ground(self) -> Ground | None:
        """The square of ground, as `BlockSplit` takes it; None where it is not known."""
        if self.epsg is None or math.isnan(self.transform[0]):
            return None
        left, bottom, right, top = self.bounds
        to_degrees, is_degrees = _to_degrees(self.epsg)
        lon, lat = to_degrees.transform((left + right) / 2, (bottom + top) / 2)
        half = max(right - left, top - bottom) / 2
        return Ground(float(lon), float(lat), half * (_DEGREE if is_degrees else 1.0))

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is None."""
        values = asdict(self)
        values["transform"] = [None if math.isnan(v) else v for v in self.transform]
        return values


@dataclass(frozen=True, slots=True)
class PixelPair:
    """One ground at two resolutions: `lr` (C, h, w) and `hr` (C, scale h, scale w) float32, NaN where there is none.

    In the unit of each side's sensor: reflectance, or 8-bit counts of an aerial picture's `hr`. `crs` is an EPSG code
    and `transform` that of `hr` (a, b, c, d, e, f); both None or NaN where it is not known where the pair lies.
    """

    id: str
    lr: Floats
    hr: Floats
    bands: tuple[str, ...]
    crs: int | None
    transform: Transform
    place: str
    split: str | None = None
    lr_wide: Floats | None = None
    """`lr` with `eocube.products.lone_windows.HALO` of its pixels around, NaN where there is none; None: not known."""
    hr_wide: Floats | None = None
    """The same of `hr`, as many of its own pixels."""


class PairSource(Protocol):
    """Pairs that can be read in any order. `read` is called from several threads."""

    @property
    def notes(self) -> Sequence[PairNote]:
        """What is known of each pair, in the order of `read`."""
        ...

    @property
    def document(self) -> Mapping[str, Any]:
        """JSON: how low and high resolution came about. Part of what a store's pairs mean."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """What could be no pair: why, and how many."""
        ...


class PixelSource(PairSource, Protocol):
    """Pairs of pixels of given bands."""

    @property
    def bands(self) -> tuple[str, ...]: ...
    @property
    def scale(self) -> int: ...
    def read(self, index: int) -> PixelPair:
        """One pair. OSError or InputError, in one line, where it cannot be read."""
        ...


class SplitRule(Protocol):
    """Gives ground to splits; `model.training.sources.splits.BlockSplit` is one."""

    def split_of(self, place: Ground, /) -> str | None: ...


def split_notes(notes: Iterable[PairNote], rule: SplitRule | str) -> list[PairNote]:
    """The notes with the split that a rule gives their ground, or all with the one named.

    None where another split's block lies within the rule's margin: such pairs belong to no split, and no store.

    Raises:
        InputError: a rule for a pair that does not say where it lies.
    """
    if isinstance(rule, str):
        return [replace(note, split=rule) for note in notes]
    found = []
    for note in notes:
        ground = note.ground
        if ground is None:
            raise InputError(
                f"{note.id} does not say where it lies (no CRS), so no block of ground has it: put all into one split "
                "with --split train"
            )
        found.append(replace(note, split=rule.split_of(ground)))
    return found


@cache
def _to_degrees(epsg: int) -> tuple[Any, bool]:
    """What turns a CRS's coordinates into longitude and latitude, and whether they are degrees already."""
    crs = pyproj.CRS.from_epsg(epsg)
    return pyproj.Transformer.from_crs(crs, 4326, always_xy=True), crs.is_geographic


def flipped(x: Floats, flip: int) -> Floats:
    """(..., n, n) by one of the 8 symmetries of a square: turned by flip % 4 right angles, from 4 on mirrored too."""
    turned = np.rot90(x, flip % 4, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if flip >= 4 else turned)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a store: a pair of the source, `flip` of it."""

    source: int
    note: PairNote


def rows_of(notes: Sequence[PairNote], *, splits: Sequence[str], flips: int = 1, seed: int = 0) -> list[Row]:
    """The rows of a store: those of the splits wanted, train first, then val and test.

    Training pairs come `flips` times, in a seeded random order, so that each of a store's objects is a mixture; others
    once, in their own order.

    Raises:
        InputError: flips that are not 1 to 8, or two pairs of one id.
    """
    if not 1 <= flips <= FLIPS:
        raise InputError(f"--flips {flips}: a square has 1 to {FLIPS} of them")
    if len({note.id for note in notes}) < len(notes):
        twice = sorted({n.id for n in notes if [m.id for m in notes].count(n.id) > 1})
        raise InputError(f"two pairs are called {twice[0]!r}: give images names of their own")
    found: list[Row] = []
    for split in splits:
        rows = [Row(k, note) for k, note in enumerate(notes) if note.split == split]
        if split == "train":
            rows = [
                Row(row.source, replace(row.note, id=row.note.id + (f"~{flip}" if flip else ""), flip=flip))
                for row in rows
                for flip in range(flips)
            ]
            rows = [rows[k] for k in np.random.default_rng([seed, 0x50414952]).permutation(len(rows))]
        found += rows
    return found
