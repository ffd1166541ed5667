"""Says where workers go on the nodes there are, and names what passes between their pool, its engine and its users."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from eocube.plan.plan import WorkUnit
from eocube.store.receipts import Receipt


class Node(NamedTuple):
    """A node that is alive, and what it has in all."""

    id: str
    cpus: float
    gpus: float


class Place(NamedTuple):
    """Where an actor runs, as it says itself."""

    node: str
    host: str
    pid: int


def here() -> Place:
    """Where this process runs: what an actor's `ready` returns."""
    import ray

    return Place(str(ray.get_runtime_context().get_node_id()), socket.gethostname(), os.getpid())


def placements(nodes: Sequence[Node], actors: int | None, gpus_per_actor: float) -> Counter[str | None]:
    """How many actors go to each node; None counts those that Ray places by their share of a GPU.

    Without a number: one for each share of a GPU that the cluster has, or one a node without GPUs. Nodes with no CPUs
    of their own (a head that is to do no work) get none. At least one is asked for, so that a cluster that scales by
    demand sees some; with a number as many as that are.
    """
    if gpus_per_actor > 0:
        shares = sum(int(n.gpus / gpus_per_actor + 1e-6) for n in nodes)
        return Counter({None: actors or max(1, shares)})
    able = [n.id for n in nodes if n.cpus >= 1]
    if not able:
        return Counter({None: actors or 1})
    number = actors or len(able)
    return Counter({node: number // len(able) + (k < number % len(able)) for k, node in enumerate(able)})


class Ended(NamedTuple):
    """A unit that will not run again: with its receipt, or without one when it ended its actor every time."""

    cube: int
    unit: WorkUnit
    receipt: Receipt | None
    lines: Sequence[str] = ()
    """What the actor logged meanwhile, as JSON lines."""
    reason: str = ""
    """Why there is no receipt."""


class Wanted(NamedTuple):
    """Where one more actor goes."""

    node: str | None
    """None: wherever Ray finds its GPU share, now or when a node is added."""
    encode_threads: int
    among: int
    """Actors that there are to be in all: they share what is allowed to a run."""
    beside: int = 1
    """Actors that there are to be on its node, itself included: they share its memory."""


class Depths(NamedTuple):
    """How full the pool is."""

    flight: int
    """Units with an actor."""
    again: int
    """Units that wait to run alone."""
    ready: int
    """Actors at work."""
    starting: int


class WorkerDiedError(Exception):
    """A worker ended before it answered.

    Args:
        said: what is known of it.
        blameless: whether that was no fault of what it was doing.
        unmade: whether it was an error as it was made, which another one would meet as well.
    """

    def __init__(self, said: str, *, blameless: bool = False, unmade: bool = False) -> None:
        super().__init__(said)
        self.said, self.blameless, self.unmade = said, blameless, unmade


class Engine(Protocol):
    """Where a pool's workers run and how they are asked: on a Ray cluster, or in this process.

    Workers and questions are the engine's own objects, questions hashable. A worker takes `ready()`, which gives its
    `Place`; `run(cube, unit)`, which gives a receipt as JSON and log lines; `heard()`, the log lines alone; and
    `share(among)`, how many workers share the limit on requests.
    """

    apart: bool
    """Whether workers have processes of their own: each with a part of the run's requests, and a log that is sent."""
    parting: str
    """What becomes of a worker that has no answer for too long."""

    def nodes(self) -> list[Node]:
        """The nodes that are alive, by id."""
        ...

    def start(self, wanted: Wanted) -> Any:
        """Start a worker; returns at once."""
        ...

    def ask(self, worker: Any, what: str, *given: Any) -> Any:
        """Ask a worker something; the question, whose answer is to come."""
        ...

    def ended(self, asked: Sequence[Any], patience: float = 0.0) -> list[Any]:
        """Those questions that have an answer; where none has, waits so many seconds for one."""
        ...

    def answer(self, asked: Any) -> Any:
        """The answer to a question that has one. Raises what the worker raised, `WorkerDiedError` where it ended."""
        ...

    def end(self, worker: Any) -> None:
        """End a worker, whatever it is at: nothing of it is written from then on."""
        ...


@dataclass(slots=True)
class PoolTally:
    """What went wrong and was put right."""

    requeued: int = 0
    deaths: int = 0
    started: int = 0
    lost: list[str] = field(default_factory=list)
