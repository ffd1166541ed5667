"""Sets a forked child right: pools whose threads stayed in the parent, locks that were held, files that are shared.

A fork copies memory and one thread. What waits for another of the parent's threads waits for ever (dask's pool), a lock
that one of them held stays locked, and an open file's position is shared with the parent. PyTorch's DataLoader forks
its workers on Linux by default, after the dataset was opened and looked at.

Python calls what `os.register_at_fork` was given in every child; it is given it with the first thing that is watched
(the first cube opened, the first host asked), not as this module is imported: a program that only imports eocube is
left as it is. zarr and fsspec do the same for their event loops. The clients of object stores keep sockets of the
parent's; what was opened before the fork is refused in one line, what the child opens itself is its own.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

SPAWN = 'open it in the worker itself, or start workers with spawn: DataLoader(..., multiprocessing_context="spawn")'
"""The way out where something cannot be used across a fork."""


class Forked(Protocol):
    """What has something to put right in a forked child."""

    def after_fork(self) -> None:
        """Called in the child, before anything else runs there."""
        ...


_watched: WeakSet[Forked] = WeakSet()


def watch(*things: Forked) -> None:
    """Have these, and dask's pool, put right in every child that is forked from now on."""
    _register()
    _watched.update(things)


@cache
def _register() -> None:
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=_set_right)


def _set_right() -> None:
    _forget_dask_pools()
    for thing in list(_watched):
        thing.after_fork()


def _forget_dask_pools() -> None:
    """Let dask make new pools: the threads of those it has are the parent's."""
    threaded: Any = sys.modules.get("dask.threaded")
    if threaded is not None:
        threaded.default_pool = None
        threaded.pools.clear()
        threaded.pools_lock = threading.Lock()
        threaded.main_thread = threading.current_thread()
