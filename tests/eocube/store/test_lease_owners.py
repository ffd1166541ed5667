"""Whose lease it is: who counts as dead, notes that no run wrote, a store removed meanwhile, a zone beside its root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eocube.errors import LeaseError
from eocube.net.objects import Objects
from eocube.store import lease_note
from eocube.store.lease import Lease, lease_key


@pytest.fixture
def target(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "cube.zarr")


def rewrite(target: Objects, **changes: Any) -> None:
    note = json.loads(target.get(lease_key(0)) or b"")
    target.put(lease_key(0), json.dumps({**note, **changes}).encode())


def test_a_process_that_cannot_be_looked_at_is_not_dead(target: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hidepid`: another user's process has no readable /proc/PID/stat, or none at all, and signals are not allowed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        try:
            Lease(target, "run-a").acquire()
            rewrite(target, process=lease_note.process_name(other.pid), host="here")
            real, kill = Path.read_text, os.kill

            hidden: OSError

            def unreadable(path: Path, *args: Any, **kwargs: Any) -> str:
                if path == Path(f"/proc/{other.pid}/stat"):
                    raise hidden
                return real(path, *args, **kwargs)

            def not_permitted(pid: int, signal: int) -> None:
                if pid == other.pid:
                    raise PermissionError(1, "Operation not permitted")
                kill(pid, signal)

            monkeypatch.setattr(Path, "read_text", unreadable)
            monkeypatch.setattr(os, "kill", not_permitted)
            for how in (PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")):
                hidden = how
                with pytest.raises(LeaseError, match="run-a"):
                    Lease(target, "run-b").acquire()
            monkeypatch.undo()
        finally:
            other.communicate(b"\n")
    with Lease(target, "run-b") as second:  # now it is dead, and that can be seen
        assert second.term == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": (datetime.now(UTC) + timedelta(days=365)).isoformat(), "process": ""},
        {"expires": datetime.now().isoformat(), "process": ""},
        {"expires": 5, "process": ""},
        {"expires": "soon", "process": ""},
        {"process": 7},
        {"released": "no"},
        {"owner": None},
    ],
    ids=["a year ahead", "no zone", "a number", "no date", "process", "released", "owner"],
)
def test_a_note_that_no_run_wrote_is_named_with_its_file(target: Objects, changes: dict[str, Any]) -> None:
    Lease(target, "run-a").acquire()
    rewrite(target, **changes)
    with pytest.raises(LeaseError, match=r"cube.zarr/commits/lease-00000000\.json .*remove that object"):
        Lease(target, "run-b").acquire()


@pytest.mark.parametrize("text", ["[]", "null", '{"expires"', "{}", "[" * 100_000], ids=str.__len__)
def test_something_else_in_its_place_is_named_with_its_file(target: Objects, text: str) -> None:
    target.put(lease_key(0), text.encode())
    with pytest.raises(LeaseError, match=r"lease-00000000\.json is damaged"):
        Lease(target, "run-b").acquire()


def test_process_names_that_no_run_wrote_are_not_dead(target: Objects) -> None:
    own = lease_note.process_name().split("/")
    for process in ("/".join([*own[:2], "x", "1"]), "/".join([*own[:2], "1" * 40, "1"]), "a/b", "/".join(own[:3])):
        Lease(target, "run-a").acquire()
        rewrite(target, process=process)
        with pytest.raises(LeaseError, match="run-a"):
            Lease(target, "run-b").acquire()
        shutil.rmtree(target.local or "")


def test_a_store_that_was_removed_ends_its_run_and_stays_removed(target: Objects) -> None:
    lease = Lease(target, "run-a")
    lease.acquire()
    fenced = Objects(target.url, fence=lease)
    fenced.put("a", b"1")
    assert target.local is not None
    shutil.rmtree(target.local)
    with pytest.raises(LeaseError, match="removed"):
        fenced.put("b", b"2")
    lease.renew()
    assert not lease.held and not target.local.exists()


@pytest.mark.slow
def test_a_store_that_was_removed_is_not_made_again_by_the_renewal(s3_server: Any) -> None:
    there = Objects(f"s3://{s3_server.bucket()}/cube.zarr", s3_server.storage_options)
    lease = Lease(there, "run-a")
    lease.acquire()
    there.delete(lease_key(0))
    lease.renew()
    with pytest.raises(LeaseError, match="removed"):
        lease.check()
    assert there.keys("") == []
