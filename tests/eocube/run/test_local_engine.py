"""The engine in this process: a hung worker writes no more, Ctrl-C, the whole limit on requests, Ray's very bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eocube.cli import encode_main
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.errors import LeaseError
from eocube.net.network import NetworkLimits, shared_network
from eocube.net.objects import Objects
from eocube.plan.plan import WorkUnit
from eocube.run import driver as engine
from eocube.run import local_engine
from eocube.run.local_engine import LocalEngine, threads_left, usable_cpus
from eocube.run.memory_limit import cpu_limit
from eocube.run.options import Cube, EngineOptions
from eocube.run.pool import ActorPool
from eocube.run.request import Exit
from eocube.run.run_log import event, of_unit
from eocube.store.fence import Fence
from eocube.store.lease import Lease
from eocube.store.store import CubeStore
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.stub_actors import Writer, receipt_of
from tests.faults.killing import objects

ROOT = Path(__file__).resolve().parents[3]
UNITS = [(0, WorkUnit(0, 0, k)) for k in range(6)]


class Stub:
    """What does the work, without any."""

    def __init__(self, urls: Sequence[str], options: EngineOptions, device: str, run_id: str) -> None:
        self.options = options

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        return receipt_of(unit).to_json(), ()


class Hanging(Stub):
    """The first that is made hangs on a unit until it is let go; then it writes, as all do."""

    made = 0
    let_go, late = threading.Event(), list[str]()

    def __init__(self, urls: Sequence[str], options: EngineOptions, device: str, run_id: str) -> None:
        super().__init__(urls, options, device, run_id)
        self.first = self.made == 0
        type(self).made += 1
        self.fence = Fence.of(options.lease)
        self.target = Objects(urls[0], fence=self.fence)

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        hangs = self.first and unit.col == 3
        if hangs:
            self.let_go.wait(60)
        try:
            self.target.put(f"latent/{unit.col}", b"late" if hangs else b"good")
        except LeaseError as error:
            self.late.append(str(error))
            raise
        return super().run(cube, unit)

    def close(self) -> None:
        assert self.fence is not None
        self.fence.end()


def test_a_worker_that_hangs_is_left_alone_and_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eocube.run.pool.RECHECK", 0.05)
    monkeypatch.setattr("eocube.run.pool.TICK", 0.02)
    monkeypatch.setattr(local_engine, "GRACE", 0.05)
    url = str(tmp_path / "cube.zarr")
    with Lease(Objects(url), "run") as lease:
        options = EngineOptions(lease=lease.to_pass)
        pool = ActorPool(LocalEngine([url], options, "run", Hanging), unit_timeout=0.5)
        ended = list(pool.map(UNITS))
        assert sorted(e.receipt.unit for e in ended if e.receipt is not None) == [u.key for _, u in UNITS]
        assert (pool.tally.deaths, pool.tally.started, pool.tally.lost) == (1, 2, [])
        assert threads_left(), "for which the command's end does not wait"
        Hanging.let_go.set()
        while threads_left():
            time.sleep(0.01)
        assert len(Hanging.late) == 1 and "writes no more" in Hanging.late[0]
        assert {Objects(url).get(f"latent/{u.col}") for _, u in UNITS} == {b"good"}


@pytest.fixture
def cube(tmp_path: Path) -> Cube:
    """A store without anything in it yet."""
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    CubeStore.create(str(tmp_path / "cube.zarr"), plan)
    return Cube(plan, str(tmp_path / "cube.zarr"))


def units_of(cube: Cube) -> list[tuple[int, WorkUnit]]:
    plan = cube.plan
    return [(0, WorkUnit(t, r, c)) for t in range(len(plan.times)) for r, c in sorted(plan.grid.shards())]


class Interrupting(Writer):
    """Has the process hear Ctrl-C as the second unit is at work, which goes on until it is over."""

    units = 0

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        type(self).units += 1
        if self.units > 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(2)  # the main thread hears of it, however busy the machine is
            raise LeaseError("ended meanwhile")
        return super().run(cube, unit)


def test_ctrl_c_ends_it_with_what_is_finished_in_the_log(cube: Cube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eocube.run.pool.UNITS_PER_ACTOR", 1)
    todo = units_of(cube)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is begun in the background ignores it
    try:
        tally = engine.run([cube], EngineOptions(engine="local", quiet=True), todo, "a", actor_class=Interrupting)
    finally:
        signal.signal(signal.SIGINT, before)
    store = CubeStore.open(cube.url)
    assert tally.interrupted and tally.units == 1 and len(list(store.receipts())) == 1 and not threads_left()
    again = engine.run([cube], EngineOptions(engine="local", quiet=True), todo[1:], "b", actor_class=Writer)
    assert not again.interrupted and {r.unit for r in store.log.latest()} == {u.key for _, u in todo}


class Telling(Writer):
    """Tells what limits and threads it works under, and of a window that failed."""

    limits: NetworkLimits | None = None

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        type(self).limits = shared_network().limits
        torch.set_num_threads(1)
        with of_unit(unit.key):
            event("window_failed", "window 1 2 failed", level=30)
        return super().run(cube, unit)


def test_the_worker_has_the_runs_whole_limit_and_leaves_the_process_as_it_was(
    cube: Cube, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, threads = shared_network().limits, torch.get_num_threads()
    limits = NetworkLimits(requests_per_second=7.0)
    options = EngineOptions(engine="local", network=limits, log_dir=str(tmp_path / "log"))
    engine.run([cube], options, units_of(cube)[:1], "told", actor_class=Telling)
    assert Telling.limits == limits and limits.own_rate == 7.0, "not a part of it: nobody else asks"
    assert shared_network().limits == before
    assert _threads_of_a_new_thread() == threads == torch.get_num_threads()
    lines = [json.loads(line) for line in (tmp_path / "log" / "told.jsonl").read_text().splitlines()]
    assert lines[0]["engine"] == "local" and lines[-1]["event"] == "run_ended"
    (failed,) = (line for line in lines if line["event"] == "window_failed")
    assert failed["unit"] == units_of(cube)[0][1].key
    assert "failed" not in capsys.readouterr().err, "counted, not told one by one"


def _threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


class Defective(Stub):
    """Has an error of its own."""

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        raise TypeError("a part that was changed")


def test_a_defect_ends_the_run_with_itself(tmp_path: Path) -> None:
    pool = ActorPool(LocalEngine([str(tmp_path)], EngineOptions(), "run", Defective))
    with pytest.raises(TypeError, match="a part that was changed"):
        list(pool.map(UNITS))
    assert pool.tally.requeued == pool.tally.deaths == 0


def test_cores_of_a_container(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (mount / "pod" / "own").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/pod/own\n")
    (mount / "pod" / "own" / "cpu.max").write_text("max 100000\n")
    assert cpu_limit(proc, mount) is None
    (mount / "pod" / "cpu.max").write_text("150000 100000\n")
    assert cpu_limit(proc, mount) == 1.5
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.fixture
def words(demo_catalog: Path) -> list[str]:
    """The demonstration's ground, coarsely."""
    return [
        "--bbox", *map(str, DEMO_BBOX), "--datetime", DEMO_DATETIME, "--catalog", str(demo_catalog), "--quiet",
        "--resolution", "20", "--bands", "B02,B03,B04,B08", "--verify-fraction", "0.5", "--out",
    ]  # fmt: skip


def told(url: Path) -> list[dict[str, Any]]:
    """What the log tells, but for what differs from run to run."""
    found = [json.loads(r.to_json()) for r in CubeStore.open(str(url)).receipts()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "created", "run", "crc32")} for r in found]


@pytest.mark.slow
def test_both_engines_write_the_same_bytes_and_receipts(words: list[str], tmp_path: Path, ray_local: object) -> None:
    here, there = tmp_path / "here" / "cube.zarr", tmp_path / "there" / "cube.zarr"
    for name, out in (("local", here), ("ray", there)):
        assert encode_main([*words, str(out), "--engine", name]) == Exit.DONE
    assert objects(str(here)) == objects(str(there))
    assert told(here) == told(there) and len(told(here)) > 1


@pytest.fixture
def killed(words: list[str], tmp_path: Path) -> Iterator[Path]:
    """A store whose run in one process was killed once a shard was written."""
    out = tmp_path / "cube.zarr"
    command = [sys.executable, str(ROOT / "jobs" / "encode_region.py"), *words, str(out), "--engine", "local"]
    run = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 120
    while run.poll() is None and not any((out / "latent").rglob("c/*/*/*/*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    run.kill()
    run.wait(60)
    yield out


@pytest.mark.faults
def test_killed_it_goes_on_to_the_same_bytes(words: list[str], killed: Path, tmp_path: Path) -> None:
    calm = tmp_path / "calm" / "cube.zarr"
    for out in (killed, calm):
        assert encode_main([*words, str(out), "--engine", "local"]) == Exit.DONE
    assert objects(str(killed)) == objects(str(calm))
    assert CubeStore.open(str(killed)).verify() == []
