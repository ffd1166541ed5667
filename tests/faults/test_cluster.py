"""Several nodes: one is killed mid-run, some come and go, GPUs are shared; and a job through `ray job submit`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eocube.encode import Exit
from eocube.store import LatentStore

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


def run_on_cluster(scenario: str, folder: Path) -> dict[str, Any]:
    """What `cluster_run` finds."""
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.cluster_run", scenario, str(folder)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=390,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def nothing_lost_nothing_twice(found: dict[str, Any]) -> None:
    assert found["logged"] == found["different"] == found["units"]
    assert found["lost"] == [] and found["findings"] == []


def test_nodes_come_and_one_is_killed_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    found = run_on_cluster("elastic", tmp_path)
    nothing_lost_nothing_twice(found)
    order = [line["node"] for line in found["located"]]
    assert len(set(order[:8])) == 1  # one node is all there was
    assert len(set(order)) == 3  # the pool grew with the cluster
    assert len(set(order[-30:])) == 2  # and shrank with it
    assert len(found["started"]) == len(set(found["started"])) == 3  # those that are left had an actor each already
    assert found["deaths"] == 1 and 1 <= found["requeued"] <= 2
    assert found["runs"] == ["cluster"]


def test_actors_share_gpus_and_spread(tmp_path: Path) -> None:
    found = run_on_cluster("gpus", tmp_path)
    nothing_lost_nothing_twice(found)
    actors = {line["actor"]: line["node"] for line in found["located"]}
    assert sorted(Counter(actors.values()).values()) == [2, 2, 2]  # two halves of one GPU on each of three nodes
    assert all(line["gpus"] == ["0"] for line in found["located"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_the_job_runs_unchanged_under_ray_job_submit(
    tmp_path: Path, demo_catalog: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from eocube.demo import DEMO_BBOX, DEMO_DATETIME

    session = tmp_path_factory.mktemp("r")  # short: Ray puts sockets below it
    dashboard, out = free_port(), tmp_path / "cube.zarr"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    env = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    env.pop("RAY_ADDRESS", None)
    bin_folder = Path(sys.executable).parent
    head = subprocess.Popen(
        [bin_folder / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
         f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
         f"--dashboard-agent-listen-port={free_port()}",  # its own, or no job can be taken beside another Ray
         f"--temp-dir={session}",
         "--object-store-memory=100000000", "--disable-usage-stats"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{dashboard}/api/version", env):
            assert head.poll() is None and time.monotonic() < until, "the cluster did not come up"
            time.sleep(0.5)
        command = [
            bin_folder / "ray", "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--",
            sys.executable, str(ROOT / "jobs" / "encode_region.py"), "--bbox", *(str(v) for v in DEMO_BBOX),
            "--datetime", DEMO_DATETIME, "--sensor", "S2L2A", "--catalog", str(demo_catalog), "--out", str(out),
        ]  # fmt: skip
        while True:
            job = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
            if "No available agent" not in job.stderr or time.monotonic() > until:
                break
            time.sleep(1)  # the head answers before it can take jobs
        assert job.returncode == Exit.DONE, job.stdout[-3000:] + job.stderr[-1000:]
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
    store = LatentStore.open(str(out))
    assert store.done_units() and store.verify() == []
    assert not (tmp_path / ".ray" / "auth_token").exists()


def answers(url: str, env: dict[str, str]) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {env.get('RAY_AUTH_TOKEN', '')}"})
    try:
        with urllib.request.urlopen(request, timeout=2):
            return True
    except OSError:
        return False
