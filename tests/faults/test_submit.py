"""Jobs through `ray job submit` on one head: an encoding, and a training on two workers of which one is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from eocube.run.request import Exit
from eocube.store.store import CubeStore
from jobs.finetune import Plan, planned, work
from model.training.checkpoint import Store
from model.training.distributed import Team
from model.training.tracking import read_history
from model.weights import load_weights
from tests.model.training.finetuning import short_finetuning

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Head:
    """A running Ray head of two CPUs that takes jobs: its dashboard's URL, and the environment that may talk to it."""

    url: str
    pid: int
    env: Mapping[str, str]
    home: Path

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of a Python command, to its end."""
        ray, until = Path(sys.executable).parent / "ray", time.monotonic() + 120
        line = [str(ray), "job", "submit", "--address", self.url, "--", sys.executable, *command]
        while True:
            job = subprocess.run(line, env=dict(self.env), capture_output=True, text=True, timeout=500)
            if "No available agent" not in job.stderr or time.monotonic() > until:
                return job
            time.sleep(1)  # the head answers before it can take jobs


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head with a token, on ports of its own."""
    session, home = tmp_path_factory.mktemp("r"), tmp_path_factory.mktemp("home")  # short: Ray puts sockets below it
    dashboard = free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    env = {
        **os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(home),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is left running that it should wait for
    }  # fmt: skip
    env.pop("RAY_ADDRESS", None)
    url = f"http://127.0.0.1:{dashboard}"
    process = subprocess.Popen(
        [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
         f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
         f"--dashboard-agent-listen-port={free_port()}",  # its own, or no job can be taken beside another Ray
         f"--temp-dir={session}",
         "--object-store-memory=100000000", "--disable-usage-stats"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not answers(f"{url}/api/version", env):
            assert process.poll() is None and time.monotonic() < until, "the cluster did not come up"
            time.sleep(0.5)
        yield Head(url, process.pid, env, home)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_job_runs_unchanged_under_ray_job_submit(head: Head, tmp_path: Path, demo_catalog: Path) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    out = tmp_path / "cube.zarr"
    job = head.submit(
        str(ROOT / "jobs" / "encode_region.py"), "--bbox", *(str(v) for v in DEMO_BBOX), "--datetime", DEMO_DATETIME,
        "--sensor", "S2L2A", "--catalog", str(demo_catalog), "--out", str(out), "--resolution", "20",
        "--bands", "B02,B03,B04,B08",
    )  # fmt: skip
    assert job.returncode == Exit.DONE, job.stdout[-3000:] + job.stderr[-1000:]
    store = CubeStore.open(str(out))
    assert any(r.complete for r in store.log.latest()) and store.verify() == []
    assert not (head.home / ".ray" / "auth_token").exists()


def train_worker(root: psutil.Process) -> psutil.Process | None:
    """A Ray Train worker below a process."""
    for process in root.children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
    return None


def undisturbed(rank: int, plan: Plan, meeting: str, url: str) -> None:
    """One of two workers of the same run without Ray."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    work(plan, f"{url}-{rank}", Store(f"{url}-{rank}"), Team.here(plan.job.parallel))
    dist.destroy_process_group()


def history(run: str | Path) -> list[dict[str, float]]:
    return [line for line in read_history(str(run)) if "loss" in line]


def test_a_killed_worker_of_two_goes_on_as_if_nothing_had_been(head: Head, tmp_path: Path) -> None:
    """DDP over gloo, each worker with its own share of the patches, made ahead: equal to the last digit to the run
    that nothing happened to, in float32 on one thread each."""
    options = short_finetuning(tmp_path, steps=STEPS, checkpoint_steps=2)
    run = Path(options.storage) / "dove"
    command = (
        str(ROOT / "jobs" / "finetune.py"), "--sensor", str(options.sensor), "--data", options.data,
        "--recipe", str(options.recipe), "--init", str(options.init), "--out", str(options.out), "--name", "dove",
        "--storage", options.storage, "--workers", "2", "--threads", "1",
    )  # fmt: skip
    killed: list[int] = []
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(head.submit, *command)
        while not running.done():
            # Ray's own note of it: a checkpoint counts from then on
            if not killed and (run / "checkpoint_manager_snapshot.json").is_file():
                worker = train_worker(psutil.Process(head.pid))
                if worker is not None:
                    worker.send_signal(signal.SIGKILL)
                    killed.append(worker.pid)
            time.sleep(0.02)
        job = running.result()
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-1000:]
    assert killed and re.search(r"going on from step [2-9]", job.stdout)
    last = max(run.glob("checkpoint_2*"))
    assert {"state.pt", "rank-0000.pt", "rank-0001.pt"} <= {path.name for path in last.iterdir()}
    assert 3 <= len(list(run.glob("checkpoint_2*"))) <= 4  # and perhaps one that was cut short by the kill
    assert list((run / "best").iterdir()) and list(run.glob("events.out.tfevents.*"))
    url, out = str(tmp_path / "calm"), str(tmp_path / "calm.safetensors")
    plan = planned(replace(options, out=out))
    mp.spawn(undisturbed, (plan, str(tmp_path / "meeting"), url), nprocs=2)
    assert [line["step"] for line in history(run)] == list(range(1, STEPS + 1))
    assert history(run) == history(f"{url}-0")
    a, b = (load_weights(path).state_dict() for path in (options.out, out))
    assert all(bool((a[key] == b[key]).all()) for key in a)
    meta = load_weights(options.out).meta
    assert meta is not None and set(meta.sensors) == {"Dove4"}


def answers(url: str, env: Mapping[str, str]) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {env.get('RAY_AUTH_TOKEN', '')}"})
    try:
        with urllib.request.urlopen(request, timeout=2):
            return True
    except OSError:
        return False
