"""The lease: one driver a store, taken over when it has expired, lost by an owner that slept, safe under races."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eocube.errors import LeaseError, StoreError
from eocube.net.objects import Objects
from eocube.store.lease import Lease, is_lease, lease_key

LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture(params=["disk", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "disk":
        return Objects(tmp_path / "cube.zarr")
    server = request.getfixturevalue("s3_server")
    return Objects(f"s3://{server.bucket()}/cube.zarr", server.storage_options)


def note(target: Objects, term: int = 0) -> dict[str, Any]:
    data = target.get(lease_key(term))
    assert data is not None
    found: dict[str, Any] = json.loads(data)
    return found


def write(target: Objects, term: int, **changes: Any) -> None:
    target.put(lease_key(term), json.dumps({**note(target, term), **changes}).encode())


def elsewhere(target: Objects, **changes: Any) -> None:
    """Makes the lease of term 0 one of another machine."""
    write(target, 0, host="node7", process="", **changes)


def test_the_second_driver_is_refused_and_told_who_and_until_when(target: Objects) -> None:
    with Lease(target, "run-a"):
        held = note(target)
        with pytest.raises(LeaseError, match=f"run-a of .* until {held['expires']}"):
            Lease(target, "run-b").acquire()
        assert note(target) == held
    assert note(target)["released"]
    with Lease(target, "run-b") as second:
        assert second.held and note(target, 1)["run"] == "run-b"


def test_an_expired_lease_is_taken_over_and_its_owner_stops(target: Objects) -> None:
    first = Lease(target, "run-a", renew=0.05)
    first.acquire()
    elsewhere(target, expires=LONG_AGO)
    with Lease(target, "run-b") as second:
        with pytest.raises(LeaseError, match="run-b"):
            Lease(target, "run-c").acquire()
        thread = threading.Thread(target=first._keep)
        thread.start()
        thread.join(10)
        assert not thread.is_alive() and not first.held
        with pytest.raises(LeaseError, match=r"run-b .* took over"):
            first.check()
        first.release()
        assert second.held
        second.renew()
        second.check()


def test_a_machine_a_little_behind_does_not_take_over(target: Objects) -> None:
    Lease(target, "run-a").acquire()
    just = datetime.now(UTC) - timedelta(seconds=5)
    elsewhere(target, expires=just.isoformat(timespec="seconds").replace("+00:00", "Z"))
    with pytest.raises(LeaseError, match="node7"):
        Lease(target, "run-b").acquire()


def test_of_many_that_find_it_expired_one_gets_it(target: Objects) -> None:
    Lease(target, "run-a").acquire()
    elsewhere(target, expires=LONG_AGO)
    gate = threading.Barrier(8)

    def take(k: int) -> bool:
        gate.wait()
        try:
            Lease(target, f"run-{k}").acquire()
        except LeaseError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1


def test_an_owner_on_this_machine_that_is_dead_is_taken_over_at_once(tmp_path: Path) -> None:
    target = Objects(tmp_path / "cube.zarr")
    code = (
        "import os, sys; from eocube.store.lease import Lease; from eocube.net.objects import Objects;"
        "Lease(Objects(sys.argv[1]), 'killed').acquire(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "cube.zarr")], check=False)
    assert note(target)["run"] == "killed" and not note(target)["released"]
    if not note(target)["process"]:
        pytest.skip("this system does not name its processes")
    with Lease(target, "next"):
        assert note(target, 1)["run"] == "next"


def test_an_owner_that_cannot_renew_stops_before_its_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Objects(tmp_path / "cube.zarr")
    lease = Lease(target, "run-a", term=100.0, margin=15.0)
    lease.acquire()

    def refuse(key: str, data: bytes) -> None:
        raise StoreError("the network is down")

    monkeypatch.setattr(target, "put", refuse)
    with pytest.raises(StoreError, match="network"):
        lease.renew()
    assert lease.held
    lease._deadline -= 86.0
    with pytest.raises(LeaseError, match="could not be renewed in time"):
        lease.check()


def test_a_lost_reply_to_ones_own_create_is_believed_after_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write succeeds, its reply is lost, and the client's own retry finds the object there."""
    target = Objects(f"memory://lease-{tmp_path.name}/cube.zarr")
    real = target.fs.pipe_file

    def lossy(path: str, data: bytes, **options: Any) -> None:
        real(path, data)
        raise FileExistsError(path)

    monkeypatch.setattr(target.fs, "pipe_file", lossy)
    lease = Lease(target, "run-a")
    lease.acquire()
    assert lease.held and note(target)["run"] == "run-a"
    with pytest.raises(LeaseError):
        Lease(target, "run-b").acquire()


def test_a_damaged_lease_is_not_taken_for_a_free_one(target: Objects) -> None:
    Lease(target, "run-a").acquire()
    target.put(lease_key(0), b'{"owner": "')
    with pytest.raises(LeaseError, match=r"lease-00000000.json is damaged"):
        Lease(target, "run-b").acquire()


def test_old_terms_do_not_pile_up(tmp_path: Path) -> None:
    target = Objects(tmp_path / "cube.zarr")
    for k in range(5):
        with Lease(target, f"run-{k}"):
            pass
    assert sum(is_lease(key) for key in target.keys("commits")) == 2
