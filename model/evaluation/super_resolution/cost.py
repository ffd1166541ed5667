"""Times one image after another and finds how much memory one takes, on a GPU by torch and on a CPU by the kernel."""

from __future__ import annotations

import ctypes
import re
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

WARM_UP = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What `clear_refs` takes to set the peak of resident memory to what is resident now (man 5 proc)."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds an image, the mean over `iterations` after warming up, with the fastest and slowest; `limited` where a
    bound of time came before the iterations asked for."""

    seconds: float
    fastest: float
    slowest: float
    iterations: int
    limited: bool


def timed(run: Callable[[], object], iterations: int, most_seconds: float, device: torch.device) -> Timed:
    """Run again and again: `iterations` times, or fewer where these take more than `most_seconds`, warm-up included.

    Of what takes more than the bound once, that one is the figure: a warm-up would double the wait to save a percent.
    """
    taken: list[float] = []
    began = time.perf_counter()
    warmed = 0
    while len(taken) < iterations:
        one = _once(run, device)
        over = time.perf_counter() - began > most_seconds
        if warmed < WARM_UP and not over:
            warmed += 1
            continue
        taken.append(one)
        if over:
            break
    mean = sum(taken) / len(taken)
    return Timed(mean, min(taken), max(taken), len(taken), len(taken) < iterations)


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int, most_seconds: float, device: torch.device
) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that another's load on the machine meets all alike.

    So many rounds, or as many as the bound of time allows, one at least.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(_once(run, device))
        if time.perf_counter() - began > most_seconds:
            break
    return {name: statistics.median(found) for name, found in taken.items()}


def _once(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes that one image takes beyond what is there before; `kind` says whose figure it is."""

    bytes: int | None
    kind: str


def peak(run: Callable[[], object], device: torch.device) -> Peak:
    """Of one run. On a GPU what torch allocates at most, weights left out; on a CPU the growth of resident memory by
    the kernel's own high-water mark, after what is free was handed back. Where neither is known, by looking often."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return Peak(torch.cuda.max_memory_allocated(device) - before, "torch, allocated on the GPU")
    _hand_back()
    resident = _resident("VmRSS")
    if resident is None:
        run()
        return Peak(None, "not known on this system")
    if _reset():
        run()
        most = _resident("VmHWM")
        return Peak(
            None if most is None else max(0, most - resident), "growth of resident memory, by the kernel's peak"
        )
    return Peak(max(0, _watched(run) - resident), "growth of resident memory, looked at every millisecond")


def _hand_back() -> None:
    """Have the C library give free memory back, lest a run that reuses it seem to need none."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(key: str) -> int | None:
    """Bytes of VmRSS or VmHWM; None where there is no /proc."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _reset() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _watched(run: Callable[[], object]) -> int:
    most, done = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, _resident("VmRSS") or 0)
            time.sleep(0.001)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return most
