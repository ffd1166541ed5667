"""Gathers receipts on their way into the commit logs, and writes them in segments by a thread of the one driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from eocube.store.receipts import Receipt
from eocube.store.store import CubeStore

COMMIT_EVERY = 2.0
"""Seconds between segments of the commit log: what a kill can cost in work done again."""
SEGMENT = 2000
"""Receipts after which a segment is written however soon: with one more in the writing, what the driver holds."""


class CommitBuffer:
    """Takes receipts whose shards are written and logs them in order, while the driver goes on dispatching.

    Args:
        stores: one a cube.
        check: called before each write and whenever one would be due; raises when this driver may not write any more.
    """

    def __init__(self, stores: Sequence[CubeStore], check: Callable[[], None] | None = None) -> None:
        self._stores, self._check = stores, check
        self._waiting: dict[int, list[Receipt]] = {}
        self._count = 0
        self._last = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._writing: Future[None] | None = None

    def add(self, cube: int, receipt: Receipt) -> None:
        """Take a receipt. What an earlier write raised is raised here."""
        self._waiting.setdefault(cube, []).append(receipt)
        self._count += 1
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Start writing a segment when the last is `COMMIT_EVERY` seconds old or `SEGMENT` receipts wait.

        Waits for the last one where as many receipts have come meanwhile: storage that is slow slows the run down,
        rather than filling the driver's memory.
        """
        full = self._count >= SEGMENT
        if not full and time.monotonic() - self._last < COMMIT_EVERY:
            return
        if self._check is not None:
            self._check()
        if self._writing is not None:
            if not self._writing.done() and not full:
                return
            self._writing.result()
        self._start()

    def close(self) -> None:
        """Write what waits, and return when it is written."""
        try:
            if self._writing is not None:
                self._writing.result()
            self._start()
            if self._writing is not None:
                self._writing.result()
        finally:
            self._thread.shutdown()

    def _start(self) -> None:
        segments, self._waiting, self._count, self._last = self._waiting, {}, 0, time.monotonic()
        self._writing = self._thread.submit(self._write, segments) if segments else None

    def _write(self, segments: dict[int, list[Receipt]]) -> None:
        for cube, receipts in segments.items():
            if self._check is not None:
                self._check()
            self._stores[cube].commit(receipts)
