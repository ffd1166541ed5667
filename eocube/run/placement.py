"""Says where actors go on a Ray cluster's nodes, and names what passes between their pool and those who use it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


def nodes_alive() -> list[Node]:
    """The nodes of the cluster, by id."""
    import ray

    found: Sequence[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sorted(
        Node(n["NodeID"], float(n["Resources"].get("CPU", 0)), float(n["Resources"].get("GPU", 0)))
        for n in found
        if n["Alive"]
    )


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


class Depths(NamedTuple):
    """How full the pool is."""

    flight: int
    """Units with an actor."""
    again: int
    """Units that wait to run alone."""
    ready: int
    """Actors at work."""
    starting: int


Start = Callable[[Wanted], Any]
"""Starts an actor and returns its handle: `ready()` gives its `Place`, `run(cube, unit)` a receipt as JSON and log
lines, `heard()` the log lines alone; `share(among)` says how many actors share the limit on requests."""


@dataclass(slots=True)
class PoolTally:
    """What went wrong and was put right."""

    requeued: int = 0
    deaths: int = 0
    started: int = 0
    lost: list[str] = field(default_factory=list)
