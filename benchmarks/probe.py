"""Notes where an encoding actor's time goes: put into Ray's workers from outside, the engine unchanged."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.lock import LockSampler, held_share

Result = TypeVar("Result")

LOG = "EOCUBE_BENCHMARK_SPANS"
"""Environment variable with the path of the file that units' figures go to."""
STUB = "EOCUBE_BENCHMARK_STUB"
"""Environment variable; set, encoder and decoder are stand-ins that take no time."""

OPEN, READ, SETTLE, ALONE = "open", "read", "settle", "alone"
COPY, ENCODE, VERIFY, PACK, WRITE = "copy", "encode", "verify", "pack", "write"
STAGES = (OPEN, READ, SETTLE, ALONE, COPY, ENCODE, VERIFY, PACK, WRITE)
"""What a window goes through: files opened; ranges fetched and unpacked; validity, offsets, mosaic and masks settled
for the shard; the same for windows that are read on their own; copied for the encoder; encoded; decoded again and
scored; packed and counted; the shard compressed and written."""


@dataclass(frozen=True, slots=True)
class Noted:
    """One unit: seconds of the machine's monotonic clock and of its process at its start and end.

    `stages`: seconds of threads, and of processors, that went into each since the process noted a unit before. What a
    stage calls counts for that alone.
    """

    pid: int
    start: float
    end: float
    cpu_start: float
    cpu_end: float
    lock_start: Sequence[int]
    """`benchmarks.lock.LockSampler.sums` as the unit started."""
    lock_end: Sequence[int]
    stages: Mapping[str, tuple[float, float]]


class _Ledger:
    """Adds up what each stage takes, over all threads."""

    def __init__(self) -> None:
        self._lock, self._local = threading.Lock(), threading.local()
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @contextmanager
    def inside(self, kind: str) -> Iterator[None]:
        outer: list[float] | None = getattr(self._local, "inner", None)
        inner = self._local.inner = [0.0, 0.0]
        start, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            took, used = time.monotonic() - start, time.thread_time() - cpu
            self._local.inner = outer
            if outer is not None:
                outer[0] += took
                outer[1] += used
            with self._lock:
                self._sums[kind][0] += took - inner[0]
                self._sums[kind][1] += used - inner[1]

    def taken(self) -> dict[str, tuple[float, float]]:
        with self._lock:
            sums = {kind: (wall, cpu) for kind, (wall, cpu) in self._sums.items()}
            self._sums.clear()
        return sums

    def noted(self, kind: str, work: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(work)
        def call(*args: Any, **options: Any) -> Result:
            with self.inside(kind):
                return work(*args, **options)

        return call


def install() -> None:
    """Make this process note its work in the file that `LOG` names, and warm its encoder before the first unit.

    Ray calls it as a worker starts.
    """
    log = os.environ[LOG]
    import eocube.raster.cache
    import eocube.read.shard
    import eocube.run.unit
    from eocube.products.base import Models
    from eocube.raster.opening import Raster
    from eocube.read.mosaic import Mosaic
    from eocube.read.reader import WindowReader
    from eocube.run.selfcheck import SelfCheck
    from eocube.run.shard_batches import ShardBatches
    from eocube.run.shard_values import ShardValues
    from eocube.run.unit import UnitRunner
    from eocube.store.store import CubeStore

    ledger, lock, tries = _Ledger(), threading.Lock(), tries_at_the_lock()
    for where, name, kind in (
        (eocube.raster.cache, "open_raster", OPEN), (Raster, "read", READ), (Raster, "mask", READ),
        (Mosaic, "__init__", SETTLE), (Mosaic, "fill", SETTLE),
        (Mosaic, "cut", SETTLE), (eocube.read.shard, "is_plain", SETTLE), (eocube.read.shard, "check_piece", SETTLE),
        (eocube.read.shard, "class_counts", SETTLE), (eocube.read.shard, "cloud_cells", SETTLE),
        (WindowReader, "read", ALONE), (WindowReader, "mask", ALONE),
        (ShardBatches, "__init__", COPY), (ShardBatches, "batch", COPY), (SelfCheck, "check", VERIFY),
        (ShardValues, "_pack", PACK), (eocube.run.unit, "is_dark", PACK),
        (eocube.run.unit, "pack_mask", PACK), (eocube.run.unit, "pack_clouds", PACK),
        (eocube.run.unit, "pack_missing", PACK), (CubeStore, "write_shard", WRITE),
    ):  # fmt: skip
        setattr(where, name, ledger.noted(kind, getattr(where, name)))
    run, begin = UnitRunner.run, UnitRunner.__init__

    @functools.wraps(run)
    def run_noted(self: UnitRunner, unit: Any) -> Any:
        start, cpu, before = time.monotonic(), time.process_time(), tries()
        result = run(self, unit)
        ended = time.monotonic(), cpu, time.process_time(), before, tries()
        noted = Noted(os.getpid(), start, *ended, ledger.taken())
        line = json.dumps([getattr(noted, name) for name in Noted.__slots__]) + "\n"
        with lock, Path(log).open("a", encoding="ascii") as file:
            file.write(line)
        return result

    @functools.wraps(begin)
    def begin_watched(self: UnitRunner, plan: Any, store: Any, models: Models, *args: Any, **options: Any) -> None:
        def watched(make: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: _Watched(make(), ledger)

        if os.environ.get(STUB):
            models = _stubs(plan, models)
        cached = {name: functools.cache(make) for name, make in models.encoders.items()}
        warm(next(iter(cached.values()))(), plan, models)
        models = replace(models, encoders={name: watched(make) for name, make in cached.items()})
        begin(self, plan, store, models, *args, **options)
        packed = type(store.storage)
        if not hasattr(packed.pack, "__wrapped__"):
            packed.pack = ledger.noted(PACK, packed.pack)

    UnitRunner.run = run_noted  # type: ignore[method-assign]
    UnitRunner.__init__ = begin_watched  # type: ignore[method-assign]


def tries_at_the_lock() -> Callable[[], tuple[int, int, int, int]]:
    """What counts tries at the interpreter's lock from now on; none without a compiler."""
    try:
        return LockSampler().sums
    except OSError:
        return lambda: (0, 0, 0, 0)


def _stubs(plan: Any, models: Any) -> Any:
    """Models whose encoder and decoder give zeros at once."""
    import torch

    lattice = plan.grid.lattice
    cells = lattice.core + 2 * (lattice.halo if lattice.halo_is_cells else 0)
    latents = torch.zeros((models.batch, plan.product.channels, cells, cells))
    pixels = torch.zeros((1, len(plan.sensor.bands), lattice.window_px, lattice.window_px))
    decoder = None if models.decoder is None else (lambda values: pixels)
    return replace(models, encoders={name: lambda: lambda given: latents for name in models.encoders}, decoder=decoder)


class _Watched:
    """An encoder whose calls are noted; everything else is the encoder's own."""

    def __init__(self, encoder: Any, ledger: _Ledger) -> None:
        self._encoder, self._ledger = encoder, ledger

    def __call__(self, *args: Any, **options: Any) -> Any:
        import torch

        with self._ledger.inside(ENCODE):
            result = self._encoder(*args, **options)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        return result

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


def units(log: Path) -> tuple[Noted, ...]:
    """What the actors noted so far."""
    if not log.is_file():
        return ()
    return tuple(Noted(*json.loads(line)) for line in log.read_text(encoding="ascii").splitlines())


def elapsed(noted: Sequence[Noted]) -> float:
    """Seconds from the start of the first unit to the end of the last."""
    return max(unit.end for unit in noted) - min(unit.start for unit in noted)


def _processes(noted: Sequence[Noted]) -> list[list[Noted]]:
    """Units by the process that did them."""
    by_process: dict[int, list[Noted]] = defaultdict(list)
    for unit in noted:
        by_process[unit.pid].append(unit)
    return list(by_process.values())


def processor(noted: Sequence[Noted]) -> float:
    """Processor seconds of the actors' processes from their first unit's start to their last one's end."""
    return sum(max(u.cpu_end for u in own) - min(u.cpu_start for u in own) for own in _processes(noted))


def locked(noted: Sequence[Noted]) -> float | None:
    """Seconds for which threads of the actors ran with the interpreter's lock meanwhile; None where nobody measured."""
    total = 0.0
    for own in _processes(noted):
        ends = (min(own, key=lambda unit: unit.start).lock_start, max(own, key=lambda unit: unit.end).lock_end)
        if (share := held_share(*ends)) is None:
            return None
        total += elapsed(own) * share
    return total


def busy(noted: Sequence[Noted], kind: str) -> float:
    """Seconds that threads spent in a stage, all threads added, waiting included."""
    return sum(unit.stages.get(kind, (0.0, 0.0))[0] for unit in noted)


def worked(noted: Sequence[Noted], kind: str) -> float:
    """Processor seconds that threads spent in a stage, all threads added."""
    return sum(unit.stages.get(kind, (0.0, 0.0))[1] for unit in noted)
