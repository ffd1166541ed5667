"""Several nodes: one is killed mid-run, some come and go, GPUs are shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

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
