"""Defines what bounds an actor's work: threads, windows read ahead, and a run's choices about them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a unit's memory and choices."""

    read_threads: int = 8
    encode_threads: int = 1
    ahead: int = 16
    """Windows read and not yet encoded, at most; more where threads read several at once. Bounds an actor's memory
    whatever the size of a shard."""
    max_cloud: float | None = None
    """Windows whose core is cloudier, in percent of its valid pixels, end `cloudy`."""
    verify_fraction: float = 0.0
    """Share of the windows that are decoded again as they are made, for `psnr` and `sam`."""
