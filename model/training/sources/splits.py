"""Splits by ground: the globe in blocks, the hash of a block decides, and what lies near another split is left out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.training.sources.patch import PlaceLike

# One degree of the sphere of radius 6371.0088 km (the mean Earth radius): 111.195 km. WGS84's own degrees of latitude
# are 110.574 to 111.694 km, so lengths here are within 0.6 %; margins are widened by that much.
_DEGREE = 6_371_008.8 * math.pi / 180
_SLACK = 1.006


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """A split of all ground into blocks of about `block` metres, so that two splits are `margin` metres apart or more.

    Rows of blocks are bands of latitude; each row is cut into as many equal blocks as fit its length, so that no block
    crosses the antimeridian and the same ground is in the same block whatever the source's projection. The hash of
    (seed, row, column) gives a block to one of `shares`, in proportion. A patch belongs to a split when all blocks
    within `margin` of it do; the others belong to none. Neither a file's order nor the number of patches matters.
    """

    block: float
    margin: float
    shares: Mapping[str, float]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.block > 0 or not 0 <= self.margin < self.block / 2:
            raise ValueError(
                f"split: block {self.block:g} m must be above 0 and margin {self.margin:g} m from 0 to below half of it"
            )
        if not self.shares or min(self.shares.values()) < 0 or not sum(self.shares.values()) > 0:
            raise ValueError(f"split: shares {dict(self.shares)} must be 0 or more and not all 0")

    def block_of(self, lon: float, lat: float) -> tuple[int, int]:
        """(row, column) of the block a point lies in."""
        row = self._row(lat)
        columns = self._columns(row)
        return row, int((lon + 180.0) % 360.0 / 360.0 * columns) % columns

    def split_of_block(self, row: int, column: int) -> str:
        """The split that a block is given to."""
        digest = hashlib.blake2b(f"{self.seed}:{row}:{column}".encode(), digest_size=8).digest()
        chance = int.from_bytes(digest, "big") / 2**64 * sum(self.shares.values())
        for name, share in self.shares.items():
            chance -= share
            if chance < 0:
                return name
        return [name for name, share in self.shares.items() if share > 0][-1]

    def split_of(self, place: PlaceLike) -> str | None:
        """The split of a patch, or None where a block of another split lies within the margin of it."""
        # the half diagonal, since a patch may lie askew to the meridians
        reach = (place.half * math.sqrt(2) + self.margin) * _SLACK
        south, north = place.lat - reach / _DEGREE, place.lat + reach / _DEGREE
        found: set[str] = set()
        for row in range(self._row(south), self._row(north) + 1):
            columns = self._columns(row)
            shortest = math.cos(math.radians(min(89.99, max(abs(south), abs(north)))))
            wide = reach / (_DEGREE * shortest)
            if wide >= 180.0:
                touched = range(columns)
            else:
                first = math.floor((place.lon - wide + 180.0) / 360.0 * columns)
                last = math.floor((place.lon + wide + 180.0) / 360.0 * columns)
                touched = range(first, min(last, first + columns - 1) + 1)
            found |= {self.split_of_block(row, column % columns) for column in touched}
            if len(found) > 1:
                return None
        return found.pop()

    def select(self, places: Sequence[PlaceLike], split: str) -> list[int]:
        """Indices of the patches of one split. ValueError for a split that is none of the shares."""
        self.check(split)
        return [index for index, place in enumerate(places) if self.split_of(place) == split]

    def check(self, split: str) -> None:
        """ValueError for a split that is none of the shares."""
        if split not in self.shares:
            raise ValueError(f"no split {split!r}: there are {', '.join(self.shares)}")

    @property
    def _rows(self) -> int:
        return max(1, round(180.0 * _DEGREE / self.block))

    def _row(self, lat: float) -> int:
        return min(self._rows - 1, int((min(90.0, max(-90.0, lat)) + 90.0) / 180.0 * self._rows))

    def _columns(self, row: int) -> int:
        """Blocks in a row, by its length at its edge nearer the equator, where blocks are widest."""
        edges = (row * 180.0 / self._rows - 90.0, (row + 1) * 180.0 / self._rows - 90.0)
        nearest = 0.0 if edges[0] <= 0 <= edges[1] else min(abs(e) for e in edges)
        return max(1, round(360.0 * _DEGREE * math.cos(math.radians(nearest)) / self.block))


def distance(one: PlaceLike, other: PlaceLike) -> float:
    """Metres between the edges of two patches, at least: between their centres less both half diagonals."""
    phi, psi = math.radians(one.lat), math.radians(other.lat)
    turn = math.radians(other.lon - one.lon)
    h = math.sin((psi - phi) / 2) ** 2 + math.cos(phi) * math.cos(psi) * math.sin(turn / 2) ** 2
    centres = 2 * 6_371_008.8 * math.asin(min(1.0, math.sqrt(h)))
    return max(0.0, centres - math.sqrt(2) * (one.half + other.half))
