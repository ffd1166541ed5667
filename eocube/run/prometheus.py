"""Exports a run's figures to Prometheus, through Ray: the driver's, from receipts, and what an actor sees of itself."""

from __future__ import annotations

import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eocube.run.placement import Depths
from eocube.store.receipts import Receipt

UNIT_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Upper edges of the histogram of unit times."""
REPORT_EVERY = 5.0
"""Seconds over which an actor averages how idle its device is."""


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


class DriverMetrics:
    """Counts of a run, kept by its driver. Needs an initialised Ray.

    Exported by every node's agent with Ray's prefix: `ray_eocube_windows_total{state="ok",run="..."}` and so on.
    """

    def __init__(self, run_id: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        def counter(name: str, what: str, *tags: str) -> Any:
            return Counter(f"eocube_{name}", what, ("run", *tags)).set_default_tags({"run": run_id})

        def gauge(name: str, what: str, *tags: str) -> Any:
            return Gauge(f"eocube_{name}", what, ("run", *tags)).set_default_tags({"run": run_id})

        self._windows = counter("windows_total", "Windows that ended, by state", "state")
        self._units = counter("units_total", "Units that ended (done, empty, lost)", "outcome")
        self._read = counter("read_bytes_total", "Bytes read from sources")
        self._written = counter("written_bytes_total", "Bytes of shards written")
        self._retries = counter("retries_total", "Work done again, by what was retried", "what")
        self._queue = gauge("queue_depth", "Units in flight, and units that wait to be tried again", "queue")
        self._actors = gauge("actors", "Actors by what they do", "state")
        self._counted: Counts[tuple[Any, str, str]] = Counts()
        self._seconds: Any = Histogram(
            "eocube_unit_seconds", "Wall time of a unit", UNIT_SECONDS, ("run",)
        ).set_default_tags({"run": run_id})  # fmt: skip

    def ended(self, receipt: Receipt, outcome: str) -> None:
        """Count a unit in; outcome is done, empty or lost. Ray hears of it with the next `publish`."""
        for window in receipt.windows:
            self._counted[self._windows, "state", window.state.label] += 1
        self._counted[self._units, "outcome", outcome] += 1
        self._counted[self._read, "", ""] += receipt.bytes_in
        self._counted[self._written, "", ""] += receipt.bytes_out
        if outcome == "done":
            self._seconds.observe(max(receipt.seconds, 1e-9))

    def publish(self) -> None:
        """Hand Ray what was counted: now and then, as each of its calls takes as long as a hundred additions."""
        for (counter, tag, value), count in self._counted.items():
            if count:
                counter.inc(count, {tag: value} if tag else None)
        self._counted.clear()

    def retried(self, what: str, count: int = 1) -> None:
        """Count work that is done again: units whose actor or node died. Requests are counted where they are made."""
        if count:
            self._retries.inc(count, {"what": what})

    def depths(self, depths: Depths) -> None:
        """How many units are with actors and how many wait to run alone; how many actors work and how many start."""
        self.publish()
        self._queue.set(depths.flight, {"queue": "flight"})
        self._queue.set(depths.again, {"queue": "again"})
        self._actors.set(depths.ready, {"state": "ready"})
        self._actors.set(depths.starting, {"state": "starting"})


class ActorMetrics:
    """What an actor sees of itself: how idle its device is, how many requests it repeated. Needs an initialised Ray."""

    def __init__(self, run_id: str, clock: BusyClock, retries: Callable[[], int]) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"run": run_id, "actor": _actor_name()}
        self._idle: Any = Gauge(
            "eocube_device_idle_share", "Share of time in which an actor's device encoded nothing", ("run", "actor")
        ).set_default_tags(tags)  # fmt: skip
        self._repeated: Any = Counter(
            "eocube_retries_total", "Work done again, by what was retried", ("run", "what")
        ).set_default_tags({"run": run_id, "what": "request"})  # fmt: skip
        self._clock, self._retries, self._told = clock, retries, 0
        self._stop = threading.Event()
        threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def _report(self) -> None:
        while not self._stop.wait(REPORT_EVERY):
            self._idle.set(self._clock.idle_share())
            now = self._retries()
            if now > self._told:
                self._repeated.inc(now - self._told)
                self._told = now

    def close(self) -> None:
        """Report no more."""
        self._stop.set()


def _actor_name() -> str:
    import ray

    return str(ray.get_runtime_context().get_actor_id() or "driver")[:12]
