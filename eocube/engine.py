"""The engine around Ray: actors that read, encode and write; dispatch, commit log, progress, interruption."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from eocube.commits import Receipt, State, WindowResult
from eocube.errors import EocubeError
from eocube.plan import Plan, WorkUnit
from eocube.progress import Progress
from eocube.store import LatentStore
from eocube.worker import Limits, UnitRunner, now

log = logging.getLogger(__name__)

UNITS_PER_ACTOR = 2
"""Units an actor works on at once: while one encodes, the other reads its first windows or writes its shard."""
COMMIT_EVERY = 2.0
"""Seconds between segments of the commit log: what a kill can cost in work done again."""
START_PATIENCE = 60.0
"""Seconds without a started actor after which the run says what it waits for."""
RESTART_PAUSE = 0.5
"""Seconds between asking whether an actor that died is back."""
ATTEMPTS = 3
"""Times a unit is given to an actor; one that kills its actor this often is left for a later run."""


@dataclass(frozen=True, slots=True)
class Cube:
    """One zone's share of a run: its plan and where its store is."""

    plan: Plan
    url: str


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a run is spread over the machine or cluster."""

    actors: int | None = None
    """None: one a GPU share where there are GPUs, else one a node."""
    gpus_per_actor: float = 0.0
    limits: Limits = field(default_factory=Limits)
    storage_options: Mapping[str, Any] | None = None
    """fsspec options of the target store."""
    source_options: Mapping[str, Any] | None = None
    """fsspec options of the sources."""
    quiet: bool = False


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
    """Units that killed their actor every time."""

    def add(self, receipt: Receipt) -> None:
        """Count one receipt in."""
        self.units += 1
        self.windows.update(w.state for w in receipt.windows)
        self.bytes_in += receipt.bytes_in
        self.bytes_out += receipt.bytes_out


class EncodeActor:
    """Holds the encoder and runs several units at once on threads. Pixels never leave its process."""

    def __init__(self, urls: Sequence[str], options: EngineOptions, device: str, run_id: str):
        from eocube.encoders import load, models_for

        self._runners: list[UnitRunner] = []
        for url in urls:
            # The frozen plan comes from the store itself: a restarted actor finds it there too.
            (text,) = LatentStore.stored_plans(url, storage_options=options.storage_options)
            plan = Plan.from_json(text)
            weights = load(plan.encoding.weights, device)
            if weights.meta.sha256 != plan.encoding.sha256:
                raise EocubeError(
                    f"weights {plan.encoding.weights!r} on this node are not those of the plan "
                    f"({weights.meta.sha256[:12]} instead of {plan.encoding.sha256[:12]})"
                )
            store = LatentStore.open(url, storage_options=options.storage_options)
            self._runners.append(
                UnitRunner(
                    plan, store, models_for(plan, weights, device), options.limits,
                    storage_options=options.source_options, run_id=run_id,
                )
            )  # fmt: skip

    def ready(self) -> bool:
        """Answered once the encoder is loaded."""
        return True

    def run(self, cube: int, unit: WorkUnit) -> str:
        """Do one unit; its receipt as one line of JSON."""
        return self._runners[cube].run(unit).to_json()


@contextmanager
def ray_session(*, gpus: bool) -> Iterator[None]:
    """Ray as it is found: the session in place, the cluster of RAY_ADDRESS, else a private one on this machine."""
    cluster = bool(os.environ.get("RAY_ADDRESS"))
    if "ray" not in sys.modules and not cluster:
        # Ray reads these as it is imported. A token of this run's own keeps other users of the machine out, and leaves
        # none in the home directory, where a later `ray start` would find it and refuse `ray job submit`.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield
        return
    if cluster:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            object_store_memory=128 * 2**20, num_gpus=None if gpus else 0,
        )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def run(cubes: Sequence[Cube], options: EngineOptions, todo: Sequence[tuple[int, WorkUnit]], run_id: str) -> RunTally:
    """Do the units of `todo`, (cube index, unit), and log each receipt once its shard is safely written.

    Ctrl-C and SIGTERM end it early with everything finished so far in the log; the tally says so.

    Raises:
        EocubeError: the target store cannot be written, or an actor cannot start; what was finished is logged.
    """
    tally, started = RunTally(), time.monotonic()
    stores = [LatentStore.open(c.url, storage_options=options.storage_options) for c in cubes]
    log = CommitBuffer(stores)
    total = sum(windows_in(cubes[k].plan, u) for k, u in todo)
    with Progress(total, quiet=options.quiet) as progress, interruptible():
        try:
            busy = []
            for k, unit in todo:
                if unit.empty:
                    receipt = empty_receipt(cubes[k].plan, unit, run_id)
                    log.add(k, receipt)
                    tally.add(receipt)
                    progress.add(receipt)
                else:
                    busy.append((k, unit))
            log.flush()
            if busy:
                with ray_session(gpus=options.gpus_per_actor > 0):
                    pool = ActorPool(cubes, options, len(busy), run_id)
                    for k, receipt in pool.map(busy):
                        log.add(k, receipt)
                        tally.add(receipt)
                        progress.add(receipt)
                        log.flush_if_due()
                    tally.lost = pool.lost
        except KeyboardInterrupt:
            tally.interrupted = True
        finally:
            log.flush()
            tally.seconds = time.monotonic() - started
    return tally


def windows_in(plan: Plan, unit: WorkUnit) -> int:
    """Requested windows of a unit."""
    return sum(plan.grid.requested(w) for w in plan.grid.windows_of_shard(unit.row, unit.col))


def empty_receipt(plan: Plan, unit: WorkUnit, run_id: str) -> Receipt:
    """The receipt of a unit that no scene touches: every requested window has no data."""
    windows = tuple(
        WindowResult(*plan.grid.place_in_status(w), state=State.NODATA)
        for w in plan.grid.windows_of_shard(unit.row, unit.col)
        if plan.grid.requested(w)
    )
    return Receipt(
        unit=unit.key, time=unit.time, shard=(unit.row, unit.col), windows=windows, created=now(), run=run_id,
    )  # fmt: skip


class CommitBuffer:
    """Receipts on their way into the commit logs: written in segments, by the one driver."""

    def __init__(self, stores: Sequence[LatentStore]) -> None:
        self._stores = stores
        self._waiting: dict[int, list[Receipt]] = {}
        self._last = time.monotonic()

    def add(self, cube: int, receipt: Receipt) -> None:
        """Take a receipt whose shard is written."""
        self._waiting.setdefault(cube, []).append(receipt)

    def flush_if_due(self) -> None:
        """Write a segment when the last is `COMMIT_EVERY` seconds old."""
        if time.monotonic() - self._last >= COMMIT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        for cube in list(self._waiting):
            self._stores[cube].commit(self._waiting[cube])
            del self._waiting[cube]
        self._last = time.monotonic()


class ActorPool:
    """Encoding actors with a bounded number of units in flight; units of a dead actor go to another."""

    def __init__(
        self,
        cubes: Sequence[Cube],
        options: EngineOptions,
        units: int,
        run_id: str,
        actor_class: type[Any] = EncodeActor,
    ) -> None:
        import ray  # here, not above: `ray_session` sets what Ray reads as it is imported

        self.lost: list[str] = []
        gpu = options.gpus_per_actor > 0
        nodes = max(1, sum(n["Alive"] for n in ray.nodes()))  # type: ignore[no-untyped-call]
        count = options.actors or self._default_count(options, nodes)
        count = max(1, min(count, units))
        a_node = -(-count // nodes)
        cpus = max(1, int(_resources().get("CPU", 1)) // nodes)
        device = "cuda" if gpu else "cpu"
        limits = replace(options.limits, encode_threads=1 if gpu else max(1, cpus // a_node))
        actor: Any = ray.remote(actor_class)
        actor = actor.options(
            num_cpus=0, num_gpus=options.gpus_per_actor if gpu else 0, max_concurrency=UNITS_PER_ACTOR + 1,
            max_restarts=-1, scheduling_strategy="SPREAD",
        )  # fmt: skip
        urls = [c.url for c in cubes]
        self._actors: list[Any] = [
            actor.remote(urls, replace(options, limits=limits), device, run_id) for _ in range(count)
        ]

    @staticmethod
    def _default_count(options: EngineOptions, nodes: int) -> int:
        if options.gpus_per_actor > 0:
            return max(1, int(_resources().get("GPU", 0) / options.gpus_per_actor))
        return nodes

    def _wait_for_one(self) -> None:
        """Return once an actor has loaded its encoder; EocubeError, in one line, when one fails to start."""
        import ray
        from ray.exceptions import RayActorError

        waiting = [a.ready.remote() for a in self._actors]
        while True:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=START_PATIENCE)
            if ready:
                break
            have = ", ".join(f"{k} {v:g}" for k, v in sorted(_resources().items()) if k in ("CPU", "GPU"))
            log.warning("no actor has started in %.0f s: the cluster has %s", START_PATIENCE, have)
        try:
            ray.get(ready[0])
        except RayActorError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            raise EocubeError(f"an encoding actor cannot start: {last.strip()}") from None

    @staticmethod
    def _answers(ref: Any) -> bool:
        """Whether an actor that died is back."""
        import ray
        from ray.exceptions import RayActorError

        try:
            return bool(ray.get(ref))
        except RayActorError:
            return False

    def map(self, todo: Sequence[tuple[int, WorkUnit]]) -> Iterator[tuple[int, Receipt]]:
        """Receipts with their cube's index, as units finish."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        self._wait_for_one()
        queue = deque((k, unit, 0) for k, unit in todo)
        flight: dict[Any, tuple[int, WorkUnit, int, int, int]] = {}
        restarting: dict[Any, int] = {}
        load = [0] * len(self._actors)
        try:
            while queue or flight:
                free = [at for at in range(len(load)) if at not in restarting.values()]
                # A unit that was there when an actor died runs alone the next time: then it is known who kills.
                while queue and free:
                    share = UNITS_PER_ACTOR if queue[0][2] else 1
                    at = min(free, key=load.__getitem__)
                    if load[at] + share > UNITS_PER_ACTOR:
                        break
                    k, unit, tried = queue.popleft()
                    load[at] += share
                    flight[self._actors[at].run.remote(k, unit)] = (k, unit, tried, at, share)
                ready, _ = ray.wait([*flight, *restarting], num_returns=1, timeout=1.0)
                for ref in ready:
                    if ref in restarting:
                        at = restarting.pop(ref)
                        if not self._answers(ref):
                            time.sleep(RESTART_PAUSE)
                            restarting[self._actors[at].ready.remote()] = at
                        continue
                    k, unit, tried, at, share = flight.pop(ref)
                    load[at] -= share
                    try:
                        yield k, Receipt.from_json(ray.get(ref))
                    except RayTaskError as error:
                        raise error.cause if isinstance(error.cause, EocubeError) else error from None
                    except RayActorError:
                        if tried + 1 < ATTEMPTS:
                            queue.append((k, unit, tried + 1))
                        else:
                            self.lost.append(unit.key)
                        if at not in restarting.values():
                            restarting[self._actors[at].ready.remote()] = at
        finally:
            for handle in self._actors:
                ray.kill(handle)


def _resources() -> dict[str, float]:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


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
