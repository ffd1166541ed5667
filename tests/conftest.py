"""Fixtures shared by all tests: the real samples, an S3 server that speaks the wire protocol, a quiet Ray."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before anything imports ray: no usage reports, no token in the user's home (the cluster is loopback only).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # Ray would start a cluster for a call that has none
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of the suite's processes has about a core: a second thread of torch or BLAS waits, spinning, for another's.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.local_ray import start_ray

# A shared machine may be slow: no test asserts a time.
settings.register_profile("eocube", deadline=None)
settings.load_profile("eocube")

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of specifications, golden vectors and real samples beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (specifications, golden vectors and real samples), which is not here")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def catalog_json(shared_dir: Path) -> Path:
    """The static STAC catalogue of three real places, S2L2A and S1RTC."""
    return shared_dir / "data" / "catalog" / "catalog.json"


@pytest.fixture(scope="session")
def demo_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo scenes, written once a session: the path of their catalog.json."""
    from eocube.demo.catalogue import make_demo

    return make_demo(tmp_path_factory.mktemp("demo-scenes"))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """A Ray of two CPUs for the whole session, without dashboard; yields the `ray` module."""
    import ray

    already = ray.is_initialized()
    if not already:
        start_ray()
    yield ray
    if not already:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server and how to reach it."""

    endpoint: str  # "http://127.0.0.1:port"
    storage_options: dict[str, Any]  # for fsspec and s3fs

    def bucket(self) -> str:
        """Create an empty bucket of a fresh name and return the name."""
        import s3fs

        name = f"eocube-{uuid.uuid4().hex[:12]}"
        s3fs.S3FileSystem(**self.storage_options, skip_instance_cache=True).mkdir(name)
        return name


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """moto's S3 over real HTTP on a free port; the credentials are in the environment while it runs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.delenv("AWS_PROFILE", raising=False)
    try:
        yield S3Server(endpoint, {"client_kwargs": {"endpoint_url": endpoint}, "key": "testing", "secret": "testing"})
    finally:
        patch.undo()
        server.stop()
