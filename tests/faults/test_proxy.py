"""The fault proxy itself: it breaks what it says, a seeded share of it, and passes the rest unharmed."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
import s3fs

from tests.faults.conftest import ProxiedS3
from tests.faults.proxy import LIES, FaultProxy, Faults, Kind

pytestmark = pytest.mark.faults


def get(proxy: FaultProxy, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_faults_all_passes_unharmed(s3_behind_proxy: ProxiedS3) -> None:
    s3 = s3_behind_proxy
    fs = s3fs.S3FileSystem(**s3.options, skip_instance_cache=True)
    data = bytes(range(256)) * 100
    fs.pipe_file(f"{s3.bucket}/a", data)
    assert fs.cat_file(f"{s3.bucket}/a", start=0) == data
    assert s3.proxy.count("PUT", "/a") == 1
    assert not s3.proxy.met


@pytest.mark.parametrize("kind", LIES)
def test_every_kind_of_fault_is_what_it_says(s3_behind_proxy: ProxiedS3, kind: Kind) -> None:
    s3 = s3_behind_proxy
    data = bytes(1000)
    s3fs.S3FileSystem(**s3.direct, skip_instance_cache=True).pipe_file(f"{s3.bucket}/a", data, ACL="public-read")
    s3.proxy.faults = Faults(share=1.0, kinds=(kind,), delay_s=0.01)
    path = f"/{s3.bucket}/a"
    if kind in ("503", "429"):
        assert get(s3.proxy, path)[0] == int(kind)
    elif kind in ("reset", "lost"):
        with pytest.raises(OSError, match=r".*"):
            get(s3.proxy, path)
    elif kind in ("cut", "truncated", "long"):
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            get(s3.proxy, path)
    else:
        assert get(s3.proxy, path) == (200, data[:500] if kind == "short" else data)
    assert s3.proxy.met == {kind: 1}


def test_the_share_is_met_and_follows_from_the_seed() -> None:
    def drawn(seed: int) -> list[Kind | None]:
        faults = Faults(share=0.1, seed=seed)
        return [faults.draw("GET", f"/k{k}", "", turn) for k in range(500) for turn in range(4)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 150 < sum(kind is not None for kind in drawn(1)) < 250


def test_an_outage_refuses_so_many_requests_and_the_hook_sees_each(s3_behind_proxy: ProxiedS3) -> None:
    s3 = s3_behind_proxy
    calls: list[Any] = []
    s3.proxy.on_request = lambda *seen: calls.append(seen)
    s3.proxy.down(2)
    assert [get(s3.proxy, f"/{s3.bucket}")[0] for _ in range(3)] == [503, 503, 200]
    assert [number for number, _, _ in calls] == [1, 2, 3]
