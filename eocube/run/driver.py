"""Drives a run: workers that read, encode and write, here or on Ray; dispatch, commit log, progress, interruption."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from types import FrameType
from typing import Any

from eocube.net.network import shared_network
from eocube.plan.plan import Plan, WorkUnit
from eocube.products.shelf import clear
from eocube.run.actor import EncodeActor, Worker, secrets_of
from eocube.run.choice import Choice, choose
from eocube.run.local_engine import LocalEngine, threads_as_before
from eocube.run.options import Cube, EngineOptions
from eocube.run.placement import Depths, Ended, Engine, PoolTally
from eocube.run.pool import ActorPool
from eocube.run.progress import Progress, SaidBy
from eocube.run.prometheus import DriverMetrics
from eocube.run.ray_session import ray_session
from eocube.run.run_log import FileSink, RunLog, Sink, StoreSink, attached, event, warnings_in
from eocube.run.settle import CommitBuffer
from eocube.store.fence import Fence
from eocube.store.receipts import Receipt, State, WindowResult, now
from eocube.store.store import CubeStore

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunTally:
    """What a run did, as it goes."""

    units: int = 0
    windows: Counter[State] = field(default_factory=Counter)
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    lost: list[str] = field(default_factory=list)
    """Units with which an actor died or hung every time."""
    requeued: int = 0
    """Times a unit was done again because its actor or node went."""
    deaths: int = 0
    """Actors that died, or went with their node."""
    retries: int = 0
    """Requests to other machines that were made again."""

    def add(self, receipt: Receipt) -> None:
        """Count one receipt in."""
        self.units += 1
        self.windows.update(w.state for w in receipt.windows)
        self.bytes_in += receipt.bytes_in
        self.bytes_out += receipt.bytes_out
        self.retries += receipt.retries

    def add_pool(self, pool: PoolTally) -> None:
        """Count in what an actor pool put right."""
        self.lost, self.requeued, self.deaths = pool.lost, pool.requeued, pool.deaths


def run(
    cubes: Sequence[Cube],
    options: EngineOptions,
    todo: Iterable[tuple[int, WorkUnit]],
    run_id: str,
    *,
    total: int | None = None,
    check: Callable[[], None] | None = None,
    fence: Fence | None = None,
    died: bool = False,
    actor_class: type[Any] | None = None,
) -> RunTally:
    """Do the units of `todo`, (cube index, unit), and log each receipt once its shard is safely written.

    `todo` may be a generator: it is drawn from as actors become free, so that a plan of any length takes the driver
    the memory of the units in flight. The engine is started with the first unit that has data.

    Ctrl-C and SIGTERM end it early with everything finished so far in the log; the tally says so.

    Args:
        cubes: the zones.
        options: how it is spread.
        todo: what is to be done.
        run_id: goes into every receipt, log line and metric.
        total: windows to do, for the progress; None counts them where `todo` is a sequence.
        fence: the driver's lease, which whatever it writes asks; actors have a part of it by `options.lease`.
        check: called before every write to the log and now and then; raises when this driver must stop.
        died: whether the run before ended without a word.
        actor_class: what does the work; by default `Worker` in this process, `EncodeActor` on Ray.

    Raises:
        InputError: the engine that is asked for cannot do what is asked for.
        EocubeError: the target store cannot be written, an actor cannot start, or `check` says so; what was finished
            is logged, as far as `check` allows.
    """
    tally, started = RunTally(), time.monotonic()
    stores = [CubeStore.open(c.url, storage_options=options.storage_options, fence=fence) for c in cubes]
    if total is None and isinstance(todo, Sequence):
        total = sum(windows_in(cubes[k].plan, u) for k, u in todo)
    choice = choose(options.engine, options.actors, options.gpus_per_actor, total, died=died)
    sink: Sink = FileSink(options.log_dir, run_id) if options.log_dir else StoreSink(stores[0].target, run_id)
    lines = RunLog(run_id, sink, secrets_of(options))
    with Progress(total, quiet=options.quiet) as progress, interruptible(), attached(lines, SaidBy(progress)):
        event(
            "run_started", cubes=[c.url for c in cubes], plans=[c.plan.hash for c in cubes], windows=total,
            engine=choice.engine, engine_why=choice.why,
        )  # fmt: skip
        commits = CommitBuffer(stores, check)
        settle = _Settle(commits, tally, progress)

        def hear(said: Sequence[str]) -> None:
            lines.take(said)
            for message in warnings_in(said):
                progress.say(message)

        def with_data() -> Iterator[tuple[int, WorkUnit]]:
            for k, unit in todo:
                if unit.empty:
                    settle(k, empty_receipt(cubes[k].plan, unit, run_id), "empty")
                else:
                    yield k, unit

        try:
            units = with_data()
            first = next(units, None)
            if first is not None:
                with engine_for(choice, cubes, options, run_id, actor_class) as engine:
                    settle.metrics = DriverMetrics(run_id) if engine.apart else None
                    pool = ActorPool(
                        engine, actors=options.actors, gpus_per_actor=options.gpus_per_actor, look=settle.look_after,
                        hear=hear, unit_timeout=options.unit_timeout + options.network.patience,
                        sharing=engine.apart and options.network.requests_per_second is not None,
                    )  # fmt: skip
                    try:
                        # In this process the worker and the driver have the whole limit together.
                        network = shared_network()
                        own = network.limits.beside_actors() if engine.apart else options.network
                        with network.keeping_to(own):
                            for ended in pool.map(chain([first], units)):
                                hear(ended.lines)
                                if ended.receipt is not None:
                                    settle(ended.cube, ended.receipt, "done")
                                else:
                                    settle.give_up(ended, cubes[ended.cube].plan, run_id)
                    finally:
                        tally.add_pool(pool.tally)
                        settle.end(tally.requeued)
        except KeyboardInterrupt:
            tally.interrupted = True
        finally:
            try:
                commits.close()
            finally:
                tally.seconds = time.monotonic() - started
                event(
                    "run_ended", units=tally.units, windows={s.label: n for s, n in sorted(tally.windows.items())},
                    bytes_in=tally.bytes_in, bytes_out=tally.bytes_out, seconds=round(tally.seconds, 3),
                    interrupted=tally.interrupted, lost=tally.lost, requeued=tally.requeued, deaths=tally.deaths,
                    retries=tally.retries,
                )  # fmt: skip
    return tally


class _Settle:
    """What becomes of a receipt: the log, the tally, the progress, the metrics."""

    def __init__(self, commits: CommitBuffer, tally: RunTally, progress: Progress) -> None:
        self._commits, self._tally, self._progress = commits, tally, progress
        self.metrics: DriverMetrics | None = None

    def __call__(self, cube: int, receipt: Receipt, outcome: str) -> None:
        self._commits.add(cube, receipt)
        self._tally.add(receipt)
        self._progress.add(receipt)
        if self.metrics is not None:
            self.metrics.ended(receipt, outcome)

    def look_after(self, depths: Depths) -> None:
        """Now and then, also while no unit ends: what waits for the log is written, the gauges are set."""
        self._commits.flush_if_due()
        if self.metrics is not None:
            self.metrics.depths(depths)

    def end(self, requeued: int) -> None:
        """Publish the last metrics."""
        if self.metrics is None:
            return
        try:
            self.metrics.retried("unit", requeued)
            self.metrics.publish()
        except Exception:  # Ray may be on its way down; what was done is in the log
            log.warning("the last metrics could not be published", exc_info=True)

    def give_up(self, ended: Ended, plan: Plan, run_id: str) -> None:
        """Mark a unit that ended its actor every time; one whose earlier receipt holds good windows keeps that one."""
        receipt = unit_receipt(plan, ended.unit, run_id, State.NOT_ATTEMPTED, ended.reason)
        if ended.unit.keep is None:
            self._commits.add(ended.cube, receipt)
        self._progress.add(receipt)
        if self.metrics is not None:
            self.metrics.ended(receipt, "lost")


@contextmanager
def engine_for(
    choice: Choice, cubes: Sequence[Cube], options: EngineOptions, run_id: str, actor_class: type[Any] | None
) -> Iterator[Engine]:
    """The chosen engine, ready for a pool."""
    urls = [c.url for c in cubes]
    if choice.engine == "local":
        with threads_as_before():
            yield LocalEngine(urls, options, run_id, actor_class or Worker)
        return
    clear()
    with ray_session(gpus=options.gpus_per_actor > 0):
        from eocube.run.ray_engine import (
            RayEngine,  # here, not above: Ray reads what the session sets as it is imported
        )

        yield RayEngine(urls, options, run_id, actor_class or EncodeActor)


def windows_in(plan: Plan, unit: WorkUnit) -> int:
    """Requested windows of a unit."""
    return sum(plan.grid.requested(w) for w in plan.grid.windows_of_shard(*unit.shard))


def empty_receipt(plan: Plan, unit: WorkUnit, run_id: str) -> Receipt:
    """The receipt of a unit that no scene touches: every requested window has no data."""
    return unit_receipt(plan, unit, run_id, State.NODATA)


def unit_receipt(plan: Plan, unit: WorkUnit, run_id: str, state: State, reason: str | None = None) -> Receipt:
    """The receipt of a unit whose requested windows all ended alike, without an object."""
    windows = tuple(
        WindowResult(*plan.grid.place_in_status(w), state=state, reason=reason)
        for w in plan.grid.windows_of_shard(*unit.shard)
        if plan.grid.requested(w)
    )
    return Receipt(
        unit=unit.key, time=unit.time, shard=unit.shard, windows=windows, created=now(), run=run_id,
    )  # fmt: skip


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: with what is finished in the log."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the caller's handlers stay
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
