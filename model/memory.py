"""Says how many windows fit a device: a straight line through two measured batches, never trial and error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SHARE = 0.8
"""Share of the free memory that is planned with: fragmentation and other users' small needs take from the rest."""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Bytes that a batch needs beyond the weights: fixed + batch * per_window."""

    fixed: float
    per_window: float

    @classmethod
    def measured(cls, probe: Callable[[int], int], small: int = 1, large: int = 3) -> MemoryModel:
        """The line through two batches; `probe` runs a batch of so many windows and returns its peak in bytes.

        Raises:
            ValueError: the larger batch needs no more than the smaller one, so that nothing was measured.
        """
        low, high = probe(small), probe(large)
        per_window = (high - low) / (large - small)
        if per_window <= 0:
            raise ValueError(f"{large} windows took {high} bytes and {small} took {low}: the probe measures nothing")
        return cls(max(0.0, low - small * per_window), per_window)

    def bytes(self, batch: int) -> float:
        """What a batch needs."""
        return self.fixed + batch * self.per_window

    def largest_batch(self, free: int, windows: int, most: int, *, at_once: int = 1, share: float = SHARE) -> int:
        """The largest divisor of `windows`, at most `most`, of which `at_once` batches fit into `free` bytes.

        A divisor, so that the windows of a shard fill whole batches; there are few (50, 25, 20, 10 of a hundred), so
        that some megabytes more or less in use do not change the batch, on which bits depend. At least one: if even
        that does not fit, running says so.
        """
        room = share * free / at_once
        return largest_divisor(windows, most, lambda batch: self.bytes(batch) <= room)


def largest_divisor(windows: int, most: int, fits: Callable[[int], bool] = lambda batch: True) -> int:
    """The largest divisor of `windows`, at most `most`, that fits; 1 where none does."""
    return max((d for d in range(2, min(windows, most) + 1) if windows % d == 0 and fits(d)), default=1)
