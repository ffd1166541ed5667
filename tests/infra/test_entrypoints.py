"""Each RayJob's entrypoint, as infra/kubernetes has it, submitted to a Ray cluster whose head takes no work.

The cluster: a head of no CPUs, as in the manifests, and a worker node that comes up beside it; both on this machine,
with a token. Replaced in an entrypoint, or added to it, are these words and no others:

- buckets `s3://my-bucket/...`: folders; `/etc/eocube/data.yaml`, which names an online catalogue: a file that names the
  demo's;
- the region and dates: the demo's, with `--catalog` for it, as there is no network;
- sizes, so that it takes a minute: a coarser resolution and four bands; small weights and recipes; two steps;
- `eocube` and `/opt/eocube/jobs`, which the image has: this checkout's. GPUs are in other overlays' entrypoints, which
  differ in those words alone (`test_manifests.py`).
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.store.store import CubeStore
from model.training.recipe import RECIPES
from model.weights import load_weights
from tests.eocube.cubes import make_store
from tests.eocube.finer_cubes import make_encoder, make_parent_plan, make_resolver
from tests.faults.test_submit import Head, answers, free_port
from tests.infra.kustomizing import ROOT, job, overlay
from tests.jobs.test_finetune_data_file import data_file
from tests.model.training.batches import TINY
from tests.model.training.eo_vae.test_stage1 import flux

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

REPLACED = {
    "--bbox": [str(v) for v in DEMO_BBOX],
    "--datetime": [DEMO_DATETIME],
    "eocube": [sys.executable, "-m", "eocube.cli"],
    "python": [sys.executable],
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head of no CPUs and a worker of four (and no GPU), with a token."""
    session, home, spill = (tmp_path_factory.mktemp(name) for name in ("r", "home", "spill"))
    port, dashboard = free_port(), free_port()
    env = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(home), "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    env.pop("RAY_ADDRESS", None)
    spec = job(overlay("cpu"), "encode")["spec"]["rayClusterSpec"]
    start = [Path(sys.executable).parent / "ray", "start", "--block", "--object-store-memory=100000000"]
    asked = {**spec["headGroupSpec"]["rayStartParams"], "dashboard-host": "127.0.0.1"}
    asked["object-spilling-directory"] = str(spill)
    head = [
        "--head", *(f"--{key}={value}" for key, value in asked.items()), f"--port={port}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={session}", "--disable-usage-stats",
    ]  # fmt: skip
    # Its address: what the head gives as its own, or the worker is taken for a node of another machine.
    worker = [
        f"--address={socket.gethostbyname(socket.gethostname())}:{port}", "--num-cpus=4",
        f"--object-spilling-directory={spill}", f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    logs = session / "begun.log"
    begun: list[subprocess.Popen[bytes]] = []

    def begin(options: list[str]) -> None:
        with logs.open("ab") as log:
            begun.append(subprocess.Popen([*start, *options], env=env, stdout=log, stderr=log, start_new_session=True))

    try:
        begin(head)
        until, url = time.monotonic() + 240, f"http://127.0.0.1:{dashboard}"
        while not answers(f"{url}/api/version", env):
            assert begun[0].poll() is None and time.monotonic() < until, logs.read_text()[-2000:]
            time.sleep(0.5)
        begin(worker)
        yield Head(url, begun[0].pid, env, home)
        assert begun[1].poll() is None, logs.read_text()[-2000:]
    finally:
        for process in reversed(begun):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def local(name: str, folder: Path, options: Mapping[str, str]) -> list[str]:
    """A job's entrypoint, with what needs its image, a bucket or a network replaced, and the values of `options`."""
    words = shlex.split(job(overlay("cpu"), name)["spec"]["entrypoint"])
    made: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word in ("--bbox", "--datetime"):
            made += [word, *REPLACED[word]]
            at += len(REPLACED[word])
        elif word in options:
            made += [word, options[word]]
            at += 1
        elif word in REPLACED and at == 0:
            made += REPLACED[word]
        else:
            made.append(word.replace("s3://my-bucket", str(folder)).replace("/opt/eocube/jobs", str(ROOT / "jobs")))
        at += 1
    assert set(options) <= set(words), "an option that is to be replaced is there no more"
    return made


def submit(cluster: Head, line: list[str]) -> str:
    """Run it as a job, to its good end; what it said."""
    assert line[0] == sys.executable
    done = cluster.submit(*line[1:])
    said = done.stdout[-4000:] + done.stderr[-1000:]
    assert done.returncode == 0, said
    return said


def test_encode(cluster: Head, demo_catalog: Path, tmp_path: Path) -> None:
    line = local("encode", tmp_path, {})
    submit(cluster, [*line, "--catalog", str(demo_catalog), "--resolution", "20", "--bands", "B02,B03,B04,B08"])
    store = CubeStore.open(str(tmp_path / "munich.zarr"))
    assert any(receipt.complete for receipt in store.log.latest()) and store.verify() == []


def test_super_resolve(cluster: Head, tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "tiny.safetensors")
    make_store(str(tmp_path / "munich-rgbn.zarr"), make_parent_plan(encoder))
    weights = make_resolver(tmp_path / "sr.safetensors", encoder)
    submit(cluster, [*local("super-resolve", tmp_path, {}), "--weights", str(weights), "--steps", "2"])
    store = CubeStore.open(str(tmp_path / "munich-2.5m.zarr"))
    assert any(receipt.complete for receipt in store.log.latest()) and store.verify() == []


def test_distill(cluster: Head, tmp_path: Path) -> None:
    (tmp_path / "flux2").mkdir()
    (tmp_path / "weights").mkdir()
    save_file(flux(TINY), tmp_path / "flux2" / "ae.safetensors")
    document = yaml.safe_load((RECIPES / "published.yaml").read_text()) | {"config": TINY.to_dict()}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(document))
    line = local("distill", tmp_path, {"--recipe": str(tmp_path / "small.yaml")})
    submit(cluster, [*line, "--steps", "2", "--threads", "1"])
    meta = load_weights(tmp_path / "weights" / "distilled.safetensors").meta
    assert meta is not None and meta.name == "distilled" and meta.config == TINY


def test_finetune(cluster: Head, demo_catalog: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    data = data_file(tmp_path / "data.yaml", demo_catalog)
    document = yaml.safe_load((RECIPES / "adapt.yaml").read_text())
    (stage,) = document["stages"]
    document["stages"] = [stage | {"patch": 80, "batch": 2, "loss": {"charbonnier": 1.0}, "ms_ssim_step": None}]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(document))
    line = local("finetune", tmp_path, {"--data": str(data), "--recipe": str(tmp_path / "small.yaml")})
    submit(cluster, [*line, "--steps", "2", "--threads", "1"])
    meta = load_weights(tmp_path / "weights" / "mine.safetensors").meta
    assert meta is not None and meta.name == "mine"


def test_the_manifests_data_file_is_one(demo_catalog: Path, tmp_path: Path) -> None:
    """The config map's data.yaml has the keys of the one that is taken in its place: they differ in values."""
    (files,) = (m["data"] for m in overlay("cpu") if m["kind"] == "ConfigMap")
    shipped = yaml.safe_load(files["data.yaml"])
    tried = yaml.safe_load(data_file(tmp_path / "data.yaml", demo_catalog).read_text())
    assert shipped.keys() == tried.keys() and shipped["split"].keys() == tried["split"].keys()
    assert shipped["sources"][0].keys() <= tried["sources"][0].keys()
