"""The engine around Ray: units of dead actors are done again, deadly ones are left, memory stays bounded."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from eocube.errors import EocubeError, LeaseError, StoreError
from eocube.plan.plan import WorkUnit
from eocube.run import driver as engine
from eocube.run.driver import empty_receipt, interruptible
from eocube.run.local_engine import LocalEngine
from eocube.run.options import Cube, EngineOptions
from eocube.run.placement import Ended, Node, Place, here, placements
from eocube.run.pool import UNITS_PER_ACTOR, ActorPool
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.stub_actors import Mortal, Writer, receipt_of

UNITS = [(0, WorkUnit(0, 0, k)) for k in range(8)]


class Refuses(Mortal):
    """Fails as an actor with other weights on its node does."""

    def __init__(self, *_: Any) -> None:
        raise EocubeError("weights 'nano' on this node are not those of the plan")


class DiesAtBirth(Mortal):
    """Fails as an actor whose driver library crashes does."""

    def __init__(self, *_: Any) -> None:
        os._exit(1)


class FullDisk(Mortal):
    """Fails as an actor whose target is full does."""

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        raise StoreError("no space left on the target")


class Hanging(Mortal):
    """Hangs on a unit as often as the file of its column says: in a wait without end, or with its process stopped."""

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        (self.folder / f"pid-{os.getpid()}").touch()
        hangs = self.folder / str(unit.col)
        if hangs.exists() and (left := int(hangs.read_text())) > 0:
            hangs.write_text(str(left - 1))
            if (self.folder / "stopped").exists():
                os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()
        return receipt_of(unit).to_json(), ()


class Sharing(Mortal):
    """Writes down how many it is told share the limit."""

    def share(self, among: int) -> None:
        with (self.folder / f"told-{os.getpid()}").open("a") as file:
            file.write(f"{among} ")


class Counting(Mortal):
    """Says how many of its units were at work at once, as the row of the receipt's window."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.inside, self.most = 0, 0
        self.lock = threading.Lock()

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        threading.Event().wait(0.01)
        with self.lock:
            self.inside -= 1
        return receipt_of(unit, row=self.most).to_json(), (str(os.getpid()),)


ON_BOTH = pytest.mark.parametrize("engine_name", ["local", pytest.param("ray", marks=pytest.mark.slow)])


@pytest.fixture
def on(engine_name: str, request: pytest.FixtureRequest) -> str:
    """An engine's name; Ray is started where it is that."""
    if engine_name == "ray":
        request.getfixturevalue("ray_local")
    return engine_name


def pool(folder: Path, actor: type[Any], actors: int | None = 2, *, on: str = "ray", **given: Any) -> ActorPool:
    options = EngineOptions(actors=actors, quiet=True)
    if on == "local":
        return ActorPool(LocalEngine([str(folder)], options, "test", actor), **given)
    from eocube.run.ray_engine import RayEngine

    return ActorPool(RayEngine([str(folder)], options, "test", actor), actors=actors, **given)


def done(ended: list[Ended]) -> list[str]:
    return sorted(e.receipt.unit for e in ended if e.receipt is not None)


@pytest.mark.faults
def test_units_of_a_dead_actor_are_done_again(ray_local: object, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("1")
    workers = pool(tmp_path, Mortal)
    ended = list(workers.map(UNITS))
    assert done(ended) == [u.key for _, u in UNITS] and len(ended) == len(UNITS)
    assert workers.tally.lost == [] and workers.tally.deaths == 1
    assert 1 <= workers.tally.requeued <= UNITS_PER_ACTOR


@pytest.mark.faults
def test_a_unit_that_kills_three_times_is_left_and_named(ray_local: object, tmp_path: Path) -> None:
    (tmp_path / "5").write_text("99")
    workers = pool(tmp_path, Mortal)
    ended = list(workers.map(UNITS))
    assert workers.tally.lost == [UNITS[5][1].key]
    assert [e.unit for e in ended if e.receipt is None] == [UNITS[5][1]]
    assert done(ended) == [u.key for _, u in UNITS if u.col != 5]
    assert (tmp_path / "5").read_text() == "96"


@pytest.mark.faults
def test_an_actor_that_hangs_is_ended_and_its_units_are_done_again(
    ray_local: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eocube.run.pool.RECHECK", 0.2)
    (tmp_path / "stopped").touch()
    (tmp_path / "3").write_text("1")
    workers = pool(tmp_path, Hanging, 1, unit_timeout=2.0)
    ended = list(workers.map(UNITS))
    assert done(ended) == [u.key for _, u in UNITS] and len(ended) == len(UNITS)
    assert workers.tally.lost == [] and workers.tally.deaths == 1 and workers.tally.started == 2
    assert 1 <= workers.tally.requeued <= UNITS_PER_ACTOR
    pids = [int(file.name.removeprefix("pid-")) for file in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    _, there = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], 30)
    assert not there, "what hung is gone, though it could not hear that it was to end"


@pytest.mark.faults
def test_a_unit_that_hangs_three_times_is_left_with_the_reason(
    ray_local: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eocube.run.pool.RECHECK", 0.2)
    (tmp_path / "5").write_text("99")
    workers = pool(tmp_path, Hanging, unit_timeout=1.5)
    ended = list(workers.map(UNITS))
    (left,) = (e for e in ended if e.receipt is None)
    assert workers.tally.lost == [UNITS[5][1].key] == [left.unit.key]
    assert "hung" in left.reason and "3 times with this unit" in left.reason
    assert done(ended) == [u.key for _, u in UNITS if u.col != 5]
    assert (tmp_path / "5").read_text() == "96"


@pytest.mark.faults
def test_actors_are_told_how_many_share_the_limit_as_they_come_and_go(ray_local: object, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("1")
    workers = pool(tmp_path, Sharing, sharing=True)
    told: list[list[int]] = []
    for _ in workers.map((0, WorkUnit(0, 0, k % 8)) for k in count()):
        told = [[int(n) for n in file.read_text().split()] for file in tmp_path.glob("told-*")]
        # One is alone after the other's death and one of two again, when that one's successor is there.
        again = [1, 2] in [heard[-2:] for heard in told] and sum(heard[-1:] == [2] for heard in told) >= 2
        if again and workers.tally.deaths:
            break
    workers.close()
    assert workers.tally.deaths == 1 and workers.tally.started == 3
    assert {n for heard in told for n in heard} == {1, 2}


@ON_BOTH
def test_an_actor_that_cannot_start_says_why(on: str, tmp_path: Path) -> None:
    with pytest.raises(EocubeError, match=r"cannot start: .*are not those of the plan"):
        list(pool(tmp_path, Refuses, 1, on=on).map(UNITS))


@pytest.mark.faults
def test_actors_that_die_as_they_start_are_given_up(
    ray_local: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eocube.run.pool.FAILED_STARTS", 2)
    monkeypatch.setattr("eocube.run.pool.RECHECK", 0.2)
    with pytest.raises(EocubeError, match="an encoding actor cannot start"):
        list(pool(tmp_path, DiesAtBirth, 1).map(UNITS))


@ON_BOTH
def test_a_target_that_cannot_be_written_ends_the_run(on: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no space left"):
        list(pool(tmp_path, FullDisk, 1, on=on).map(UNITS))


@ON_BOTH
def test_units_are_drawn_as_actors_become_free_and_bounded_in_each(on: str, tmp_path: Path) -> None:
    drawn = 0

    def endless() -> Iterator[tuple[int, WorkUnit]]:
        nonlocal drawn
        while True:
            drawn += 1
            yield 0, WorkUnit(drawn, 0, 0)

    most, most_ahead = 0, 0
    ended = pool(tmp_path, Counting, 2, on=on).map(endless())
    for counted, unit in enumerate(ended, 1):
        assert unit.receipt is not None
        most = max(most, unit.receipt.windows[0].row)
        most_ahead = max(most_ahead, drawn - counted)
        if counted == 60:
            break
    ended.close()  # type: ignore[attr-defined]
    assert most == UNITS_PER_ACTOR
    assert most_ahead <= 2 * UNITS_PER_ACTOR + 2


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "expected"),
    [
        ("a:8:0 b:8:0", None, 0.0, {"a": 1, "b": 1}),
        ("head:0:0 a:8:0", None, 0.0, {"a": 1}),
        ("head:0:0", None, 0.0, {None: 1}),
        ("a:8:0 b:8:0", 3, 0.0, {"a": 2, "b": 1}),
        ("a:8:0 b:8:0", 1, 0.0, {"a": 1, "b": 0}),
        ("a:8:2 b:8:1", None, 1.0, {None: 3}),
        ("a:8:2 b:8:1", None, 0.5, {None: 6}),
        ("a:8:1", None, 0.3, {None: 3}),
        ("a:8:0", None, 1.0, {None: 1}),
        ("a:8:2", 5, 1.0, {None: 5}),
    ],
)
def test_where_actors_go(nodes: str, actors: int | None, gpus: float, expected: dict[str | None, int]) -> None:
    there = [Node(name, float(cpus), float(has)) for name, cpus, has in (n.split(":") for n in nodes.split())]
    assert dict(placements(there, actors, gpus)) == expected


def test_sigterm_interrupts_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) == before


def test_empty_units_are_logged_as_nodata(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    unit = WorkUnit(0, *next(iter(plan.grid.shards())))
    receipt = empty_receipt(plan, unit, "test")
    wanted = {plan.grid.place_in_status(w) for w in plan.grid.requested_windows()}
    assert {(w.row, w.col) for w in receipt.windows} <= wanted and receipt.windows
    assert {w.state for w in receipt.windows} == {State.NODATA} and receipt.complete


@pytest.fixture
def cube(tmp_path: Path) -> Cube:
    """A store without anything in it yet."""
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    url = str(tmp_path / "cube.zarr")
    CubeStore.create(url, plan)
    return Cube(plan, url)


def units_of(cube: Cube) -> list[tuple[int, WorkUnit]]:
    plan = cube.plan
    return [(0, WorkUnit(t, r, c)) for t in range(len(plan.times)) for r, c in sorted(plan.grid.shards())]


@ON_BOTH
def test_a_run_logs_every_unit_once_and_marks_the_lost(on: str, cube: Cube) -> None:
    todo = units_of(cube)
    tally = engine.run([cube], EngineOptions(engine=on, quiet=True), iter(todo), "r", actor_class=Writer)
    store = CubeStore.open(cube.url)
    assert [r.unit for r in store.log.receipts()] and tally.units == len(todo) and tally.lost == []
    assert sorted(r.unit for r in store.log.receipts()) == sorted(u.key for _, u in todo)
    store.finalise()
    assert store.verify() == []


@pytest.mark.faults
def test_a_lost_unit_is_marked_in_the_store_and_done_by_the_next_run(
    ray_local: object, cube: Cube, tmp_path: Path
) -> None:
    todo = units_of(cube)
    (Path(cube.url) / "kill").write_text(todo[1][1].key)
    options = EngineOptions(actors=1, quiet=True, log_dir=str(tmp_path / "logs"))
    tally = engine.run([cube], options, todo, "first", actor_class=Writer)
    assert tally.lost == [todo[1][1].key] and tally.units == len(todo) - 1 and tally.deaths == 3
    store = CubeStore.open(cube.url)
    (marked,) = (r for r in store.receipts() if not r.complete)
    assert marked.unit == tally.lost[0] and {w.state for w in marked.windows} == {State.NOT_ATTEMPTED}
    assert all("died 3 times" in (w.reason or "") for w in marked.windows)
    assert {r.unit for r in store.log.latest() if r.complete} == {u.key for _, u in todo} - {marked.unit}
    (Path(cube.url) / "kill").unlink()
    again = engine.run([cube], options, [todo[1]], "second", actor_class=Writer)
    assert again.lost == [] and again.units == 1
    assert {r.unit for r in CubeStore.open(cube.url).log.latest() if r.complete} == {u.key for _, u in todo}


@ON_BOTH
def test_a_driver_that_may_not_write_any_more_logs_nothing(on: str, cube: Cube) -> None:
    def refuse() -> None:
        raise LeaseError("another run took over")

    with pytest.raises(LeaseError, match="took over"):
        options = EngineOptions(engine=on, quiet=True)
        engine.run([cube], options, units_of(cube), "r", check=refuse, actor_class=Writer)
    assert list(CubeStore.open(cube.url).log.receipts()) == []


@pytest.mark.slow
def test_an_actor_says_where_it_is(ray_local: Any) -> None:
    place = Place(*ray_local.get(ray_local.remote(here).remote()))
    assert place.node in {n["NodeID"] for n in ray_local.nodes()} and place.pid != os.getpid()
