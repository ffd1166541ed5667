"""A run over a network that fails one request in ten: the same bytes as over a calm one, and no secret left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from eocube.store.store import CubeStore
from tests.faults.cog_server import CogServer
from tests.faults.conftest import ProxiedS3, ProxyFactory
from tests.faults.proxy import FaultProxy, Faults

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
KEY, SECRET = "AKIATESTONLY00000001", "never-to-be-seen-3f9c"
PASSWORD, SIGNATURE = "pass-never-to-be-seen", "sig-never-to-be-seen"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where a run's Ray keeps its logs; a short path, since sockets lie there too."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def encode(out: str, catalog: str, endpoint: str, ray_folder: Path) -> subprocess.CompletedProcess[str]:
    """A small region through the command line, its secrets given in all the ways there are."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    environment.update(
        AWS_DEFAULT_REGION="us-east-1", RAY_TMPDIR=str(ray_folder), HOME=str(ray_folder), RAY_USAGE_STATS_ENABLED="0",
        RAY_raylet_start_wait_time_s="200",  # on a machine that does other things too
    )  # fmt: skip
    return subprocess.run(
        [
            sys.executable, str(ROOT / "jobs" / "encode_region.py"), "--bbox", "9.055", "48.630", "9.085", "48.648",
            "--datetime", "2024-05-01/2024-08-31", "--bands", "B02,B03,B04,B08", "--catalog", catalog, "--out", out,
            "--storage-options", f"key={KEY}", f"secret={SECRET}", f"endpoint_url={endpoint}",
            "--engine", "ray",
        ],
        env=environment, capture_output=True, text=True, timeout=280, cwd=ray_folder,
    )  # fmt: skip


def leaves_no_secret(where: str, data: bytes) -> None:
    for secret in (KEY, SECRET, PASSWORD, SIGNATURE):
        assert secret.encode() not in data, f"{secret} is in {where}"


@pytest.mark.timeout(600)
def test_a_tenth_of_all_requests_fails_and_nothing_is_different(
    demo_catalog: Path, s3_behind_proxy: ProxiedS3, fault_proxy: ProxyFactory, ray_folder: Path
) -> None:
    s3 = s3_behind_proxy
    direct = s3fs.S3FileSystem(**s3.direct, skip_instance_cache=True)
    with CogServer(demo_catalog.parent) as server:
        sources: FaultProxy = fault_proxy(server.url)
        place = sources.endpoint.removeprefix("http://")
        catalog = f"http://reader:{PASSWORD}@{place}/catalog.json?sig={SIGNATURE}"
        stores: dict[str, dict[str, bytes]] = {}
        for name, share in (("calm", 0.0), ("rough", 0.1)):
            sources.faults = Faults(share, seed=11, delay_s=0.1)
            s3.proxy.faults = Faults(share, seed=5, delay_s=0.1)
            sources.forget()
            s3.proxy.forget()
            out = f"{s3.bucket}/{name}/cube.zarr"
            ended = encode(f"s3://{out}", catalog, s3.proxy.endpoint, ray_folder)
            assert ended.returncode == 0, ended.stderr[-2000:]
            leaves_no_secret(f"the {name} run's output", (ended.stdout + ended.stderr).encode())
            assert "Unclosed" not in ended.stderr
            if share == 0:
                asked = Counter((one.method, one.path) for one in s3.proxy.seen if "/latent/c/" in one.path)
                assert asked and set(asked.values()) == {1} and {method for method, _ in asked} == {"PUT"}
                assert not s3.proxy.met and not sources.met
            else:
                assert sum(s3.proxy.met.values()) >= 3 and sum(sources.met.values()) >= 3
            direct.invalidate_cache()
            stores[name] = {str(path).removeprefix(out): direct.cat_file(path, start=0) for path in direct.find(out)}
            for path, data in stores[name].items():
                leaves_no_secret(f"{name}{path}", data)
    for path in ray_folder.rglob("*"):
        if path.is_file():
            leaves_no_secret(str(path), path.read_bytes())
    kept = [{k: v for k, v in store.items() if not is_history(k)} for store in stores.values()]
    assert kept[0].keys() == kept[1].keys()
    different = {key: (kept[0][key], kept[1][key]) for key in kept[0] if kept[0][key] != kept[1][key]}
    assert not different
    assert not CubeStore.open(f"s3://{s3.bucket}/rough/cube.zarr", storage_options=s3.direct).verify()


def is_history(key: str) -> bool:
    """What says who, when and how long: receipts and their index, the lease, the run's log."""
    return key.startswith("/commits/") and not key.endswith(("/plan.json", "/layout.json"))
