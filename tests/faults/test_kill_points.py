"""Killed at any storage call and run again, a store ends as the undisturbed one; what can be opened is always true."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from eocube.cli import encode_main
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.net.objects import Objects
from eocube.plan.plan import Plan
from eocube.run.request import Exit
from eocube.store.lease import lease_key
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from tests.faults.killing import Death, Killed, Reader, check_readable, drive, objects, plan_of, receipts, scene

SMALL = (11.500, 48.100, 11.518, 48.112)
LOWER = (11.500, 48.100, 11.518, 48.110)
SOUTH_EAST = (11.500, 48.085, 11.540, 48.110)
NORTH_WEST = (11.470, 48.100, 11.518, 48.135)
ALL_ROUND = (11.480, 48.090, 11.535, 48.125)
ROOM = (11.465, 48.080, 11.550, 48.140)
TWO_DAYS, LATER, EARLIER = (10, 15), (10, 15, 20), (5, 10, 12, 15, 20)


def plan(box: Sequence[float], days: Sequence[int], extent: Sequence[float] | None = None) -> Plan:
    return plan_of(box, [scene(d) for d in days], (min(days), max(days)), extent)


@dataclass(frozen=True)
class Story:
    """What is run, one request after the other, on one store; the last is the one that is killed."""

    name: str
    asked: tuple[Plan, ...]


STORIES = [
    Story("a fresh store", (plan(SMALL, TWO_DAYS),)),
    Story("more days", (plan(SMALL, TWO_DAYS), plan(SMALL, EARLIER))),
    Story("more ground south and east", (plan(LOWER, TWO_DAYS), plan(SOUTH_EAST, TWO_DAYS))),
    Story("more ground north and west", (plan(SMALL, TWO_DAYS, ROOM), plan(NORTH_WEST, TWO_DAYS, ROOM))),
    Story("more of both, all round", (plan(SMALL, TWO_DAYS, ROOM), plan(ALL_ROUND, EARLIER, ROOM))),
    Story("more room", (plan(SMALL, TWO_DAYS, ROOM), plan(SMALL, TWO_DAYS, (*ROOM[:1], 48.060, 11.570, ROOM[3])))),
]


def fresh_url() -> str:
    return f"memory://kill-{uuid.uuid4().hex}/cube.zarr"


@dataclass(frozen=True)
class Calm:
    """The undisturbed run: what there was before its last request, how many storage calls that took, what it left."""

    before: dict[str, bytes]
    calls: int
    objects: dict[str, bytes]
    receipts: list[dict[str, Any]]


@pytest.fixture(scope="module", params=STORIES, ids=lambda s: s.name)
def story(request: pytest.FixtureRequest) -> Story:
    found: Story = request.param
    return found


@pytest.fixture(scope="module")
def calm(story: Story) -> Calm:
    url = fresh_url()
    for asked in story.asked[:-1]:
        drive(url, asked)
    before = everything(url)
    with Death().hanging_over() as watch:
        drive(url, story.asked[-1])
    assert check_readable(url)
    assert CubeStore.open(url).verify() == []
    return Calm(before, watch.calls, objects(url), receipts(url))


def everything(url: str) -> dict[str, bytes]:
    target = Objects(url)
    return {key: target.get(key) or b"" for key in target.keys("")}


def copy_of(before: dict[str, bytes]) -> str:
    """A store with these objects: its URL."""
    url = fresh_url()
    target = Objects(url)
    for key, data in before.items():
        target.put(key, data)
    return url


def points(calls: int, seed: int, count: int) -> list[tuple[int, bool]]:
    """Storage calls to die at, the first and last ones among them; half before they take effect, half after."""
    rng = random.Random(seed)
    chosen = {1, 2, calls - 1, calls, *rng.sample(range(1, calls + 1), min(count, calls))}
    return [(at, rng.random() < 0.5) for at in sorted(c for c in chosen if 1 <= c <= calls)]


def dies(url: str, asked: Plan, at: int, after: bool) -> bool:
    """Run until the death; False when the run ended before."""
    try:
        with Death(at, after=after).hanging_over():
            drive(url, asked)
    except Killed:
        # A dead process cannot give its lease back, and on this machine it would be seen to be dead.
        forget_lease(url)
        return True
    return False


def forget_lease(url: str) -> None:
    target = Objects(url)
    for key in target.keys("commits"):
        if key.startswith("commits/lease-"):
            target.delete(key)


@pytest.mark.faults
def test_killed_at_any_storage_call(story: Story, calm: Calm) -> None:
    killed = 0
    for at, after in points(calm.calls, 20261121, 8):
        url = copy_of(calm.before)
        killed += dies(url, story.asked[-1], at, after)
        check_readable(url)
        again = drive(url, story.asked[-1])
        assert objects(url) == calm.objects, (at, after)
        assert receipts(url) == calm.receipts, (at, after)
        assert len(again.reads) == len(set(again.reads))  # no window twice in one run
    assert killed >= 5


@pytest.mark.faults
def test_killed_again_and_again(story: Story, calm: Calm) -> None:
    """A driver that dies every few calls gets there all the same."""
    rng = random.Random(7)
    url = copy_of(calm.before)
    # Half-way in, so that every life gets further than what it takes to look around.
    lives = 0
    while dies(url, story.asked[-1], rng.randint(calm.calls // 2, calm.calls), rng.random() < 0.5):
        check_readable(url)
        lives += 1
        assert lives < 30
    assert lives and objects(url) == calm.objects and receipts(url) == calm.receipts


def test_what_is_logged_is_not_done_again() -> None:
    url = fresh_url()
    asked = STORIES[0].asked[0]
    with Death().hanging_over() as watch:
        whole = drive(fresh_url(), asked, commit_every=1)
    # Finalising takes the last ten calls or so; the units, two calls each, come before.
    with pytest.raises(Killed), Death(watch.calls - 18, after=True).hanging_over():
        drive(url, asked, commit_every=1)
    forget_lease(url)
    logged = sum(len(r["windows"]) for r in receipts(url))
    again = drive(url, asked, commit_every=1)
    assert 0 < logged < len(whole.reads) and len(again.reads) == len(whole.reads) - logged
    assert drive(url, asked).reads == []


def test_an_extended_store_encodes_only_what_is_new() -> None:
    small, large = plan(SMALL, TWO_DAYS, ROOM), plan(ALL_ROUND, EARLIER, ROOM)
    url = fresh_url()
    first = drive(url, small)
    second = drive(url, large)
    assert not set(first.reads) & set(second.reads)
    whole = drive(fresh_url(), large)
    assert sorted(first.reads + second.reads) == sorted(whole.reads)
    assert drive(url, large).reads == []


@pytest.mark.slow
def test_an_extended_store_holds_what_a_fresh_one_holds() -> None:
    url, fresh = fresh_url(), fresh_url()
    boxes = ((LOWER, TWO_DAYS), (SOUTH_EAST, LATER), (ALL_ROUND_AND_SOUTH_EAST, EARLIER))
    for box, days in boxes:
        drive(url, plan(box, days, ROOM))
    drive(fresh, plan(*boxes[-1], ROOM))
    a, b = (xr.open_zarr(u, mask_and_scale=False).sortby("time").load() for u in (url, fresh))
    unsorted = xr.open_zarr(url)
    assert not unsorted.indexes["time"].is_monotonic_increasing and "sortby" in unsorted.time.attrs["comment"]
    xr.testing.assert_identical(a.drop_attrs(), b.drop_attrs())
    assert a.attrs["eocube"]["space_id"] == b.attrs["eocube"]["space_id"]
    assert a.attrs["eocube"]["moments"]["count"] == b.attrs["eocube"]["moments"]["count"]
    assert CubeStore.open(url).verify() == []


ALL_ROUND_AND_SOUTH_EAST = (11.480, 48.080, 11.545, 48.125)


def test_retry_does_the_failed_windows_again_and_no_others() -> None:
    asked = plan(SMALL, TWO_DAYS)
    url, calm_url = fresh_url(), fresh_url()
    drive(calm_url, asked)
    windows = [(w.row, w.col) for w in asked.grid.requested_windows()]
    first = drive(url, asked, reader=Reader(failing=frozenset(windows[1:3])))
    assert CubeStore.open(url).status_counts()[State.READ_FAILED] == 4
    assert drive(url, asked).reads == []
    again = drive(url, asked, retry=[State.READ_FAILED])
    assert sorted({(r, c) for _, r, c in again.reads}) == sorted(windows[1:3]) and len(again.reads) == 4
    assert len(first.reads) == 2 * len(windows)
    assert objects(url) == objects(calm_url) and receipts(url) == receipts(calm_url)


def test_a_shard_that_is_not_the_logged_one_is_encoded_whole() -> None:
    """Killed between writing a shard again and logging it: the windows that were there are not trusted unseen."""
    asked = plan(SMALL, TWO_DAYS)
    url, calm_url = fresh_url(), fresh_url()
    drive(calm_url, asked)
    windows = [(w.row, w.col) for w in asked.grid.requested_windows()]
    drive(url, asked, reader=Reader(failing=frozenset(windows[:1])))
    key = next(k for k in objects(url) if k.startswith("latent/c/0/"))
    Objects(url).put(key, objects(calm_url)[key])
    drive(url, asked, retry=[State.READ_FAILED])
    assert objects(url) == objects(calm_url) and receipts(url) == receipts(calm_url)


@pytest.mark.faults
def test_sigkill_of_the_driver_and_of_an_actor(tmp_path: Path, demo_catalog: Path, ray_local: object) -> None:
    """The real job, real signals: first an actor dies under it, then the driver; the same command ends it.

    The run that ends it, and the calm one, are made in this process, on its Ray: two starts less.
    """
    out, calm = tmp_path / "cube.zarr", tmp_path / "calm.zarr"
    words = [
        "--bbox", *map(str, DEMO_BBOX), "--datetime", DEMO_DATETIME, "--catalog", str(demo_catalog), "--quiet",
        "--resolution", "20", "--bands", "B02,B03,B04,B08", "--engine", "ray", "--out",
    ]  # fmt: skip
    job = Path(__file__).resolve().parents[2] / "jobs" / "encode_region.py"
    run = subprocess.Popen([sys.executable, str(job), *words, str(out)])
    wait_for(lambda: actors_of(run.pid), 120)
    os.kill(actors_of(run.pid)[0], signal.SIGKILL)
    wait_for(lambda: any((out / "latent").rglob("c/*/*/*/*")), 120)
    run.kill()
    assert run.wait(60) == -signal.SIGKILL
    assert (out / lease_key(0)).exists()
    for cube in (out, calm):
        assert encode_main([*words, str(cube)]) == Exit.DONE
    a, b = ({k: v for k, v in objects(str(u)).items() if k.startswith(("latent", "status"))} for u in (calm, out))
    assert a == b and len(a) > 3
    assert CubeStore.open(str(out)).verify() == []


def wait_for(happened: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.1)


def actors_of(driver: int) -> list[int]:
    """Pids of the encoding actors below a driver's own Ray."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()[1:]]
    parents = {int(pid): int(ppid) for pid, ppid, _ in rows}

    def below(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return [int(pid) for pid, _, args in rows if "ray::EncodeActor" in args and below(int(pid))]
