"""Measures the batch norm's statistics from data, once training is over."""

from __future__ import annotations

from typing import Protocol

import torch

from model.eo_vae import EOVAE
from model.training.batch import Batch


class _Draws(Protocol):
    def draw(self, batch_size: int, patch: int) -> Batch: ...


@torch.no_grad()
def calibrate(vae: EOVAE, source: _Draws, batches: int = 24) -> None:
    """Set the batch norm's statistics to those of the posterior means over a mix of training batches.

    The published training let them follow as a running mean of momentum 0.1 instead, over latents of the network as it
    was a few batches ago.
    """
    device = next(vae.parameters()).device
    total = square = None
    count = 0
    for _ in range(batches):
        batch = source.draw(4, 128)
        packed = vae.pack(vae.encode(batch.x.to(device), batch.wavelengths).mode()[..., 2:-2, 2:-2]).double()
        count += packed.numel() // packed.shape[1]
        sums, squares = packed.sum((0, 2, 3)), packed.square().sum((0, 2, 3))
        total = sums if total is None else total + sums
        square = squares if square is None else square + squares
    if total is None or square is None or vae.bn.running_mean is None or vae.bn.running_var is None:
        raise ValueError("calibrate: needs at least one batch and a batch norm with running statistics")
    mean = total / count
    vae.bn.running_mean.copy_(mean)
    vae.bn.running_var.copy_((square / count - mean.square()).clamp_min(1e-6))
