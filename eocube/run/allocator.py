"""The C allocator of an actor's process, told to keep what is freed: the next window asks for the same again."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""glibc's names for what `mallopt` sets."""
_KEPT = 2**31 - 1
_MAPPED = 2**30
_STEP = 16 * 2**20


def keep_freed_memory() -> bool:
    """Have freed memory stay with this process; False where the C library takes no such wish.

    By default glibc hands activations back to the system and gets them anew, page by page: up to 2,500 faults a
    window were seen, 15 % of `nano`'s time on a virtual machine. The process then stays as large as it ever was; for
    one that does the same work over and over, as an actor does, that is what it needs anyway.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl has none, Windows no handle of that kind
        return False
    wishes = ((_MMAP_THRESHOLD, _MAPPED), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _STEP))
    return all(bool(mallopt(name, value)) for name, value in wishes)
