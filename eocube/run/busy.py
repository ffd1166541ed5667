"""How busy a device is: the share of time in which something was encoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyClock:
    """The share of time in which at least one thread was inside it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._busy = 0.0
        self._entered = self._since = time.monotonic()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Time in the block counts as busy; several threads may be in it at once."""
        with self._lock:
            if self._inside == 0:
                self._entered = time.monotonic()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._busy += time.monotonic() - self._entered

    def idle_share(self) -> float:
        """Share of the time since the last call in which nobody was inside, 0 to 1."""
        with self._lock:
            now = time.monotonic()
            busy = self._busy + (now - self._entered if self._inside else 0.0)
            span = now - self._since
            self._busy, self._since = 0.0, now
            if self._inside:
                self._entered = now
            return min(1.0, max(0.0, 1.0 - busy / span)) if span > 0 else 1.0
