"""Interleaved timing of several ways to do the same work, on a CPU or a GPU, and the memory that each takes."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]

GPU_SLICE = 0.2
"""Seconds that one timing lasts on a GPU, at least: calls are repeated within it."""
SAMPLE_EVERY = 0.002
"""Seconds between looks at the process's memory."""


@dataclass(slots=True)
class Timed:
    """One way's times, seconds a call."""

    name: str
    work: Work
    calls: int = 1
    """Calls within one timing."""
    seconds: list[float] = field(default_factory=list)

    def best(self, device: torch.device) -> float:
        """Seconds a call: the least on a CPU, where others' work only ever adds; the median on a GPU, which tires."""
        return statistics.median(self.seconds) if device.type == "cuda" else min(self.seconds)


def clock(work: Work, calls: int, device: torch.device) -> float:
    """Seconds a call, by CUDA events on a GPU."""
    if device.type == "cuda":
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000 / calls
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls


def interleave(ways: Sequence[Timed], repeats: int, device: torch.device, budget: float | None = None) -> None:
    """Time every way once a round, `repeats` rounds, each beginning with another: what disturbs, disturbs all alike.

    The ways must have been called before (warm-up). `budget`: seconds after which no further round begins; there is
    always one.
    """
    if device.type == "cuda":
        for way in ways:
            way.calls = max(1, round(GPU_SLICE / max(clock(way.work, 1, device), 1e-6)))
    began = time.perf_counter()
    for turn in range(repeats):
        if turn and budget is not None and time.perf_counter() - began > budget:
            return
        first = turn % len(ways)
        for way in (*ways[first:], *ways[:first]):
            way.seconds.append(clock(way.work, way.calls, device))


@dataclass(slots=True)
class Peak:
    """What `peak_memory` found."""

    gigabytes: float | None = None
    """Growth of the process or of the GPU's allocations at its greatest; None where the system does not tell."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The greatest growth of memory inside the block: of torch's allocations on a GPU, of the process on a CPU."""
    found = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        torch.cuda.synchronize(device)
        found.gigabytes = (torch.cuda.max_memory_allocated(device) - before) / 1e9
        return
    _return_free_memory()
    start = _resident()
    if start is None:
        yield found
        return
    highest, stop = [start], threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_EVERY):
            highest[0] = max(highest[0], _resident() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()
        found.gigabytes = (highest[0] - start) / 1e9


def _resident() -> int | None:
    """Bytes of the process that are in memory; None where the system has no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _return_free_memory() -> None:
    """Have the C library give back what is free, or the next way would seem to need nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library than GNU's
        return
