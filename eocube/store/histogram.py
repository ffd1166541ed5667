"""Counts codes: how often each occurs in a channel, mergeable without the data and compact in a receipt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from eocube.read.coverage import deflated, inflated

MOST_CODES = 65_535
"""Codes a channel: those of uint16, but for the one that stands for none."""
_BYTES = np.dtype("<u4").itemsize * 2


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often each code occurs: a mapping code -> count for each channel, empty where nothing was counted."""

    channels: tuple[Mapping[int, int], ...] = field(default=())

    @classmethod
    def of(cls, codes: npt.NDArray[np.integer[Any]]) -> Histogram:
        """The histogram of codes (C, ...); what is below 0 is none and not counted."""
        flat = codes.reshape(codes.shape[0], -1)
        found = (np.unique(channel[channel >= 0], return_counts=True) for channel in flat)
        return cls(tuple(dict(zip(values.tolist(), counts.tolist(), strict=True)) for values, counts in found))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both together. ValueError where they have other numbers of channels."""
        if not other.channels:
            return self
        if not self.channels:
            return other
        if len(self.channels) != len(other.channels):
            raise ValueError(f"histograms of {len(self.channels)} and {len(other.channels)} channels do not merge")
        merged = []
        for mine, theirs in zip(self.channels, other.channels, strict=True):
            both = dict(mine)
            for code, count in theirs.items():
                both[code] = both.get(code, 0) + count
            merged.append(dict(sorted(both.items())))
        return Histogram(tuple(merged))

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """All parts together, whatever their order."""
        total = cls()
        for part in parts:
            total = total.merge(part)
        return total

    @property
    def count(self) -> int:
        """Cells counted: those of the first channel."""
        return sum(self.channels[0].values()) if self.channels else 0

    @property
    def entropy(self) -> tuple[float, ...]:
        """Bits a code, per channel: what an ideal coder that knows the histogram alone would need."""
        found = []
        for channel in self.channels:
            counts = np.fromiter(channel.values(), np.float64, len(channel))
            share = counts / max(counts.sum(), 1.0)
            found.append(float(-(share * np.log2(share)).sum()) if len(counts) else 0.0)
        return tuple(found)

    def figures(self) -> dict[str, Any]:
        """In a few numbers, for the store's root and for people: cells, codes in use and bits a code, per channel."""
        return {"count": self.count, "codes": [len(c) for c in self.channels], "entropy": list(self.entropy)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: for each channel the number of its codes, and (code, count) pairs as base64 of zlib."""
        pairs = [np.array(sorted(channel.items()), "<u4").reshape(-1, 2) for channel in self.channels]
        return {"codes": [len(p) for p in pairs], "pairs": deflated(b"".join(p.tobytes() for p in pairs))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        """Inverse of `to_dict`. ValueError for what it cannot have written."""
        sizes = [int(n) for n in data["codes"]]
        if any(not 0 <= n <= MOST_CODES for n in sizes) or len(sizes) > MOST_CODES:
            raise ValueError(f"a histogram of {sizes[:4]} codes: there are at most {MOST_CODES} a channel")
        pairs = inflated(data["pairs"], sum(sizes) * _BYTES).view("<u4").reshape(-1, 2)
        starts = np.cumsum([0, *sizes])
        return cls(tuple(dict(pairs[a:b].tolist()) for a, b in pairwise(starts)))
