"""The fence: no write of an old term lands, its receipts do not count, and the normal cost is one request."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eocube.errors import LeaseError, StoreError
from eocube.net.objects import Objects
from eocube.run import job as run
from eocube.store import fence as fences
from eocube.store.commit_log import CommitLog
from eocube.store.existing import create_root, root_over
from eocube.store.fence import Conditions, Fence
from eocube.store.lease import Lease, lease_key
from eocube.store.lease_note import LOCK
from eocube.store.receipts import Receipt, State, WindowResult
from eocube.store.store import CubeStore
from tests.faults.killing import plan_of, scene
from tests.faults.sleeping import end_lease

SMALL = (11.500, 48.100, 11.510, 48.106)


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "disk":
        return Objects(tmp_path / "cube.zarr")
    if request.param == "memory":
        return Objects(f"memory://{tmp_path.name}/cube.zarr")
    server = request.getfixturevalue("s3_server")
    return Objects(f"s3://{server.bucket()}/cube.zarr", server.storage_options)


def fenced(target: Objects, fence: Fence) -> Objects:
    return Objects(target.url, target.options, fence=fence)


def taken(target: Objects, run_id: str) -> Lease:
    """The lease, taken from whoever has it and is asleep."""
    end_lease(target)
    lease = Lease(target, run_id)
    lease.acquire()
    return lease


def receipt(sha: str, *, time: int = 0, term: int | None = None) -> Receipt:
    return Receipt(f"t{time:05d}/r0000/c0000", time, (0, 0), (WindowResult(0, 0, State.OK),), sha256=sha, term=term)


def test_a_driver_that_was_taken_over_writes_nothing_more(target: Objects) -> None:
    lease = Lease(target, "a")
    lease.acquire()
    mine = fenced(target, lease)
    mine.put("zarr.json", b"old")
    other = fenced(target, taken(target, "b"))
    other.put("zarr.json", b"the other's")
    for write in (
        lambda: mine.put("zarr.json", b"mine"), lambda: mine.delete("zarr.json"),
        lambda: CommitLog(mine).append([receipt("00")]),
    ):  # fmt: skip
        with pytest.raises(LeaseError, match=r"run b .* took over|changes again"):
            write()
    with pytest.raises(LeaseError):
        mine.tidy(everything=True)
        mine.put("b", b"")
    assert target.get("zarr.json") == b"the other's"
    other.put("b", b"goes on")


def test_an_actor_of_an_old_term_stops_and_its_shard_never_wins(target: Objects) -> None:
    lease = Lease(target, "a")
    lease.acquire()
    actor = Fence.of(lease.to_pass, target.options)
    assert actor is not None
    at_actor = fenced(target, actor)
    at_actor.put("latent/c/0", b"one", fresh=True)
    newer = taken(target, "b")
    at_newer = fenced(target, Fence(target, newer.to_pass))
    at_newer.put("latent/c/0", b"another", fresh=True)
    actor._sure_until = 0.0
    for key in ("latent/c/0", "latent/c/1"):
        with pytest.raises(LeaseError, match=r"run b .* took over"):
            at_actor.put(key, b"late", fresh=True)
    assert (target.get("latent/c/0"), target.get("latent/c/1")) == (b"another", None)
    newer.release()
    at_newer.fence._sure_until = 0.0  # type: ignore[union-attr]
    with pytest.raises(LeaseError, match="its driver has ended"):
        at_newer.put("latent/c/2", b"late")


def test_where_the_clock_was_set_on_the_lease_is_read(target: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused virtual machine: its clock of seconds stood still, the calendar went on."""
    lease = Lease(target, "a")
    lease.acquire()
    mine = fenced(target, lease)
    monkeypatch.setattr(type(lease._note), "left", timedelta(seconds=-5))
    mine.put("a", b"1")  # in doubt, and nobody took over
    monkeypatch.undo()
    other = taken(target, "b")
    monkeypatch.setattr(type(lease._note), "left", timedelta(seconds=-5))
    with pytest.raises(LeaseError, match=r"run b .* took over"):
        mine.put("b", b"2")
    assert other.term == 1 and target.get("b") is None


# -- the log


def test_receipts_of_an_old_owner_behind_a_newer_ones_beginning_do_not_count(target: Objects) -> None:
    log = CommitLog(target)
    log.append([receipt("aa", time=0, term=1), receipt("ab", time=1, term=1)])
    log.begin(2)
    log.append([receipt("ba", time=0, term=2)])
    sealed = log.latest().seal()
    log.append([receipt("cc", time=0, term=1), receipt("cd", time=2, term=1)])  # woke up and had it on its way
    latest = log.latest()
    assert [(r.time, r.sha256) for r in latest] == [(0, "ba"), (1, "ab")]
    assert latest.seal() == sealed and len(log.segments()) == 4
    assert [r.sha256 for r in log.receipts()] == ["aa", "ab", "ba"]
    log.append([receipt("ee", time=3)])  # nobody's term
    assert [r.sha256 for r in log.latest()] == ["ba", "ab", "ee"]


def test_a_segment_carries_the_term_that_it_was_written_under(target: Objects) -> None:
    with Lease(target, "a"):
        pass
    lease = Lease(target, "b")
    lease.acquire()
    CommitLog(fenced(target, lease)).append([receipt("aa"), receipt("bb", time=1, term=0)])
    assert [r.term for r in CommitLog(target).latest()] == [1, 0]


def test_only_who_takes_over_says_so_in_the_log(target: Objects) -> None:
    plan = plan_of(SMALL, [scene(10)])

    def segments_after(lease: Lease) -> int:
        CubeStore.create(target.url, plan, storage_options=target.options, fence=lease)
        CubeStore.create(target.url, plan, storage_options=target.options, fence=lease)
        return len(CommitLog(target).segments())

    with Lease(target, "a") as lease:
        assert segments_after(lease) == 0
    with Lease(target, "b") as lease:
        assert segments_after(lease) == 0
        assert segments_after(taken(target, "c")) == 1


# -- what S3 is asked


@pytest.mark.slow
def test_a_fresh_shard_is_one_request_and_one_that_is_there_is_left(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Objects(f"s3://{s3_server.bucket()}/cube.zarr", s3_server.storage_options)
    with Lease(target, "a") as lease:
        there = fenced(target, lease)
        asked: list[str] = []
        real = there.fs._call_s3

        async def counting(method: str, *args: Any, **how: Any) -> Any:
            asked.append(method)
            return await real(method, *args, **how)

        monkeypatch.setattr(there.fs, "_call_s3", counting)

        def cost(do: Callable[[], None]) -> list[str]:
            asked.clear()
            do()
            return list(asked)

        assert cost(lambda: there.put("latent/c/0", b"1", fresh=True)) == ["put_object"]
        assert cost(lambda: there.put("latent/c/0", b"1", fresh=True)) == ["put_object", "get_object"]
        lease_read = ["get_object"] * 2
        assert cost(lambda: there.put("latent/c/0", b"2")) == ["get_object", *lease_read, "put_object"]
        assert cost(lambda: there.put("latent/c/0", b"2")) == ["get_object"]
        assert cost(lambda: there.delete("latent/c/1")) == ["get_object"]


@pytest.mark.slow
def test_a_write_behind_ones_back_is_looked_at_again_and_written_over(s3_server: Any) -> None:
    """Not a lease's matter: somebody's copy, or an older write of one's own that came late."""
    target = Objects(f"s3://{s3_server.bucket()}/cube.zarr", s3_server.storage_options)
    with Lease(target, "a") as lease:
        there, look = fenced(target, lease), Objects.look
        turns = iter((b"x", b"y"))

        def meanwhile(self: Objects, key: str) -> Any:
            seen = look(self, key)
            if self is there and (data := next(turns, None)) is not None:
                target.put(key, data)
            return seen

        target.put("zarr.json", b"before")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Objects, "look", meanwhile)
            there.put("zarr.json", b"after")
        assert target.get("zarr.json") == b"after"


# -- on disk


def test_a_writer_that_was_stopped_while_it_wrote_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Objects(tmp_path / "cube.zarr")
    lease = Lease(target, "a")
    lease.acquire()
    monkeypatch.setattr(fences, "_LOCK_PATIENCE", 0.0)
    handle = os.open(tmp_path / "cube.zarr" / LOCK, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(LeaseError, match=rf"{LOCK} is locked by a process that does not go on.*continue or end it"):
            fenced(target, lease).put("a", b"")
    finally:
        os.close(handle)
    fenced(target, lease).put("a", b"")


# -- roots and zones


def test_a_zone_and_its_root_share_one_lease(tmp_path: Path) -> None:
    root = str(tmp_path / "cube.zarr")
    zone = f"{root}/utm32"
    create_root(root, ["utm32", "utm33"], {})
    assert root_over(zone) == root and root_over(root) == root and root_over(f"{root}/utm34") == f"{root}/utm34"
    for first, second in ((root, zone), (zone, root), (zone, f"{root}/utm33")):
        with (
            run.holding(first, "a", None),
            pytest.raises(LeaseError, match="being written by run a"),
            run.holding(second, "b", None),
        ):
            pass
    with Lease(Objects(zone), "older"), pytest.raises(LeaseError, match="run older"), run.holding(root, "b", None):
        pass
    with run.holding(zone, "b", None):
        assert not Objects(zone).get(lease_key(1))


def test_a_root_that_another_wrote_over_is_made_again_by_its_own_plan(tmp_path: Path) -> None:
    """What an old owner can do where storage keeps no conditions: the plan and the layout say whose the store is."""
    url, plan = str(tmp_path / "cube.zarr"), plan_of(SMALL, [scene(10)])
    CubeStore.create(url, plan)
    target = Objects(url)
    mine = target.get("zarr.json") or b""
    CubeStore.create(str(tmp_path / "other.zarr"), plan_of(SMALL, [scene(10), scene(15)]))
    target.put("zarr.json", Objects(tmp_path / "other.zarr").get("zarr.json") or b"")
    assert CubeStore.create(url, plan).verify() == [] and target.get("zarr.json") == mine
    layout = json.loads(target.get("commits/layout.json") or b"")
    target.put("commits/layout.json", json.dumps({**layout, "plan_hash": "0"}).encode())
    target.put("zarr.json", Objects(tmp_path / "other.zarr").get("zarr.json") or b"")
    with pytest.raises(StoreError, match="is a store of"):
        CubeStore.create(url, plan)


def test_conditions_are_tried_once_a_run(target: Objects) -> None:
    with Lease(target, "a") as lease:
        s3 = target.url.startswith("s3")
        assert lease.conditions == Conditions(s3, s3) and lease.exact is not s3
        assert datetime.fromisoformat(json.loads(target.get(lease_key(0)) or b"")["expires"]) > datetime.now(UTC)
