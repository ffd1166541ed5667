"""Tells what this process may use by its control groups, memory above all, and who was killed for want of it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

PROC, MOUNT = Path("/proc"), Path("/sys/fs/cgroup")


def memory_limit(proc: Path = PROC, mount: Path = MOUNT) -> int | None:
    """Bytes that this process may use: the least limit of its control groups, at most the machine's memory.

    None where the system says neither (not Linux). A container's limit is that of its group, which the machine's own
    figure, and whoever plans by it, passes over.
    """
    found = [_machine()]
    for folder in _folders(proc, mount):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            found += [int(text)] if text.isdecimal() else []
    known = [value for value in found if value]
    return min(known) if known else None


def kills(proc: Path = PROC, mount: Path = MOUNT) -> int:
    """Processes of this process's control groups that the kernel has killed because their memory ran out."""
    count = 0
    for folder in _folders(proc, mount):
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(folder / name).splitlines():
                word, _, value = line.partition(" ")
                if word == "oom_kill" and value.strip().isdecimal():
                    count = max(count, int(value))
    return count


def cpu_limit(proc: Path = PROC, mount: Path = MOUNT) -> float | None:
    """Cores' worth of time that this process may use: the least quota of its control groups (v2). None without one."""
    found = []
    for folder in _folders(proc, mount):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _folders(proc: Path, mount: Path) -> Iterator[Path]:
    """Where this process's memory groups are described, from its own up to the root.

    In a container the path that the kernel tells is often that of the host: then the mount itself is the group.
    """
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = mount / "memory" if controllers else mount
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _machine() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""glibc's names for what `mallopt` sets."""
_KEPT = 2**31 - 1
_MAPPED = 2**30
_STEP = 16 * 2**20
_USUAL = 128 * 2**10
"""What glibc begins with, of all three."""


def keep_freed_memory() -> bool:
    """Have freed memory stay with this process; False where the C library takes no such wish.

    By default glibc hands activations back to the system and gets them anew, page by page: up to 2,500 faults a
    window were seen, 15 % of `nano`'s time on a virtual machine. The process then stays as large as it ever was; for
    one that does the same work over and over, as an actor does, that is what it needs anyway.
    """
    return _wish({_MMAP_THRESHOLD: _MAPPED, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _STEP})


def give_freed_memory_back() -> bool:
    """Undo `keep_freed_memory` and hand back what is free now: for a process that goes on with other things."""
    if not _wish({_MMAP_THRESHOLD: _USUAL, _TRIM_THRESHOLD: _USUAL, _TOP_PAD: _USUAL}):
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def _wish(wishes: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl has none, Windows no handle of that kind
        return False
    return all(bool(mallopt(name, value)) for name, value in wishes.items())
