"""Reads on threads: a remote file always on the same one, which keeps it open, others on whichever is free."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock
from typing import TypeVar

from eocube.net.trust import here

T = TypeVar("T")
_REMEMBERED = 4096
"""Remote files whose thread is remembered: those of some hundred scenes."""


class Lanes:
    """Threads that read; for use from several threads. Work sees the context of who submits it.

    Args:
        threads: how many.
        shared: a pool whose threads do the work instead, where reading computes on the cores that they compute on.
    """

    def __init__(self, threads: int, shared: ThreadPoolExecutor | None = None) -> None:
        self._own = [] if shared else [ThreadPoolExecutor(1, f"read-{k}") for k in range(threads)]
        self._turns = itertools.cycle([shared] if shared else self._own)
        self._of: OrderedDict[str, ThreadPoolExecutor] = OrderedDict()
        self._lock = Lock()

    def submit(self, href: str, work: Callable[[], T]) -> Future[T]:
        """Do work with one file."""
        with self._lock:
            pool = self._of.get(href) or next(self._turns)
            if not here(href):
                self._of[href] = pool
                self._of.move_to_end(href)
                while len(self._of) > _REMEMBERED:
                    self._of.popitem(last=False)
        return pool.submit(copy_context().run, work)

    def any(self, work: Callable[[], T]) -> Future[T]:
        """Do work with several files."""
        with self._lock:
            pool = next(self._turns)
        return pool.submit(copy_context().run, work)

    def close(self) -> None:
        """Stop the threads that are its own; work that has not begun is not done."""
        for pool in self._own:
            pool.shutdown(cancel_futures=True)
