"""The engine around Ray: units of a dying actor are done again, one that always kills is left, Ctrl-C keeps the log."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from eocube.commits import Receipt, State, WindowResult
from eocube.engine import ActorPool, Cube, EngineOptions, empty_receipt, interruptible
from eocube.errors import EocubeError, StoreError
from eocube.plan import WorkUnit
from tests.eocube.cubes import make_plan, make_weights

UNITS = [(0, WorkUnit(0, 0, k)) for k in range(8)]


class MortalActor:
    """Stands in for the encoding actor: its process dies on a unit as often as the file of that unit says."""

    def __init__(self, urls: Any, options: EngineOptions, device: str, run_id: str) -> None:
        self.folder = Path(urls[0])

    def ready(self) -> bool:
        return True

    def run(self, cube: int, unit: WorkUnit) -> str:
        lives = self.folder / str(unit.col)
        if lives.exists() and (left := int(lives.read_text())) > 0:
            lives.write_text(str(left - 1))
            os._exit(1)
        return Receipt(unit.key, unit.time, (unit.row, unit.col), (WindowResult(0, 0, State.OK),)).to_json()


class Refuses(MortalActor):
    """Fails as an actor with other weights on its node does."""

    def __init__(self, *_: Any) -> None:
        raise EocubeError("weights 'nano' on this node are not those of the plan")


class FullDisk(MortalActor):
    """Fails as an actor whose target is full does."""

    def run(self, cube: int, unit: WorkUnit) -> str:
        raise StoreError("no space left on the target")


def pool(folder: Path, actor: type[Any], actors: int = 2) -> ActorPool:
    cube = Cube(None, str(folder))  # type: ignore[arg-type]
    return ActorPool([cube], EngineOptions(actors=actors, quiet=True), len(UNITS), "test", actor)


@pytest.mark.faults
def test_units_of_a_dead_actor_are_done_again(ray_local: object, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("1")
    workers = pool(tmp_path, MortalActor)
    done = [receipt.unit for _, receipt in workers.map(UNITS)]
    assert sorted(done) == [u.key for _, u in UNITS]
    assert workers.lost == []


@pytest.mark.faults
def test_a_unit_that_always_kills_is_left_and_named(ray_local: object, tmp_path: Path) -> None:
    (tmp_path / "5").write_text("99")
    workers = pool(tmp_path, MortalActor)
    done = [receipt.unit for _, receipt in workers.map(UNITS)]
    assert workers.lost == [UNITS[5][1].key]
    assert sorted(done) == [u.key for _, u in UNITS if u.col != 5]


def test_an_actor_that_cannot_start_says_why(ray_local: object, tmp_path: Path) -> None:
    with pytest.raises(EocubeError, match="are not those of the plan"):
        list(pool(tmp_path, Refuses, 1).map(UNITS))


def test_a_target_that_cannot_be_written_ends_the_run(ray_local: object, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no space left"):
        list(pool(tmp_path, FullDisk, 1).map(UNITS))


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
