"""Lays pieces of a band's files over each other, strip by strip, each pixel the first that has one; checks pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.errors import RadiometryError, RefusedError
from eocube.ground.grid import Window
from eocube.raster.opening import Raster
from eocube.read.areas import Part
from eocube.read.bands import Band, is_data, usable
from eocube.read.plausible import check_digital, check_range, is_questionable
from eocube.scenes.scene import BandSource
from eocube.sensors.radiometry import check_power, moved_to_sensor
from eocube.sensors.sensor import Sensor

_STRIP = 64
"""Rows that are settled at a time: what is done to them stays in a core's cache."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What was read of one band of a file: `raw` (H, W) as it is stored."""

    raw: NDArray[Any]
    source: BandSource
    raster: Raster
    sensor: Sensor

    @property
    def nodata(self) -> float | None:
        """The file's own."""
        return self.raster.nodata[self.source.index - 1]

    def settled(self, rows: slice) -> Band:
        """Some rows in travelling form, and where they are valid."""
        raw = self.raw[rows]
        moved = moved_to_sensor(raw, self.source.radiometry, self.sensor)
        return moved, is_data(moved, self.sensor) & usable(raw, self.source, self.nodata)


def is_plain(piece: Piece) -> bool:
    """Whether a piece's numbers are such that no window's part of it would be refused by them."""
    power = piece.source.radiometry.kind == "power" and bool((piece.raw < 0).any())
    return not power and not is_questionable(piece.raw, piece.source, piece.sensor)


def check_piece(piece: Piece, parts: Mapping[Window, Part], size: int) -> set[Window]:
    """Windows of `size` pixels a side whose part of a piece is refused by its numbers, or is to be asked on its own."""
    raw, source, sensor = piece.raw, piece.source, piece.sensor
    power = source.radiometry.kind == "power" and bool((raw < 0).any())
    seen, odd = usable(raw, source, piece.nodata), set()
    for window, part in parts.items():
        try:
            if power and raw[part].shape != (size, size):  # what lies beyond the file counts too
                raise RefusedError("to be asked on its own")
            check_range(raw[part], seen[part], source, sensor)
            check_digital(raw[part], seen[part], piece.raster, source, sensor)
            check_power(raw[part], source.radiometry)
        except (RefusedError, RadiometryError):
            odd.add(window)
    return odd


class Layer:
    """One band over an area: `pixels` (H, W), and which of them are there; None where all or none are."""

    def __init__(self, pixels: NDArray[Any], nodata: float) -> None:
        self.pixels, self._nodata = pixels, nodata
        self._there: NDArray[np.bool_] | None = None
        self._begun = False

    def add(self, piece: Piece, at: Part) -> NDArray[np.bool_] | None:
        """Fill from a piece at its place what is not there yet: where that was (H, W), None where it was everywhere."""
        whole = (slice(0, self.pixels.shape[0]), slice(0, self.pixels.shape[1]))
        if not self._begun and at == whole:
            self._begun = True
            self._there = self._laid(piece)
            return self._there
        self.blank()
        new = np.zeros(self.pixels.shape, np.bool_)
        if self._there is None:
            return new
        pixels, there, fresh = self.pixels[at], self._there[at], new[at]
        for rows in _strips(len(piece.raw)):
            moved, seen = piece.settled(rows)
            seen &= ~there[rows]
            np.copyto(pixels[rows], moved, where=seen)
            there[rows] |= seen
            fresh[rows] = seen
        return new

    def _laid(self, piece: Piece) -> NDArray[np.bool_] | None:
        """Lay down the first piece, which covers everything: which pixels it has, None where it has them all."""
        there: NDArray[np.bool_] | None = None
        for rows in _strips(len(piece.raw)):
            moved, seen = piece.settled(rows)
            self.pixels[rows] = moved
            if seen.all():
                continue
            self.pixels[rows][~seen] = self._nodata
            if there is None:
                there = np.ones(self.pixels.shape, np.bool_)
            there[rows] = seen
        return there

    def blank(self) -> None:
        """Make nodata of everything, where nothing was laid down yet."""
        if not self._begun:
            self._begun = True
            self.pixels.fill(self._nodata)
            self._there = np.zeros(self.pixels.shape, np.bool_)

    def seen(self, part: Part) -> NDArray[np.bool_]:
        """Which pixels of a part are there, once something was laid down."""
        return np.ones(self.pixels[part].shape, np.bool_) if self._there is None else self._there[part]


def _strips(height: int) -> Iterator[slice]:
    return (slice(row, row + _STRIP) for row in range(0, height, _STRIP))
