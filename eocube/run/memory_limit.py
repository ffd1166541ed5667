"""Tells how much memory this process may use by its control groups (v1 and v2), and who was killed for want of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
