"""What passes between a pool of actors and those who use it: where actors go, how units end, what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eocube.plan.plan import WorkUnit
from eocube.store.receipts import Receipt


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
