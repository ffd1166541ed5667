"""Knows what codes take as packed and coefficients by their entropy, and finds the setting that takes a given size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.eo_vae import EOVAE
from model.sensors import Floats, TrainedSensor
from model.training.eo_vae.code_steps import rounded
from model.training.eo_vae.evaluate import HALO, decoded, encoded
from model.training.eo_vae.klt import BLOCK, Klt
from model.weights_meta import CODE_OF_MEAN

COARSEST = 256.0
"""The largest factor on the weights' steps that is tried: hardly a code but the mean's is left there."""
_MOST = 2**15 - 1 - CODE_OF_MEAN - 1  # whole steps to either side of the mean; int16's least marks no data
_STEPS = (1e-4, 1e3)  # of a KLT of z-scores
_TRIES, _CLOSE = 16, 1e-3

Pack = Callable[[NDArray[np.int16]], int]
"""Codes (channels, h, w) -> bytes that a store packs them into."""


def meeting(size: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The setting from `low` to `high` whose size comes nearest to `target`, by bisection of its logarithm.

    Sizes fall as settings rise. Where none is as large or as small as the target, the setting goes to that end.
    """
    best, miss = low, math.inf
    for _ in range(_TRIES):
        middle = math.sqrt(low * high)
        found = size(middle)
        if abs(found - target) < miss:
            best, miss = middle, abs(found - target)
        if miss <= _CLOSE * target:
            break
        low, high = (middle, high) if found > target else (low, middle)
    return best


@dataclass(frozen=True, slots=True)
class Codes:
    """Latents (1, channels, h, w), with their halo, of some tiles of `blocks` blocks in all, to be stored as codes:
    whole numbers of the weights' steps (channels,) times a factor, about `middle` (channels,)."""

    vae: EOVAE
    sensor: TrainedSensor
    steps: NDArray[np.float64]
    middle: torch.Tensor
    latents: tuple[torch.Tensor, ...]
    blocks: float
    pack: Pack

    @classmethod
    def of(
        cls, vae: EOVAE, sensor: TrainedSensor, steps: Sequence[float], tiles: Sequence[Floats], pack: Pack
    ) -> Codes:
        """Of (C, H, W) z-scores, by weights in eval mode. ValueError where they keep no latent statistics."""
        latents = tuple(encoded(vae, tile, sensor) for tile in tiles)
        return cls(
            vae,
            sensor,
            np.asarray(steps),
            vae.channel_statistics()[0].float(),
            latents,
            sum(map(blocks_of, tiles)),
            pack,
        )

    def sizes(self, factor: float) -> list[int]:
        """Bytes of each tile."""
        return [self.pack(_codes(z, self.middle, self.steps * factor)) for z in self.latents]

    def decoded(self, factor: float) -> list[Floats]:
        """What each tile (C, H, W) comes back as."""
        own = self.steps * factor
        return [decoded(self.vae, rounded(z, self.middle, own), self.sensor) for z in self.latents]

    def factor_for(self, size: float) -> float:
        """The factor at which all tiles together take `size` bytes a block, or as near to it as codes come."""
        return meeting(lambda f: sum(self.sizes(f)) / self.blocks, size, self.finest, COARSEST)

    @property
    def finest(self) -> float:
        """The least factor whose codes all fit int16."""
        centre = self.middle.double()[:, None, None]
        reach = [(z[0].double() - centre).abs().amax(dim=(1, 2)).numpy() / self.steps for z in self.latents]
        return max(float(whole.max()) for whole in reach) / _MOST


def blocks_of(tile: Floats) -> float:
    """8x8 blocks of (C, H, W)."""
    return float(tile.shape[1] * tile.shape[2] / BLOCK**2)


def _codes(z: torch.Tensor, middle: torch.Tensor, steps: NDArray[np.float64]) -> NDArray[np.int16]:
    """Codes (channels, h, w) of latents without their halo."""
    side = HALO // BLOCK
    inner = z[0, :, side:-side, side:-side].double().numpy()
    codes = np.rint((inner - middle.double().numpy()[:, None, None]) / steps[:, None, None]) + CODE_OF_MEAN
    return np.ascontiguousarray(codes.astype(np.int16))


@dataclass(frozen=True, slots=True)
class Spread:
    """Coefficients of the tiles' blocks (blocks, k) in a KLT's basis: what its rate follows from."""

    values: NDArray[np.float64]

    @classmethod
    def of(cls, klt: Klt, tiles: Sequence[Floats]) -> Spread:
        """Of all blocks of the tiles."""
        return cls(np.concatenate([klt.coefficients(tile) for tile in tiles]))

    def size(self, step: float) -> float:
        """Bytes a block: the entropy of each coefficient, rounded to one step for all, by the tiles' own frequencies.

        One step for all is reverse water-filling at high rate; coefficients below half a step cost nothing. Frequencies
        of the tiles themselves are known to no real coder: no one that codes coefficients apart can do with less.
        """
        rounded_to = np.rint(self.values / step).astype(np.int64)
        return sum(entropy(column) for column in rounded_to.T) / 8

    def step_for(self, size: float) -> float:
        """The step whose rate is `size` bytes a block, to one part in a thousand where a step has that rate."""
        return meeting(self.size, size, *_STEPS)


def entropy(values: NDArray[np.int64]) -> float:
    """Bits a value, by the frequencies of the values given."""
    low = values.min()
    # Counting beats sorting, but where few values lie far apart.
    near = int(values.max() - low) < 16 * len(values)
    counts = np.bincount(values - low) if near else np.unique(values, return_counts=True)[1]
    share = counts[counts > 0] / len(values)
    return float(-(share * np.log2(share)).sum())
