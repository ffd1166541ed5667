"""Brings results from a GPU to the host: through pinned memory, waiting for them alone and not for what comes after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def narrowed(values: Tensor) -> Tensor:
    """As values travel: float16 as it is, in half the bytes, all other reals as float32, whole numbers as int32."""
    if values.dtype == torch.float16:
        return values
    return values.float() if values.is_floating_point() else values.int()


def to_host(values: Tensor, into: Tensor | None = None) -> Tensor:
    """Values on the CPU in their own type; those that are there already as they are.

    From a GPU they come in one copy into one pinned buffer, or `into` one, without the driver's own pageable detour.
    The thread sleeps until that copy is done, so that others compute meanwhile.
    """
    if values.device.type == "cpu":
        return values
    host = _pinned(values) if into is None else into
    host.copy_(values, non_blocking=True)
    _wait_for_copies(values.device)
    return host


def _pinned(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def _wait_for_copies(device: torch.device) -> None:
    event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    event.synchronize()
