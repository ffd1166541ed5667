"""Ray that cannot be reached, fits not, or does not start: one line that says what to do, exit status 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eocube.run.request import Exit

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
import ray
from eocube.cli import guarded
from eocube.run.ray_session import ray_session

def command():
    with ray_session(gpus=False):
        print("started", ray.nodes()[0]["NodeID"])
    return 0

ray.__version__ = sys.argv[1] or ray.__version__
sys.exit(guarded(command))
"""


def session(version: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A session of its own, begun and ended in a process of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **environment}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, version], env=env, cwd=ROOT, capture_output=True, text=True, timeout=200
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def the_one_line(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == Exit.BAD_INPUT, ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.faults
def test_a_cluster_that_does_not_answer() -> None:
    address = f"127.0.0.1:{free_port()}"
    line = the_one_line(session(RAY_ADDRESS=address))
    assert f"RAY_ADDRESS={address} cannot be used" in line and "refused" in line and "unset RAY_ADDRESS" in line


@pytest.mark.faults
def test_a_cluster_of_another_version(ray_local: Any) -> None:
    address = ray_local.get_runtime_context().gcs_address
    line = the_one_line(session("1.2.3", RAY_ADDRESS=address))
    assert f"RAY_ADDRESS={address} cannot be used" in line and "1.2.3" in line and ray_local.__version__ in line


@pytest.mark.faults
def test_ray_that_cannot_start_here(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)  # too long a path for the sockets that Ray puts there
    line = the_one_line(session(RAY_TMPDIR=str(folder)))
    assert "Ray cannot start on this machine" in line and "/dev/shm" in line and str(folder) in line
