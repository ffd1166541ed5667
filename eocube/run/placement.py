"""The nodes of a Ray cluster: which there are, where a process runs, and how many actors each is to have."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


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
