"""Exponential moving average of a network's parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(slots=True)
class Average:
    """Moving average of parameters, bias-corrected by a decay that grows with the steps seen.

    `decay` 0 keeps the live parameters themselves. The network must have the live one's parameters in the same order.
    """

    vae: nn.Module
    decay: float
    seen: int = 0

    @torch.no_grad()
    def update(self, live: nn.Module) -> None:
        """Take in the live network after one optimiser step."""
        self.seen += 1
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        for mean, value in zip(self.vae.parameters(), live.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
