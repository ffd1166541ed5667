"""Carrying a request out: a run that lost its lease to another stops, logs nothing more and finalises nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eocube.errors import LeaseError
from eocube.net.objects import Objects
from eocube.run import job as run
from eocube.run.driver import RunTally
from eocube.run.options import Cube, EngineOptions
from eocube.store.lease import Lease, lease_key
from eocube.store.store import CubeStore
from tests.faults.killing import objects, plan_of, scene


def test_a_run_that_lost_its_lease_finalises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "cube.zarr")
    plan = plan_of((11.500, 48.100, 11.510, 48.106), [scene(10)])
    target, request = Objects(url), SimpleNamespace(retry=(), out=url, mend=False)
    with Lease(target, "run-a") as lease:
        CubeStore.create(url, plan)
        before = objects(url)

        def overtaken(*_: Any, check: Any, **__: Any) -> None:
            check()
            taken = (target.get(lease_key(0)) or b"").replace(b"run-a", b"run-b")
            target.put(lease_key(1), taken)
            lease.renew()
            check()

        monkeypatch.setattr(run, "run_engine", overtaken)
        monkeypatch.setattr(CubeStore, "finalise", lambda self: pytest.fail("finalised without a lease"))
        with pytest.raises(LeaseError, match=r"run-b .* took over"):
            run.carry_out([Cube(plan, url)], request, EngineOptions(), "run-a", lease)  # type: ignore[arg-type]
        assert objects(url) == before
    assert b"run-b" in (target.get(lease_key(1)) or b"") and b"true" not in (target.get(lease_key(1)) or b"")


def test_an_engine_hears_that_the_run_before_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "cube.zarr")
    cube = Cube(plan_of((11.500, 48.100, 11.510, 48.106), [scene(10)]), url)
    request: Any = SimpleNamespace(retry=(), out=url, mend=False)
    heard: list[bool] = []

    def noted(*_: Any, died: bool, **__: Any) -> RunTally:
        heard.append(died)
        return RunTally()

    monkeypatch.setattr(run, "run_engine", noted)
    monkeypatch.setattr("eocube.store.lease_note.is_dead", lambda note: True)
    first = Lease(Objects(url), "run-a")
    first.acquire()  # and never said that it was done
    for name in ("run-b", "run-c"):
        with Lease(Objects(url), name) as lease:
            CubeStore.create(url, cube.plan)
            run.carry_out([cube], request, EngineOptions(), name, lease)
    assert heard == [True, False]
