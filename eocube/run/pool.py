"""Keeps encoding workers wherever an engine has room: placed, watched, replaced; few units in flight on each."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.filesize import decimal

from eocube.errors import EocubeError
from eocube.plan.plan import WorkUnit
from eocube.run.memory_limit import kills, memory_limit
from eocube.run.options import UNIT_TIMEOUT
from eocube.run.placement import Depths, Ended, Engine, Node, Place, PoolTally, Wanted, WorkerDiedError, placements
from eocube.run.run_log import event
from eocube.store.receipts import Receipt

log = logging.getLogger(__name__)

UNITS_PER_ACTOR = 2
"""Units an actor works on at once: while one encodes, the other reads its first windows or writes its shard."""
ATTEMPTS = 3
"""Times a unit is given to an actor; one with which an actor dies or hangs this often is left for a later run."""
START_PATIENCE = 60.0
"""Seconds without a started actor after which the run says what it waits for."""
RECHECK = 2.0
"""Seconds between looks at which nodes there are."""
RESTART_PAUSE = 0.5
"""Seconds before an actor that failed to start is tried again; doubled each time, up to a minute."""
FAILED_STARTS = 5
"""Actors that died one after the other as they started, after which the run gives up."""
_NO_MEMORY = re.compile(r"low on memory|memory monitor|OutOfMemory|killed due to (?:the )?memory", re.IGNORECASE)
TICK = 0.5
"""Seconds that the driver waits for an answer before it looks after other things."""


@dataclass(slots=True, eq=False)
class _Worker:
    handle: Any
    node: str | None
    """The node it was put on, or that it says it runs on."""
    ready: bool = False
    load: int = 0
    """Units in flight, a unit that runs alone counting as all there may be."""
    leaving: bool = False
    """Gets no more units, and goes when it has none."""
    dead: bool = False


@dataclass(slots=True, eq=False)
class _Job:
    cube: int
    unit: WorkUnit
    ends: list[str] = field(default_factory=list)
    """How the actors ended that had it, one entry each."""


class _Flight(NamedTuple):
    """A unit with its actor."""

    worker: _Worker
    job: _Job
    share: int
    since: float


class ActorPool:
    """Actors that follow the cluster as it grows and shrinks, each with a bounded number of units in flight.

    An actor that dies is replaced. Its units run again, each alone on an actor, so that it is known which one kills:
    one that does so `ATTEMPTS` times is left. An actor that takes too long over a unit is ended, and the unit counts
    as if it had killed it. Units of a node that went away are not to blame and just run again.

    Args:
        engine: where actors run, and how they are asked.
        actors: how many; None follows the cluster.
        gpus_per_actor: share of a GPU of each, 0 for none.
        look: called every `RECHECK` seconds, also while no unit ends; what it raises ends the run.
        hear: takes what actors log while their units run (that a host is down and waited for).
        unit_timeout: seconds after which an actor that has not finished a unit is ended.
        sharing: whether actors are told how many they are as that changes.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        actors: int | None = None,
        gpus_per_actor: float = 0.0,
        look: Callable[[Depths], None] | None = None,
        hear: Callable[[Sequence[str]], None] | None = None,
        unit_timeout: float = UNIT_TIMEOUT,
        sharing: bool = False,
    ) -> None:
        self.tally = PoolTally()
        self._engine, self._actors, self._gpus = engine, actors, gpus_per_actor
        self._tell, self._hear = look, hear
        self._unit_timeout, self._sharing = unit_timeout, sharing
        self._asked: dict[Any, _Worker] = {}
        self._workers: list[_Worker] = []
        self._starting: dict[Any, _Worker] = {}
        self._flight: dict[Any, _Flight] = {}
        self._next: deque[_Job] = deque()
        self._alone: deque[_Job] = deque()
        self._more = True
        self._looked = self._may_start = 0.0
        self._pause, self._failed = RESTART_PAUSE, 0
        self._waiting_since = time.monotonic()
        self._kills = kills()

    def map(self, todo: Iterable[tuple[int, WorkUnit]]) -> Iterator[Ended]:
        """Units as they end. `todo` is drawn from as actors become free, never listed; so it may be endless.

        Raises:
            EocubeError: an actor cannot start, or the target cannot be written.
        """
        source = iter(todo)
        try:
            while True:
                self._draw(source)
                if not (self._next or self._alone or self._flight):
                    return
                if time.monotonic() - self._looked >= RECHECK:
                    self._look()
                    yield from self._end_the_hung()
                self._dispatch()
                yield from self._collect()
        finally:
            self.close()

    def close(self) -> None:
        """End every actor."""
        self._sharing = False
        for worker in list(self._workers):
            self._end(worker)

    # -- units to actors

    def _draw(self, source: Iterator[tuple[int, WorkUnit]]) -> None:
        """Have as many units at hand as actors could take now, plus one an actor to come."""
        room = sum(UNITS_PER_ACTOR - w.load for w in self._workers if w.ready) + len(self._starting)
        while self._more and len(self._next) < max(room, 1):
            drawn = next(source, None)
            if drawn is None:
                self._more = False
                return
            self._next.append(_Job(*drawn))

    def _dispatch(self) -> None:
        free = [w for w in self._workers if w.ready and not w.leaving]
        if self._alone and free:
            # One actor is kept clear of other units until it is idle and can take one alone.
            at = min(free, key=lambda w: w.load)
            free.remove(at)
            if at.load == 0:
                self._give(at, self._alone.popleft(), UNITS_PER_ACTOR)
        for load in range(UNITS_PER_ACTOR):
            for worker in free:
                if not self._next:
                    return
                if worker.load == load:
                    self._give(worker, self._next.popleft(), 1)

    def _give(self, worker: _Worker, job: _Job, share: int) -> None:
        worker.load += share
        asked = self._engine.ask(worker.handle, "run", job.cube, job.unit)
        self._flight[asked] = _Flight(worker, job, share, time.monotonic())

    def _collect(self) -> Iterator[Ended]:
        waiting = [*self._flight, *self._starting]
        if not waiting:
            time.sleep(TICK)
            return
        for asked in self._engine.ended(waiting, TICK):
            if asked in self._starting:
                self._started(asked)
            elif (ended := self._answer(asked)) is not None:
                yield ended

    def _answer(self, asked: Any) -> Ended | None:
        worker, job, share, _ = self._flight.pop(asked)
        worker.load -= share
        try:
            line, lines = self._engine.answer(asked)
            ended = Ended(job.cube, job.unit, Receipt.from_json(line), lines)
        except WorkerDiedError as death:
            # Asked before anything else: the node's end is the reason, where it has ended.
            blameless = death.blameless or not self._is_alive(worker.node)
            why = self._died(worker, death.said, blameless)
            return self._again(job, None if blameless else f"its actor died{why}")
        if worker.leaving and worker.load == 0:
            self._end(worker)
        return ended

    def _again(self, job: _Job, end: str | None) -> Ended | None:
        """Have a unit done again; `end` is how its actor ended where that is the unit's fault."""
        if end is None:
            self._next.appendleft(job)
        else:
            job.ends.append(end)
            if len(job.ends) >= ATTEMPTS:
                self.tally.lost.append(job.unit.key)
                reason = " and ".join(f"{how} {n} times with this unit" for how, n in Counter(job.ends).items())
                event(
                    "unit_lost", f"unit {job.unit.key} is left: {reason}", level=logging.WARNING, unit=job.unit.key,
                    cube=job.cube,
                )  # fmt: skip
                return Ended(job.cube, job.unit, None, reason=reason)
            self._alone.append(job)
        self.tally.requeued += 1
        event("unit_requeued", unit=job.unit.key, cube=job.cube, killed=len(job.ends), blameless=end is None)
        return None

    def _end_the_hung(self) -> Iterator[Ended]:
        """End actors that take too long over a unit; that unit is to blame, others that they had just run again."""
        begun = time.monotonic() - self._unit_timeout
        late = [ref for ref, flight in self._flight.items() if flight.since < begun]
        if late:  # what has ended and only waits to be looked at is not late
            there = set(self._engine.ended(late))
            late = [asked for asked in late if asked not in there]
        for worker in {self._flight[ref].worker for ref in late}:
            said = f"had no answer on a unit for {self._unit_timeout:.0f} s and {self._engine.parting}"
            self._died(worker, said, hung=True)
            # Not left to the engine to report: a process that hangs may not even hear that it is to end.
            for ref in [r for r, flight in self._flight.items() if flight.worker is worker]:
                job = self._flight.pop(ref).job
                ended = self._again(job, f"its actor hung for {self._unit_timeout:.0f} s" if ref in late else None)
                if ended is not None:
                    yield ended

    # -- actors to nodes

    def _look(self) -> None:
        """Start the actors that the cluster has room for, let go of those that are too many."""
        self._looked = time.monotonic()
        nodes = self._engine.nodes()
        wanted = placements(nodes, self._actors, self._gpus)
        staying = [w for w in self._workers if not w.leaving]
        have = Counter(self._counted_at(w) for w in staying)
        for worker in sorted(staying, key=lambda w: (w.ready, w.load)):
            at = self._counted_at(worker)
            if have[at] > wanted[at]:
                have[at] -= 1
                worker.leaving = True
                if worker.load == 0:
                    self._end(worker)
        cpus = {n.id: n.cpus for n in nodes}
        sharing = max((int(n.gpus / self._gpus + 1e-6) for n in nodes), default=1) if self._gpus else 1
        for at, number in wanted.items():
            for _ in range(number - have[at]):
                if self._looked >= self._may_start and self._is_needed():
                    threads = 1 if self._gpus or at is None else max(1, int(cpus[at]) // number)
                    beside = min(max(1, sharing), wanted.total()) if at is None else number
                    self._add(Wanted(at, threads, wanted.total(), beside))
        self._wait_patiently(nodes)
        self._listen()
        if self._tell is not None:
            ready = sum(w.ready for w in self._workers)
            self._tell(Depths(len(self._flight), len(self._alone), ready, len(self._starting)))

    def _listen(self) -> None:
        """Take what actors answered to the last question, and ask those again."""
        if self._hear is None or not self._engine.apart:
            return
        if self._asked:
            for asked in self._engine.ended(list(self._asked)):
                del self._asked[asked]
                with suppress(WorkerDiedError):  # its units tell
                    self._hear(self._engine.answer(asked))
        silent = set(self._asked.values())
        idle = [w for w in self._workers if w.ready and w not in silent]
        self._asked.update({self._engine.ask(w.handle, "heard"): w for w in idle})

    def _counted_at(self, worker: _Worker) -> str | None:
        """Actors with a share of a GPU are counted together: Ray sees to it that a node gets no more than it has."""
        return None if self._gpus > 0 else worker.node

    def _is_needed(self) -> bool:
        """Whether another actor would find work: not when fewer units are left than there are actors."""
        return self._more or len(self._workers) < len(self._next) + len(self._alone) + len(self._flight)

    def _add(self, wanted: Wanted) -> None:
        worker = _Worker(self._engine.start(wanted), wanted.node)
        self._workers.append(worker)
        self._starting[self._engine.ask(worker.handle, "ready")] = worker

    def _started(self, asked: Any) -> None:
        worker = self._starting.pop(asked)
        try:
            place = Place(*self._engine.answer(asked))
        except WorkerDiedError as death:
            if worker.dead:
                return
            said = [line for line in death.said.splitlines() if line.strip()][-1].strip()
            gone = worker.node is not None and not self._is_alive(worker.node)
            self._died(worker, said, blameless=gone)
            self._may_start, self._pause = time.monotonic() + self._pause, min(60.0, 2 * self._pause)
            self._failed += not gone
            if not any(w.ready for w in self._workers) and (death.unmade or self._failed >= FAILED_STARTS):
                raise EocubeError(f"an encoding actor cannot start: {said}") from None
            return
        worker.ready, self._pause, self._failed = True, RESTART_PAUSE, 0
        worker.node = worker.node if worker.node is not None and self._gpus == 0 else place.node
        self.tally.started += 1
        event("actor_started", node=place.node[:12], actor_host=place.host, actor_pid=place.pid)
        self._share_out()

    def _died(self, worker: _Worker, said: str, blameless: bool = False, *, hung: bool = False) -> str:
        """Replace an actor; what is known of why it died."""
        if worker.dead:
            return ""
        self.tally.deaths += 1
        why = [line.strip() for line in said.splitlines() if line.strip()][-1:]
        short = "" if hung or blameless else self._for_want_of_memory(said)
        how = said if hung else "went with its node" if blameless else f"died{short}"
        event(
            "actor_died", f"an encoding actor {how}; its units run again",
            level=logging.WARNING, node=(worker.node or "")[:12], error=why[0] if why else "",
        )  # fmt: skip
        self._end(worker)
        self._looked = 0.0
        return short

    def _for_want_of_memory(self, said: str) -> str:
        """What to add where an actor was killed because memory ran out, told by Ray's words or the kernel's count."""
        before, self._kills = self._kills, kills()
        if self._kills == before and not _NO_MEMORY.search(said):
            return ""
        limit = memory_limit()
        has = "" if limit is None else f" of the {decimal(limit)} that this machine or container has"
        return f" as memory ran out{has}: run fewer (--actors), or give more"

    def _end(self, worker: _Worker) -> None:
        """Forget an actor and end it; its units in flight, if any, fail with it and run again."""
        was_ready, worker.dead, worker.ready = worker.ready, True, False
        with suppress(ValueError):
            self._workers.remove(worker)
        for ref in [r for r, w in self._starting.items() if w is worker]:
            del self._starting[ref]
        self._engine.end(worker.handle)
        if was_ready:
            self._share_out()

    def _share_out(self) -> None:
        """Tell the actors at work how many they are, where they share a limit."""
        if self._sharing:
            there = [w for w in self._workers if w.ready]
            for worker in there:
                self._engine.ask(worker.handle, "share", len(there))

    def _is_alive(self, node: str | None) -> bool:
        return node is None or any(n.id == node for n in self._engine.nodes())

    def _wait_patiently(self, nodes: Sequence[Node]) -> None:
        now = time.monotonic()
        if any(w.ready for w in self._workers):
            self._waiting_since = now
        elif now - self._waiting_since > START_PATIENCE:
            self._waiting_since = now
            cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
            log.warning(
                "no actor has started in %.0f s: the cluster has %d nodes, CPU %g, GPU %g; an actor takes %s",
                START_PATIENCE, len(nodes), cpus, gpus, f"{self._gpus:g} GPU" if self._gpus else "a node with CPUs",
            )  # fmt: skip
