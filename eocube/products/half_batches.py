"""Goes on with half an encoder's batch when the device's memory runs out, once, and says so."""

from __future__ import annotations

import logging

import torch

from eocube.products.base import Encoder, Pixels

log = logging.getLogger(__name__)


class HalfBatches:
    """Calls an encoder with whole batches, and after the first `torch.OutOfMemoryError` with halves of them.

    The batch that failed is done again, so nothing is lost; results then differ in their last bits from those of whole
    batches, which is why `halved` goes into the receipts. A second failure is raised: the device is too full.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.halved = False

    def __call__(self, pixels: Pixels) -> torch.Tensor:
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
