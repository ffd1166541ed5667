"""Goes on with half an encoder's batch when the device's memory runs out, once, and says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import torch

log = logging.getLogger(__name__)


class BatchEncoder(Protocol):
    """What is wrapped: an encoder of fixed batches."""

    channels: int
    stride: int

    def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """{sampling: (B, C_g, H_g, W_g)} -> latents (B, channels, H/stride, W/stride)."""
        ...


class HalfBatches:
    """Calls an encoder with whole batches, and after the first `torch.OutOfMemoryError` with halves of them.

    The batch that failed is done again, so nothing is lost; results then differ in their last bits from those of whole
    batches, which is why `halved` goes into the receipts. A second failure is raised: the device is too full.
    """

    def __init__(self, encoder: BatchEncoder) -> None:
        self._encoder = encoder
        self.channels, self.stride = encoder.channels, encoder.stride
        self.halved = False

    def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
        batch = next(iter(pixels.values())).shape[0]
        if not self.halved:
            try:
                return self._encoder(pixels)
            except torch.OutOfMemoryError as error:
                if batch < 2:
                    raise
                log.warning("out of device memory with batches of %d, going on with halves: %s", batch, error)
                self.halved = True
            torch.cuda.empty_cache()  # outside of the handler, which would keep the failed call's tensors alive
        half = -(-batch // 2)
        parts = [
            self._encoder({k: t[start : start + half] for k, t in pixels.items()}) for start in range(0, batch, half)
        ]
        return torch.cat(parts)
