"""Fits the linear yardstick: the Karhunen-Loeve transform (PCA) of 8x8 blocks, with the latents' budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.sensors import Floats, TrainedSensor
from model.training.sources.images import Image

BLOCK = 8


def to_blocks(z: Floats) -> Floats:
    """(C, H, W), sides multiples of 8 -> (blocks, C * 64)."""
    c, h, w = z.shape[0], z.shape[1] // BLOCK, z.shape[2] // BLOCK
    cut = z[:, : h * BLOCK, : w * BLOCK].reshape(c, h, BLOCK, w, BLOCK)
    return cut.transpose(1, 3, 0, 2, 4).reshape(h * w, c * BLOCK * BLOCK)


@dataclass(frozen=True, slots=True)
class Klt:
    """Mean (C * 64,) and orthonormal basis (C * 64, k) of z-scored blocks."""

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]

    def coefficients(self, z: Floats) -> NDArray[np.float64]:
        """(C, H, W) z-scores, sides multiples of 8 -> (blocks, k)."""
        return np.asarray((to_blocks(z) - self.mean) @ self.basis)

    def reconstruct(self, z: Floats, step: float | None = None) -> Floats:
        """(C, H, W) z-scores, sides multiples of 8 -> what k coefficients a block, rounded to a step, keep of them."""
        c, h, w = z.shape[0], z.shape[1] // BLOCK, z.shape[2] // BLOCK
        kept = self.coefficients(z)
        coded = (kept if step is None else np.rint(kept / step) * step) @ self.basis.T + self.mean
        back = coded.reshape(h, w, c, BLOCK, BLOCK).transpose(2, 0, 3, 1, 4)
        return back.reshape(c, h * BLOCK, w * BLOCK).astype(np.float32)


def fit_klt(
    images: Sequence[Image], sensor: TrainedSensor, coefficients: int = 32, *, max_blocks: int = 4096,
    more: Sequence[Floats] = (),
) -> Klt | None:  # fmt: skip
    """Fit on the training images that have every band of `sensor` (at most `max_blocks` of each place); None if none.

    Places count alike up to `max_blocks`, so that one large scene does not decide the basis alone. `more` are further
    patches (C, h, w) of z-scores, sides multiples of 8, as training draws them: all of them together weigh as much as
    all the images together, whatever the number of either.
    """
    places: dict[str, list[Floats]] = {}
    for image in images:
        seen = None if image.held_out else image.seen_by(sensor)
        if seen is None:
            continue
        blocks = to_blocks(seen)
        places.setdefault(image.place, []).append(blocks[np.isfinite(blocks).all(axis=1)])
    if not places:
        return None
    chosen = []
    for parts in places.values():
        pool = np.concatenate(parts)
        step = max(1, len(pool) // max_blocks)
        chosen.append(pool[::step][:max_blocks])
    sets = [np.concatenate(chosen).astype(np.float64)]
    if more:
        sets.append(np.concatenate([to_blocks(patch) for patch in more]).astype(np.float64))
    mean = np.mean([b.mean(0) for b in sets], axis=0)
    values = np.linalg.eigh(sum((b - mean).T @ (b - mean) / len(b) for b in sets))[1]
    return Klt(mean, np.ascontiguousarray(values[:, ::-1][:, :coefficients]))
