"""Chooses a run's engine: its one worker in this process, or actors on Ray."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from eocube.errors import InputError
from eocube.run.request import one_of

ENGINES = ("auto", "local", "ray")
LOCAL_WINDOWS = 1000
"""Windows that `auto` does in this process at most: beyond them a run lasts long enough for Ray's start not to matter,
and for an actor that dies to be worth replacing."""


class Choice(NamedTuple):
    """An engine, and why."""

    engine: str
    """local or ray."""
    why: str


def choose(
    engine: str, actors: int | None, gpus_per_actor: float, windows: int | None, *, died: bool = False
) -> Choice:
    """The engine of a run. `auto` is local where nothing speaks for Ray.

    Args:
        engine: one of `ENGINES`.
        actors: as asked for.
        gpus_per_actor: share of a GPU of each, 0 for none.
        windows: to do; None where that is not known.
        died: whether the run before ended without a word: what it died of may be in a source, and would be met again.

    Raises:
        InputError: local is asked for, and so is something that it cannot do.
    """
    if engine == "ray":
        return Choice("ray", "as asked")
    elsewhere = more_than_one_place(actors, gpus_per_actor)
    if engine == "local":
        if elsewhere is not None and elsewhere.forbids:
            raise InputError(f"--engine local runs one worker in this process, and {elsewhere.said}: leave one out")
        return Choice("local", "as asked")
    if elsewhere is not None:
        return Choice("ray", elsewhere.said)
    if windows is None or windows > LOCAL_WINDOWS:
        return Choice("ray", f"more than {LOCAL_WINDOWS} windows")
    if died:
        return Choice("ray", "the run before died")
    return Choice("local", "a small job on one machine")


def check_engine(engine: str, actors: int | None, gpus_per_actor: float) -> None:
    """InputError for an engine that there is none of, or that cannot do what else is asked for."""
    choose(one_of(engine, ENGINES, "--engine"), actors, gpus_per_actor, None)


class _Elsewhere(NamedTuple):
    said: str
    forbids: bool
    """Whether local cannot be meant beside it."""


def more_than_one_place(actors: int | None, gpus_per_actor: float) -> _Elsewhere | None:
    """What asks for Ray: a cluster, actors by number, GPUs that are shared or several. None where nothing does."""
    if address := os.environ.get("RAY_ADDRESS"):
        return _Elsewhere(f"RAY_ADDRESS={address} names a cluster", True)
    if actors is not None:
        return _Elsewhere(f"--actors {actors} asks for actors", actors > 1)
    if gpus_per_actor > 0:
        import torch

        here = torch.cuda.device_count()
        if gpus_per_actor != 1:
            return _Elsewhere(f"--gpus-per-actor {gpus_per_actor:g} shares GPUs out among actors", True)
        if here != 1:
            return _Elsewhere(f"there are {here} GPUs here", here == 0)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return _Elsewhere("this process has a Ray session", False)
    return None
