"""Drives a run on Ray: actors that read, encode and write; dispatch, commit log, progress, interruption."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from types import FrameType
from typing import TYPE_CHECKING, Any

from eocube.net import redaction
from eocube.net.network import NetworkLimits, shared_network
from eocube.plan.plan import Plan, WorkUnit
from eocube.run.memory_limit import keep_freed_memory, memory_limit
from eocube.run.options import Limits
from eocube.run.placement import Depths, Ended, Place, PoolTally, Start, Wanted, here
from eocube.run.pool import UNIT_TIMEOUT, UNITS_PER_ACTOR, ActorPool
from eocube.run.progress import Progress, SaidBy
from eocube.run.prometheus import ActorMetrics, BusyClock, DriverMetrics
from eocube.run.ray_session import ray_session
from eocube.run.run_log import FileSink, RunLog, Sink, StoreSink, attached, event, log_in_actor, of_unit, warnings_in
from eocube.run.settle import CommitBuffer
from eocube.store.fence import Fence, Pass
from eocube.store.receipts import Receipt, State, WindowResult, now
from eocube.store.store import CubeStore

if TYPE_CHECKING:
    from eocube.run.super_resolve_unit import SuperResolveRunner
    from eocube.run.unit import UnitRunner

log = logging.getLogger(__name__)

ACTOR_CPUS = 0.01
"""CPUs that an actor reserves where there is no GPU: it uses a node's all, and must fit beside whatever is there."""


@dataclass(frozen=True, slots=True)
class Cube:
    """One zone's share of a run: its plan and where its store is."""

    plan: Plan
    url: str


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a run is spread over the machine or cluster."""

    actors: int | None = None
    """None: one a GPU share where there are GPUs, else one a node; more and fewer as nodes come and go."""
    gpus_per_actor: float = 0.0
    limits: Limits = field(default_factory=Limits)
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """fsspec options of the target store."""
    source_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """fsspec options of the sources."""
    quiet: bool = False
    network: NetworkLimits = field(default_factory=NetworkLimits)
    """How hosts are treated; a limit on requests is shared out over driver and actors."""
    unit_timeout: float = UNIT_TIMEOUT
    """Seconds that an actor may take over a unit, beside the network's patience, before it counts as hung."""
    lease: Pass | None = None
    """What actors need to write under the driver's lease; None where nobody else can write."""
    log_dir: str | None = None
    """A local folder for the run's log. None: in the first cube's store."""


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


class EncodeActor:
    """Holds the encoder and runs several units at once on threads. Pixels never leave its process."""

    def __init__(self, urls: Sequence[str], options: EngineOptions, device: str, run_id: str):
        keep_freed_memory()
        self._lines, busy = log_in_actor(run_id, secrets_of(options)), BusyClock()
        self._network = options.network
        shared_network().configure(self._network)
        self._runners: list[UnitRunner | SuperResolveRunner] = []
        fence = Fence.of(options.lease, options.storage_options)
        for url in urls:
            # The frozen plan comes from the store itself: a restarted actor finds it there too.
            (text,) = CubeStore.stored_plans(url, storage_options=options.storage_options)
            plan = Plan.from_json(text)
            store = CubeStore.open(url, storage_options=options.storage_options, fence=fence)
            self._runners.append(_runner(plan, store, options, device, run_id, busy))
        self._metrics = ActorMetrics(run_id, busy, lambda: shared_network().retries.total())

    def ready(self) -> Place:
        """Answered once the encoder is loaded: where it is."""
        return here()

    def heard(self) -> tuple[str, ...]:
        """What was logged since the last answer."""
        return self._lines.take()

    def share(self, among: int) -> None:
        """Take a part of the run's limit on requests, now that so many actors share it."""
        shared_network().configure(self._network.shared(among))

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        """Do one unit; its receipt as one line of JSON, and what was logged since the last."""
        with of_unit(unit.key):
            receipt = self._runners[cube].run(unit)
            for window in receipt.windows:
                if window.state in (State.READ_FAILED, State.ENCODE_FAILED):
                    event(
                        "window_failed", level=logging.WARNING, row=window.row, col=window.col,
                        state=window.state.label, reason=window.reason, item=window.item, asset=window.asset,
                    )  # fmt: skip
            if receipt.dark:
                event("windows_dark", level=logging.WARNING, windows=dict(receipt.dark))
            event(
                "unit_done", cube=cube, seconds=round(receipt.seconds, 3), bytes_in=receipt.bytes_in,
                bytes_out=receipt.bytes_out, windows=by_state(receipt),
            )  # fmt: skip
        return receipt.to_json(), self._lines.take()


def _runner(
    plan: Plan, store: CubeStore, options: EngineOptions, device: str, run_id: str, busy: BusyClock
) -> UnitRunner | SuperResolveRunner:
    """What does a plan's units: encodes scenes, or makes a finer cube of another."""
    from eocube.products import registry
    from eocube.products.base import models_of
    from eocube.run.memory import fitted
    from eocube.run.unit import UnitRunner

    sources = options.source_options
    if plan.derived is not None:
        from eocube.run.super_resolve_unit import SuperResolveRunner

        return SuperResolveRunner(
            plan, store, threads=options.limits.encode_threads, device=device, storage_options=sources, run_id=run_id,
            busy=busy,
        )  # fmt: skip
    models = models_of(registry.open(plan.product, device), device, plan.numerics)
    limits = fitted(plan, options.limits, memory_limit(), batch=models.batch)
    return UnitRunner(plan, store, models, limits, storage_options=sources, run_id=run_id, busy=busy)


def secrets_of(options: EngineOptions) -> tuple[str, ...]:
    """Values of the storage options that no log may show."""
    return tuple({*redaction.secrets_of(options.storage_options), *redaction.secrets_of(options.source_options)})


def by_state(receipt: Receipt) -> dict[str, int]:
    """Windows of a unit by the name of their state."""
    return {state.label: n for state, n in sorted(Counter(w.state for w in receipt.windows).items())}


def run(
    cubes: Sequence[Cube],
    options: EngineOptions,
    todo: Iterable[tuple[int, WorkUnit]],
    run_id: str,
    *,
    total: int | None = None,
    check: Callable[[], None] | None = None,
    fence: Fence | None = None,
    actor_class: type[Any] = EncodeActor,
) -> RunTally:
    """Do the units of `todo`, (cube index, unit), and log each receipt once its shard is safely written.

    `todo` may be a generator: it is drawn from as actors become free, so that a plan of any length takes the driver
    the memory of the units in flight. Ray is started with the first unit that has data.

    Ctrl-C and SIGTERM end it early with everything finished so far in the log; the tally says so.

    Args:
        cubes: the zones.
        options: how it is spread.
        todo: what is to be done.
        run_id: goes into every receipt, log line and metric.
        total: windows to do, for the progress; None counts them where `todo` is a sequence.
        fence: the driver's lease, which whatever it writes asks; actors have a part of it by `options.lease`.
        check: called before every write to the log and now and then; raises when this driver must stop.
        actor_class: what does the work.

    Raises:
        EocubeError: the target store cannot be written, an actor cannot start, or `check` says so; what was finished
            is logged, as far as `check` allows.
    """
    tally, started = RunTally(), time.monotonic()
    stores = [CubeStore.open(c.url, storage_options=options.storage_options, fence=fence) for c in cubes]
    if total is None and isinstance(todo, Sequence):
        total = sum(windows_in(cubes[k].plan, u) for k, u in todo)
    sink: Sink = FileSink(options.log_dir, run_id) if options.log_dir else StoreSink(stores[0].target, run_id)
    lines = RunLog(run_id, sink, secrets_of(options))
    with Progress(total, quiet=options.quiet) as progress, interruptible(), attached(lines, SaidBy(progress)):
        event("run_started", cubes=[c.url for c in cubes], plans=[c.plan.hash for c in cubes], windows=total)
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
                with ray_session(gpus=options.gpus_per_actor > 0):
                    settle.metrics = DriverMetrics(run_id)
                    pool = ActorPool(
                        starter(cubes, options, run_id, actor_class), actors=options.actors,
                        gpus_per_actor=options.gpus_per_actor, look=settle.look_after, hear=hear,
                        unit_timeout=options.unit_timeout + options.network.patience,
                        sharing=options.network.requests_per_second is not None,
                    )  # fmt: skip
                    try:
                        with shared_network().beside_actors():
                            for ended in pool.map(chain([first], units)):
                                hear(ended.lines)
                                if ended.receipt is not None:
                                    settle(ended.cube, ended.receipt, "done")
                                else:
                                    settle.give_up(ended, cubes[ended.cube].plan, run_id)
                    finally:
                        tally.add_pool(pool.tally)
                        try:
                            settle.metrics.retried("unit", tally.requeued)
                            settle.metrics.publish()
                        except Exception:  # Ray may be on its way down; what was done is in the log
                            log.warning("the last metrics could not be published", exc_info=True)
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

    def give_up(self, ended: Ended, plan: Plan, run_id: str) -> None:
        """Mark a unit that ended its actor every time; one whose earlier receipt holds good windows keeps that one."""
        receipt = unit_receipt(plan, ended.unit, run_id, State.NOT_ATTEMPTED, ended.reason)
        if ended.unit.keep is None:
            self._commits.add(ended.cube, receipt)
        self._progress.add(receipt)
        if self.metrics is not None:
            self.metrics.ended(receipt, "lost")


def starter(cubes: Sequence[Cube], options: EngineOptions, run_id: str, actor_class: type[Any]) -> Start:
    """What the pool starts actors with. On a GPU they take their share of it and spread over the nodes."""
    import ray  # here, not above: `ray_session` sets what Ray reads as it is imported
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    gpu = options.gpus_per_actor > 0
    urls = [c.url for c in cubes]
    actor: Any = ray.remote(actor_class)

    def start(wanted: Wanted) -> Any:
        where: Any = "SPREAD" if wanted.node is None else NodeAffinitySchedulingStrategy(wanted.node, soft=False)
        limits = replace(options.limits, encode_threads=wanted.encode_threads)
        return actor.options(
            num_cpus=ACTOR_CPUS if gpu or wanted.node is not None else 1,
            num_gpus=options.gpus_per_actor if gpu else 0,
            # One more thread than units, so that `heard` is answered while they run. The pool restarts what dies.
            max_concurrency=UNITS_PER_ACTOR + 1, max_restarts=0, scheduling_strategy=where,
            # Ray would keep a record of every unit, in the driver and the head: what the run's log is for.
            enable_task_events=False,
        ).remote(
            urls, replace(options, limits=limits, network=options.network.shared(wanted.among)),
            "cuda" if gpu else "cpu", run_id,
        )  # fmt: skip

    return start


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
