"""A container's memory is that of its control group; who is killed for want of it is told apart from who just died."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eocube.errors import InputError
from eocube.run import pool as pools
from eocube.run.memory import SHARE, actor_bytes, card_bytes, card_memory, fitted
from eocube.run.memory_limit import kills, memory_limit
from eocube.run.options import Limits
from eocube.run.placement import Node, Wanted
from eocube.run.pool import ActorPool
from tests.faults.killing import plan_of, scene

GIB = 2**30


def group(folder: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A stand-in for /proc and /sys/fs/cgroup."""
    proc, mount = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(lines)
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    return proc, mount


def test_the_limit_of_version_2_and_its_parents(tmp_path: Path) -> None:
    files = {"a/b/memory.max": "max\n", "a/memory.max": f"{GIB}\n", "a/memory.events": "low 0\noom 4\noom_kill 3\n"}
    places = group(tmp_path, "0::/a/b\n", files)
    assert memory_limit(*places) == GIB and kills(*places) == 3


def test_the_limit_of_version_1_in_a_container(tmp_path: Path) -> None:
    """The path is the host's, and the mount is the group itself."""
    files = {"memory/memory.limit_in_bytes": f"{2 * GIB}", "memory/memory.oom_control": "under_oom 0\noom_kill 1\n"}
    places = group(tmp_path, "5:cpu:/\n4:memory:/docker/3f\n0::/\n", files)
    assert memory_limit(*places) == 2 * GIB and kills(*places) == 1


def test_no_limit_is_the_machines_own(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": "9223372036854771712"}
    found = memory_limit(*group(tmp_path, "4:memory:/\n", files))
    assert found is not None and found < 2**50 and kills(tmp_path, tmp_path) == 0


def test_an_actor_plans_with_what_its_container_has(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_of((11.500, 48.100, 11.512, 48.108), [scene(10)])
    limits = Limits(encode_threads=4)
    assert fitted(plan, limits, None) == limits == fitted(plan, limits, 64 * GIB)
    tight = int(actor_bytes(plan, replace(limits, read_threads=4, rows=1)) / SHARE)
    less = fitted(plan, limits, tight)
    assert actor_bytes(plan, less) <= SHARE * tight and less.read_threads < limits.read_threads
    said = fitted(plan, replace(limits, memory=int(SHARE * tight)), 64 * GIB)
    assert replace(said, memory=None) == less and fitted(plan, said, None) == said
    with caplog.at_level(logging.WARNING, "eocube"):
        assert fitted(plan, limits, 2**20).read_threads == 1
    assert "give it more, or run fewer actors" in caplog.text


def test_actors_on_one_node_share_its_memory() -> None:
    plan = plan_of((11.500, 48.100, 11.512, 48.108), [scene(10)])
    limits = Limits(encode_threads=4)
    tight = int(actor_bytes(plan, replace(limits, read_threads=4, rows=1)) / SHARE)
    alone, one_of_two = fitted(plan, limits, tight), fitted(plan, replace(limits, mates=2), 2 * tight)
    assert replace(one_of_two, mates=1) == alone
    started: list[Wanted] = []
    engine: Any = SimpleNamespace(apart=True, start=started.append, ask=lambda worker, what: len(started))
    for nodes, gpus, expected in (
        ([Node("a", 8.0, 2.0), Node("b", 8.0, 1.0)], 0.5, [4] * 6),
        ([Node("a", 8.0, 2.0)], 1.0, [2, 2]),
        ([Node("a", 8.0, 0.0), Node("b", 8.0, 0.0)], 0.0, [1, 1]),
    ):
        started.clear()
        engine.nodes = lambda nodes=nodes: nodes
        pool = ActorPool(engine, gpus_per_actor=gpus)
        pool._look()
        assert [wanted.beside for wanted in started] == expected


def test_a_gpu_is_not_planned_beyond_what_an_actor_has_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of((11.500, 48.100, 11.512, 48.108), [scene(10)])
    product, lattice, limits = plan.product, plan.grid.lattice, Limits()
    needs, least = (card_bytes(product, lattice, replace(limits, rows=rows), batch=2) for rows in (None, 1))
    assert least < needs
    assert fitted(plan, limits, 64 * GIB, batch=2, card=int(needs / SHARE) + 2) == limits
    less = fitted(plan, limits, 64 * GIB, batch=2, card=int(needs / SHARE) - 2)
    assert less.rows == 1 and card_bytes(product, lattice, less, batch=2) <= needs
    assert fitted(plan, replace(limits, memory=needs - 1), None, batch=2, card=64 * GIB).rows == 1, "--memory too"
    with pytest.raises(InputError, match=r"of the GPU beside the network, in batches of 2,.*--gpus-per-actor"):
        fitted(plan, limits, 64 * GIB, batch=2, card=int(least / SHARE) - 2)
    assert actor_bytes(plan, limits, batch=2, gpu=True) > actor_bytes(plan, limits, batch=1), "pinned memory counts"

    held: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30 * GIB, 40 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", held.append)
    assert card_memory(1.0) == 30 * GIB and held == []
    assert card_memory(0.5) == 20 * GIB and held == [0.5], "and torch is held to it"


@pytest.mark.parametrize(("counted", "said"), [(1, "EOF"), (0, "The node is running low on memory.")])
def test_an_actor_killed_for_want_of_memory_says_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, counted: int, said: str
) -> None:
    count = [0]
    monkeypatch.setattr(pools, "kills", lambda: count[0])
    monkeypatch.setattr(pools, "memory_limit", lambda: 4 * 10**9)
    engine: Any = SimpleNamespace(end=lambda worker: None)
    pool = ActorPool(engine)
    worker = pools._Worker(SimpleNamespace(), None)
    pool._workers.append(worker)
    count[0] = counted
    with caplog.at_level(logging.WARNING, "eocube"):
        assert "memory ran out" in pool._died(worker, said)
    assert "memory ran out of the 4.0 GB" in caplog.text and "--actors" in caplog.text
    other = pools._Worker(SimpleNamespace(), None)
    pool._workers.append(other)
    assert pool._died(other, "The actor process died: killed by SIGKILL") == ""
