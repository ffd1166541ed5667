"""Stores latents as cubes do: fp16, int8, and the k channels that matter most; the bits each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.eo_vae import EOVAE
from model.sensors import Floats, TrainedSensor
from model.training.eo_vae.evaluate import decoded, encoded

Kind = Literal["fp16", "int8"]
BITS: dict[Kind, int] = {"fp16": 16, "int8": 8}
# A store of eocube keeps int8 latents in steps of this part of a channel's spread, saturating at +-127.
INT8_STEPS_PER_SIGMA = 16.0
_LIMIT = 127


@dataclass(frozen=True, slots=True)
class Channels:
    """Mean and spread of each latent channel, both (z,), from the statistics that the weights carry."""

    mean: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, vae: EOVAE) -> Channels:
        """ValueError where the weights keep none."""
        mean, spread = vae.channel_statistics()
        return cls(mean.float(), spread.float())

    def stored(self, z: Tensor, kind: Kind, keep: Sequence[int] | None = None) -> Tensor:
        """(B, z, h, w) as they come back from storage; channels not in `keep` come back as their mean."""
        mean, scale = self.mean[:, None, None], (self.sigma / INT8_STEPS_PER_SIGMA)[:, None, None]
        if kind == "int8":
            back = ((z - mean) / scale).round().clamp(-_LIMIT, _LIMIT) * scale + mean
        else:
            back = z.half().float()
        if keep is None:
            return back
        kept = torch.zeros(z.shape[1], dtype=torch.bool)
        kept[list(keep)] = True
        return torch.where(kept[:, None, None], back, mean.expand_as(back))


def ranked(vae: EOVAE, tiles: Sequence[Floats], sensor: TrainedSensor) -> list[int]:
    """Channels, most important first: those whose loss (replaced by their mean) costs the tiles the largest error."""
    channels = Channels.of(vae)
    count = vae.config.z_channels
    cost = np.zeros(count)
    for tile in tiles:
        latents = encoded(vae, tile, sensor)
        whole = decoded(vae, latents, sensor)
        for channel in range(count):
            without = channels.stored(latents, "fp16", [c for c in range(count) if c != channel])
            cost[channel] += float(np.mean((decoded(vae, without, sensor) - whole) ** 2))
    return [int(c) for c in np.argsort(-cost, kind="stable")]


def bits_per_pixel(vae: EOVAE, kind: Kind, channels: int, bands: int) -> float:
    """Bits a pixel and band of uncompressed storage."""
    return channels * BITS[kind] / (vae.scale_factor**2 * bands)
