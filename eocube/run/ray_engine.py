"""Runs a pool's workers as actors on the nodes of a Ray cluster: each in a process of its own, which Ray may lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eocube.errors import EocubeError
from eocube.run.options import EngineOptions
from eocube.run.placement import Node, Wanted, WorkerDiedError
from eocube.run.pool import UNITS_PER_ACTOR

ACTOR_CPUS = 0.01
"""CPUs that an actor reserves where there is no GPU: it uses a node's all, and must fit beside whatever is there."""


class RayEngine:
    """Actors on a Ray that is initialised. On a GPU they take their share of it and spread over the nodes.

    Args:
        urls: of the cubes.
        options: of the run.
        run_id: of the run.
        actor_class: what does the work; made of the three and a device.
    """

    apart = True
    parting = "was ended"

    def __init__(self, urls: Sequence[str], options: EngineOptions, run_id: str, actor_class: type[Any]) -> None:
        self._urls, self._options, self._run_id = list(urls), options, run_id
        self._actor: Any = ray.remote(actor_class)

    def nodes(self) -> list[Node]:
        """The nodes of the cluster that are alive, by id."""
        return nodes_alive()

    def start(self, wanted: Wanted) -> Any:
        """Start an actor; its handle."""
        options = self._options
        gpu = options.gpus_per_actor > 0
        where: Any = "SPREAD" if wanted.node is None else NodeAffinitySchedulingStrategy(wanted.node, soft=False)
        limits = replace(options.limits, encode_threads=wanted.encode_threads, mates=wanted.beside)
        return self._actor.options(
            num_cpus=ACTOR_CPUS if gpu or wanted.node is not None else 1,
            num_gpus=options.gpus_per_actor if gpu else 0,
            # One more thread than units, so that `heard` is answered while they run. The pool restarts what dies.
            max_concurrency=UNITS_PER_ACTOR + 1, max_restarts=0, scheduling_strategy=where,
            # Ray would keep a record of every unit, in the driver and the head: what the run's log is for.
            enable_task_events=False,
        ).remote(
            self._urls, replace(options, limits=limits, network=options.network.shared(wanted.among)),
            "cuda" if gpu else "cpu", self._run_id,
        )  # fmt: skip

    def ask(self, worker: Any, what: str, *given: Any) -> Any:
        """Call an actor's method; the reference of what it will return."""
        return getattr(worker, what).remote(*given)

    def ended(self, asked: Sequence[Any], patience: float = 0.0) -> list[Any]:
        """The references that are there; where none is, waits so many seconds for one."""
        there, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        if not there and patience > 0:
            there, _ = ray.wait(list(asked), num_returns=1, timeout=patience)
        return list(there)

    def answer(self, asked: Any) -> Any:
        """What a reference holds. Raises what the actor raised; `WorkerDiedError` where its process has ended."""
        try:
            return ray.get(asked)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, EocubeError) else error from None
        except RayError as error:
            lost = isinstance(error, ActorUnavailableError) or (isinstance(error, RayActorError) and error.preempted)
            unmade = isinstance(error, RayActorError) and error.actor_init_failed
            raise WorkerDiedError(str(error), blameless=lost, unmade=unmade) from error

    def end(self, worker: Any) -> None:
        """Kill an actor; its questions have no answer but its death."""
        if ray.is_initialized():  # without it Ray would start a cluster of its own, just to kill in it
            with suppress(Exception):  # dead already, or Ray is going down
                ray.kill(worker)


def nodes_alive() -> list[Node]:
    """The nodes of the cluster that are alive, by id."""
    found: Sequence[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sorted(
        Node(n["NodeID"], float(n["Resources"].get("CPU", 0)), float(n["Resources"].get("GPU", 0)))
        for n in found
        if n["Alive"]
    )
