"""Fixtures of the tests under faults: proxies in front of the S3 server and of anything else that speaks HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.proxy import FaultProxy, Faults

ProxyFactory = Callable[..., FaultProxy]


@pytest.fixture
def fault_proxy() -> Iterator[ProxyFactory]:
    """`fault_proxy(upstream_url, faults=None)` starts a proxy; all are stopped at the end of the test."""
    with ExitStack() as stack:

        def start(upstream: str, faults: Faults | None = None) -> FaultProxy:
            return stack.enter_context(FaultProxy(upstream, faults))

        yield start


@dataclass(frozen=True, slots=True)
class ProxiedS3:
    """moto's S3 server behind a proxy that breaks nothing until it is told to.

    `options` reach it through the proxy, `direct` past it.
    """

    proxy: FaultProxy
    options: dict[str, Any]
    direct: dict[str, Any]
    bucket: str


@pytest.fixture
def s3_behind_proxy(s3_server: Any, fault_proxy: ProxyFactory) -> ProxiedS3:
    """A fresh bucket on the S3 server, reached through a proxy of its own."""
    proxy = fault_proxy(s3_server.endpoint)
    options = {**s3_server.storage_options, "client_kwargs": {"endpoint_url": proxy.endpoint}}
    return ProxiedS3(proxy, options, dict(s3_server.storage_options), s3_server.bucket())
