"""Notes when an encoding actor reads, encodes and writes: put into Ray's workers from outside, the engine unchanged."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

LOG = "EOCUBE_BENCHMARK_SPANS"
"""Environment variable with the path of the file that spans go to."""
UNIT, READ, ENCODE, WRITE = "unit", "read", "encode", "write"


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work, in seconds of the machine's monotonic clock."""

    kind: str
    start: float
    end: float
    cpu: float
    """Seconds of a processor that the thread itself took, whatever else the machine did."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


def install() -> None:
    """Make this process note its work in the file that `LOG` names, and warm its encoder before the first unit.

    Ray calls it as a worker starts.
    """
    log = os.environ[LOG]
    import torch

    from eocube.products.base import Models
    from eocube.read.reader import WindowReader
    from eocube.run.unit import UnitRunner
    from eocube.store.store import CubeStore

    lock = threading.Lock()

    def noted(kind: str, work: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(work)
        def call(*args: Any, **options: Any) -> Result:
            start, cpu = time.monotonic(), time.thread_time()
            result = work(*args, **options)
            if kind == ENCODE and torch.cuda.is_available():
                torch.cuda.synchronize()
            line = json.dumps([kind, start, time.monotonic(), time.thread_time() - cpu]) + "\n"
            with lock, Path(log).open("a", encoding="ascii") as file:
                file.write(line)
            return result

        return call

    WindowReader.read = noted(READ, WindowReader.read)  # type: ignore[method-assign]
    WindowReader.read_shard = noted(READ, WindowReader.read_shard)  # type: ignore[method-assign]
    CubeStore.write_shard = noted(WRITE, CubeStore.write_shard)  # type: ignore[method-assign]
    UnitRunner.run = noted(UNIT, UnitRunner.run)  # type: ignore[method-assign]
    begin = UnitRunner.__init__

    @functools.wraps(begin)
    def begin_watched(self: UnitRunner, plan: Any, store: Any, models: Models, *args: Any, **options: Any) -> None:
        def watched(make: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: _Noted(make(), functools.partial(noted, ENCODE))

        cached = {name: functools.cache(make) for name, make in models.encoders.items()}
        warm(next(iter(cached.values()))(), plan, models)
        models = replace(models, encoders={name: watched(make) for name, make in cached.items()})
        begin(self, plan, store, models, *args, **options)

    UnitRunner.__init__ = begin_watched  # type: ignore[method-assign]


class _Noted:
    """An encoder whose calls are noted; everything else is the encoder's own."""

    def __init__(self, encoder: Any, note: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._encoder, self._call = encoder, note(encoder)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._call(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


def warm(encoder: Any, plan: Any, models: Any) -> None:
    """Call the encoder once on empty windows of the plan's shape, on one thread as a window is on a CPU."""
    import torch

    threads = torch.get_num_threads()
    if models.device == "cpu":
        torch.set_num_threads(1)
    lattice, dtype = plan.grid.lattice, getattr(torch, plan.sensor.dtype)
    blank = {
        gsd: torch.ones((models.batch, len(places), lattice.group_size(gsd), lattice.group_size(gsd)), dtype=dtype)
        for gsd, places in plan.sensor.groups(lattice.resolution).items()
    }
    encoder({gsd: block.to(models.device) for gsd, block in blank.items()})
    torch.set_num_threads(threads)


def spans(log: Path) -> tuple[Span, ...]:
    """What the actors noted so far."""
    if not log.is_file():
        return ()
    return tuple(Span(*json.loads(line)) for line in log.read_text(encoding="ascii").splitlines())


def elapsed(noted: Sequence[Span]) -> float:
    """Seconds from the start of the first unit to the end of the last."""
    units = [span for span in noted if span.kind == UNIT]
    return max(span.end for span in units) - min(span.start for span in units)


def busy(noted: Sequence[Span], kind: str) -> float:
    """Seconds that threads spent with one kind of work, all threads added."""
    return sum(span.seconds for span in noted if span.kind == kind)


def worked(noted: Sequence[Span], kind: str) -> float:
    """Processor seconds that threads spent with one kind of work, all threads added."""
    return sum(span.cpu for span in noted if span.kind == kind)
