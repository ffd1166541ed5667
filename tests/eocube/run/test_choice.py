"""Which engine a run takes: this process for a small job on one machine, Ray wherever something asks for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from eocube.errors import InputError
from eocube.run.choice import LOCAL_WINDOWS, check_engine, choose

SMALL = LOCAL_WINDOWS


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine without GPUs, whatever this one is and other tests have started."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_a_small_job_on_one_machine_is_done_here() -> None:
    assert choose("auto", None, 0.0, SMALL).engine == "local"
    assert choose("auto", None, 0.0, SMALL + 1) == ("ray", f"more than {LOCAL_WINDOWS} windows")
    assert choose("auto", None, 0.0, None).engine == "ray", "a job of unknown size may be any"
    assert choose("ray", None, 0.0, 1) == ("ray", "as asked")
    assert choose("local", None, 0.0, None, died=True) == ("local", "as asked")


def test_where_the_run_before_died_units_are_set_apart() -> None:
    assert choose("auto", None, 0.0, 1, died=True) == ("ray", "the run before died")


@pytest.mark.parametrize("actors", [1, 4])
def test_actors_by_number_are_actors(actors: int) -> None:
    assert choose("auto", actors, 0.0, 1) == ("ray", f"--actors {actors} asks for actors")


@pytest.mark.parametrize(
    ("gpus", "here", "engine"), [(1.0, 1, "local"), (1.0, 4, "ray"), (1.0, 0, "ray"), (0.5, 1, "ray")]
)
def test_gpus(gpus: float, here: int, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    assert choose("auto", None, gpus, 1).engine == engine


def test_a_cluster_and_a_session_in_place_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    assert choose("auto", None, 0.0, 1) == ("ray", "this process has a Ray session")
    assert choose("local", None, 0.0, 1).engine == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert choose("auto", None, 0.0, 1) == ("ray", "RAY_ADDRESS=10.0.0.1:6379 names a cluster")


def test_what_local_cannot_do_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_engine("local", 1, 0.0)
    with pytest.raises(InputError, match="--actors 2 asks for actors: leave one out"):
        check_engine("local", 2, 0.0)
    with pytest.raises(InputError, match=r"--gpus-per-actor 0\.5 shares GPUs"):
        check_engine("local", None, 0.5)
    with pytest.raises(InputError, match="there are 0 GPUs here"):
        check_engine("local", None, 1.0)
    with pytest.raises(InputError, match="--engine: no 'here', there is auto, local, ray"):
        check_engine("here", None, 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match=r"RAY_ADDRESS=10[.]0[.]0[.]1:6379 names"):
        check_engine("local", None, 0.0)
