"""Makes the overviews of a run's cubes while their shards are made, so that a country is seen on its first day."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console

from eocube.console import say
from eocube.net.redaction import one_line
from eocube.run.options import Cube
from eocube.run.run_log import event
from eocube.store.fence import Fence
from eocube.store.store import CubeStore

EVERY = 60.0
"""Seconds between two looks at what is new, at least."""
SHARE = 0.05
"""Of a run's time that goes into reading the log and writing what follows from it, at most: the longer, the rarer."""


class OverviewsAlong:
    """While entered, decodes on a thread of its own what the log names as written, a shard at a time.

    Each look also finalises the stores, so that whoever opens one sees what is encoded so far. What goes wrong ends
    the thread and is left to `seen_from_afar`: the run itself never fails by it.

    Args:
        cubes: of the run; those that are not decoded are left out.
        storage_options: fsspec options of theirs.
        fence: the driver's lease, which whatever is written asks.
        every: seconds between two looks, at least.
    """

    def __init__(
        self,
        cubes: Sequence[Cube],
        storage_options: Mapping[str, Any] | None,
        fence: Fence | None,
        every: float = EVERY,
    ) -> None:
        self._cubes = [cube for cube in cubes if cube.plan.product.decodes]
        self._options, self._fence, self._every = storage_options, fence, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="overview", daemon=True)
        self.shards = 0
        """Decoded so far."""

    def __enter__(self) -> OverviewsAlong:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the shard that is being decoded; the rest is left."""
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        stores = [CubeStore.open(c.url, storage_options=self._options, fence=self._fence) for c in self._cubes]
        pause = self._every
        try:
            while not self._ended.wait(pause):
                spent = 0.0
                for store, cube in zip(stores, self._cubes, strict=True):
                    begun = time.monotonic()
                    store.finalise()
                    spent += self._look(cube) - begun
                pause = max(self._every, spent / SHARE)
        except Exception as error:
            event("overview_stopped", reason=one_line(error))

    def _look(self, cube: Cube) -> float:
        """Decode what is new; tells when it was known what that is, on the monotonic clock."""
        from eocube.cube.overview import make_overviews

        known: list[float] = []

        def stop() -> bool:  # asked before each shard
            known.append(time.monotonic())
            return self._ended.is_set()

        for made in make_overviews(cube.url, self._options, fence=self._fence, stop=stop, workers=1):
            self.shards += made.shards
        return known[0] if known else time.monotonic()


def seen_from_afar(
    cubes: Sequence[Cube],
    storage_options: Mapping[str, Any] | None,
    console: Console,
    fence: Fence | None = None,
    before: int = 0,
) -> None:
    """Make the overviews of what has none yet; the cubes are whole whatever becomes of them.

    before: shards that were decoded while the run went on.
    """
    from eocube.cube.overview import make_overviews

    for cube in cubes:
        if not cube.plan.product.decodes:
            say(console, f"no overview: {cube.plan.product.array} cubes ({cube.plan.product.kind}) are not decoded")
            continue
        try:
            for made in make_overviews(cube.url, storage_options, fence=fence):
                along = f", {before} while it ran" if before else ""
                say(console, f"overview: {made.shards} shards decoded{along}, {made.bytes:,} bytes")
        except Exception as error:
            say(console, f"no overview ({one_line(error)}): the cube is whole; eocube overview makes it")
