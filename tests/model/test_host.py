"""Results come to the host in one pinned copy that is waited for, and are left alone where they are there already."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model import host
from model.host import to_host


def test_on_the_cpu_nothing_is_copied() -> None:
    values = torch.ones(2)
    assert to_host(values) is values


def test_from_a_device_one_pinned_copy_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[Any, ...]] = []
    device = torch.device("cuda")
    values: Any = SimpleNamespace(device=device)
    buffer = SimpleNamespace(copy_=lambda given, non_blocking: steps.append(("copy", given is values, non_blocking)))
    monkeypatch.setattr(host, "_pinned", lambda like: buffer)
    monkeypatch.setattr(host, "_wait_for_copies", lambda where: steps.append(("wait", where)))
    assert to_host(values) is buffer  # type: ignore[comparison-overlap]
    assert steps == [("copy", True, True), ("wait", device)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_results_are_whole_and_pinned() -> None:
    values = torch.arange(10**6, device="cuda", dtype=torch.float16)
    found = to_host(values)
    assert found.is_pinned() and found.dtype == torch.float16 and torch.equal(found, values.cpu())
