"""Products of another package through the main job: real Ray, killed, gone on with, extended, damaged, repaired."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import eocube
from eocube.demo.catalogue import DEMO_BBOX
from eocube.run.request import Exit
from eocube.store.store import CubeStore
from tests.eocube.products.conftest import install
from tests.eocube.products.toys import HOLD
from tests.faults.test_corrupt import flip

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.faults]
MAY, SUMMER = "2024-05-01/2024-05-31", "2024-05-01/2024-08-31"


def environment(site: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "RAY_USAGE_STATS_ENABLED": "0", **more}


def command(kind: str, catalog: Path, out: Path, when: str, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "jobs" / "encode_region.py"), "--bbox", *map(str, DEMO_BBOX), "--datetime", when,
        "--catalog", str(catalog), "--out", str(out), "--product", kind, "--bands", "B02,B03,B04,B08", *more,
    ]  # fmt: skip


def call(line: list[str], site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, env=environment(site), capture_output=True, text=True, timeout=250)


def killed_while_it_encodes(line: list[str], site: Path, held: Path) -> None:
    """The whole session of a run killed with SIGKILL after some windows of a shard, before it is whole."""
    with (held.parent / f"{held.name}.log").open("w") as log:
        process = subprocess.Popen(
            line, env=environment(site, **{HOLD: str(held)}), stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 200
    while process.poll() is None and not held.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert held.exists() and process.poll() is None, Path(log.name).read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def logged(out: Path) -> dict[str, str | None]:
    return {r.unit: r.sha256 for r in CubeStore.open(str(out)).receipts()}


@pytest.mark.parametrize("kind", ["brightness-codes", "band-means"])
def test_a_foreign_product_goes_the_whole_way(kind: str, demo_catalog: Path, tmp_path: Path) -> None:
    site = install(tmp_path / "site")
    whole, out = tmp_path / "whole.zarr", tmp_path / "cube.zarr"
    done = call(command(kind, demo_catalog, whole, SUMMER), site)
    assert done.returncode == Exit.DONE, done.stderr

    for k, when in enumerate((MAY, SUMMER)):  # gone on with; then extended by the other date, and gone on with again
        killed_while_it_encodes(command(kind, demo_catalog, out, when), site, tmp_path / f"held-{k}")
        assert len(logged(out)) == k
        done = call(command(kind, demo_catalog, out, when), site)
        assert done.returncode == Exit.DONE, done.stderr
    shards = [logged(url) for url in (whole, out)]
    assert shards[0] == shards[1] and len(shards[0]) == 2 and all(shards[0].values())

    array = CubeStore.open(str(out)).array
    damaged = next(p for p in sorted((out / array / "c").rglob("*")) if p.is_file())
    sound = damaged.read_bytes()
    damaged.write_bytes(flip(sound))
    eocube_command = [sys.executable, "-m", "eocube.cli"]
    said = call([*eocube_command, "verify", str(out)], site)
    assert said.returncode == Exit.RETRYABLE and damaged.relative_to(out).as_posix() in said.stdout
    mended = call([*eocube_command, "repair", str(out)], site)
    assert mended.returncode == Exit.DONE, mended.stdout + mended.stderr
    assert damaged.read_bytes() == sound

    values = eocube.open(str(out)).eocube.values()
    both = [ds.eocube.values().values for ds in (eocube.open(str(whole)), eocube.open(str(out)))]
    assert values.sizes["time"] == 2 and np.array_equal(*both, equal_nan=both[0].dtype.kind == "f")
    for verb in ("info", "status"):
        assert call([*eocube_command, verb, str(out)], site).returncode == Exit.DONE
    page = tmp_path / "page.html"
    assert call([*eocube_command, "report", str(out), "--out", str(page)], site).returncode == Exit.DONE
    assert page.stat().st_size > 10_000
