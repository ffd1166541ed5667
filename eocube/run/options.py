"""Defines what bounds an actor's work: threads, windows read ahead, and a run's choices about them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a unit's memory and choices."""

    read_threads: int = 16
    """A scene has about as many files, which are read all at once where they are remote."""
    encode_threads: int = 1
    rows: int | None = None
    """Rows of windows of a shard that are read as one and held until they are encoded; None: all. Bounds an actor's
    memory whatever the size of a shard."""
    memory: int | None = None
    """Bytes that an actor's units may take beside the encoder; None: a share of what its node or container has."""
    max_cloud: float | None = None
    """Windows whose core is cloudier, in percent of its valid pixels, end `cloudy`."""
    verify_fraction: float = 0.0
    """Share of the windows that are decoded again as they are made, for `psnr` and `sam`."""
