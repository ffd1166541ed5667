"""Compares codecs at equal bits: latents as codes, the KLT with its entropy counted, JPEG 2000, JPEG XL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model import metrics
from model.eo_vae import EOVAE
from model.evaluation.codecs import JPEG2000, Codec, Coded, at_bytes
from model.evaluation.rate_distortion import pooled_psnr
from model.sensors import Floats, TrainedSensor
from model.training.eo_vae.code_steps import rounded
from model.training.eo_vae.evaluate import HALO, RANGES, decoded, encoded
from model.training.eo_vae.klt import BLOCK, Klt
from model.weights_meta import CODE_OF_MEAN

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What the weights' code steps are multiplied by: a rate each, at which the others are measured too."""
COEFFICIENTS = 256
"""Coefficients of a block that the KLT may spend bits on."""
_TRIES = 24

Pack = Callable[[NDArray[np.int16]], int]
"""Codes (channels, h, w) -> bytes that a store packs them into."""


@dataclass(frozen=True, slots=True)
class Row:
    """One codec at one rate: `size` bytes an 8x8 block over all tiles; PSNR in dB of a fixed range, SAM in radians and
    NDVI's mean error (None without its bands), in physical units."""

    size: float
    psnr: float
    sam: float
    ndvi: float | None


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """What the weights are compared with: a KLT of `COEFFICIENTS`, fitted on what they were trained on, and codecs."""

    klt: Klt | None
    codecs: Sequence[Codec]


@torch.no_grad()
def compare(
    vae: EOVAE, steps: Sequence[float], sensor: TrainedSensor, tiles: Sequence[Floats], pack: Pack, others: Yardsticks
) -> dict[str, tuple[Row, ...]]:
    """Codec -> a row for each of `FACTORS`, all at the bytes that codes take there.

    Args:
        vae: in eval mode.
        steps: of its codes (channels,), for this sensor.
        sensor: whose bands the tiles have.
        tiles: (C, H, W) z-scores, sides multiples of 8.
        pack: what codes are packed into.
        others: what to compare with.
    """
    middle, found = vae.channel_statistics()[0].float(), dict[str, list[Row]]()
    latents = [encoded(vae, tile, sensor) for tile in tiles]
    blocks = sum(tile.shape[1] * tile.shape[2] for tile in tiles) / BLOCK**2
    basis = None if others.klt is None else Spread.of(others.klt, tiles)
    spectral = None if len(sensor.bands) < 2 else _rotation(tiles)
    for factor in FACTORS:
        own = np.asarray(steps) * factor
        sizes = [pack(_codes(z, middle, own)) for z in latents]
        back = [decoded(vae, rounded(z, middle, own), sensor) for z in latents]
        size = sum(sizes) / blocks
        found.setdefault("codes", []).append(_row(size, back, tiles, sensor))
        if basis is not None and others.klt is not None:
            step = basis.step_for(size)
            coded = [others.klt.reconstruct(tile, step) for tile in tiles]
            found.setdefault("KLT 8x8, entropy", []).append(_row(basis.size(step), coded, tiles, sensor))
        budgets = [round(size * tile.shape[1] * tile.shape[2] / BLOCK**2) for tile in tiles]
        for codec in others.codecs:
            _add(found, codec.name, [at_bytes(codec, t, b) for t, b in zip(tiles, budgets, strict=True)], tiles, sensor)
        if spectral is not None and JPEG2000 in others.codecs:
            turned = [at_bytes(JPEG2000, _turn(t, spectral), b) for t, b in zip(tiles, budgets, strict=True)]
            _add(found, f"PCA of bands, {JPEG2000.name}", turned, tiles, sensor, spectral.T)
    return {name: tuple(rows) for name, rows in found.items()}


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
        """The step whose rate is `size` bytes a block, to one part in a thousand."""
        low, high = 1e-4, 1e3
        for _ in range(_TRIES):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if self.size(middle) > size else (low, middle)
        return high


def entropy(values: NDArray[np.int64]) -> float:
    """Bits a value, by the frequencies of the values given."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log2(share)).sum())


def _codes(z: torch.Tensor, middle: torch.Tensor, steps: NDArray[np.float64]) -> NDArray[np.int16]:
    """Codes (channels, h, w) of latents without their halo."""
    side = HALO // BLOCK
    inner = z[0, :, side:-side, side:-side].double().numpy()
    codes = np.rint((inner - middle.double().numpy()[:, None, None]) / steps[:, None, None]) + CODE_OF_MEAN
    return np.ascontiguousarray(codes.astype(np.int16))


def _rotation(tiles: Sequence[Floats]) -> NDArray[np.float64]:
    """(C, C) orthonormal: the principal components of the tiles' own bands; a rotation as good as any coder's."""
    pixels = np.concatenate([tile.reshape(len(tile), -1) for tile in tiles], axis=1).astype(np.float64)
    return np.asarray(np.linalg.eigh(np.cov(pixels))[1][:, ::-1].T)


def _turn(tile: Floats, rotation: NDArray[np.float64]) -> Floats:
    turned: Floats = np.einsum("kc,chw->khw", rotation, tile).astype(np.float32)
    return turned


def _add(
    found: dict[str, list[Row]], name: str, coded: Sequence[Coded | None], tiles: Sequence[Floats],
    sensor: TrainedSensor, back: NDArray[np.float64] | None = None,
) -> None:  # fmt: skip
    """A row of a codec, where it could code every tile in its bytes."""
    done = [one for one in coded if one is not None]
    if len(done) == len(tiles):
        blocks = sum(t.shape[1] * t.shape[2] for t in tiles) / BLOCK**2
        pictures = [one.z if back is None else _turn(one.z, back) for one in done]
        found.setdefault(name, []).append(_row(sum(one.size for one in done) / blocks, pictures, tiles, sensor))


def _row(size: float, back: Sequence[Floats], tiles: Sequence[Floats], sensor: TrainedSensor) -> Row:
    pairs = [(sensor.physical(b), sensor.physical(t)) for b, t in zip(back, tiles, strict=True)]
    ndvi = None
    if {"B04", "B08"} <= set(sensor.bands):
        red, nir = sensor.bands.index("B04"), sensor.bands.index("B08")
        ndvi = float(np.mean(np.concatenate([metrics.ndvi_errors(b, t, red, nir) for b, t in pairs])))
    psnr = pooled_psnr(back, tiles, sensor, RANGES[sensor.unit])
    return Row(size, psnr, float(np.mean([metrics.sam(b, t) for b, t in pairs])), ndvi)


def table(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Markdown: a line a rate, PSNR / SAM / NDVI error of each codec."""
    names = list(rows)
    lines = [f"| bytes a block | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for k, first in enumerate(rows[names[0]]):
        cells = [_cell(rows[name][k]) if k < len(rows[name]) else "-" for name in names]
        lines.append(f"| {first.size:.1f} | {' | '.join(cells)} |")
    return lines


def _cell(row: Row) -> str:
    ndvi = "" if row.ndvi is None else f" / {row.ndvi:.4f}"
    return f"{row.psnr:.1f} / {row.sam:.4f}{ndvi}"
