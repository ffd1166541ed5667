"""Measures whole batches on their device: what `model.evaluation.figures.measure` finds of one tile after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.evaluation.figures import Sums
from model.sensors import TrainedSensor

_SIGMA, _RADIUS, _K1, _K2 = 1.5, 5, 0.01, 0.03
_FLOOR = 0.02


def physical(z: Tensor, sensor: TrainedSensor) -> Tensor:
    """`TrainedSensor.physical` of z-scores (B, C, H, W)."""
    mean, std = (torch.tensor(v, dtype=z.dtype, device=z.device)[:, None, None] for v in (sensor.mean, sensor.std))
    x = z * std + mean
    return x * 1e-4 if sensor.unit == "reflectance*1e4" else x


def measure_batch(
    prediction: Tensor, target: Tensor, span: float, grounds: Sequence[str], red_nir: tuple[int, int] | None = None, *,
    borders: bool = False,
) -> list[Sums]:  # fmt: skip
    """Compare (B, C, H, W) with the truth in one space, each tile alone, in float64: a row a tile.

    Args:
        prediction: what came out.
        target: the truth.
        span: the data range of PSNR and SSIM.
        grounds: the tiles' names.
        red_nir: positions of these bands, only where values are reflectances.
        borders: SSIM with them, as published, or without (`model.metrics.ssim_bands`).
    """
    found = []
    for a, b in zip(prediction, target, strict=True):  # one at a time: float64 of a whole batch is much memory
        found.append(_tile(a.double(), b.double(), span, red_nir, borders))
    bands = target.shape[1]
    rows = torch.stack(found).cpu().numpy()
    pixels = target.shape[2] * target.shape[3]
    return [
        Sums(ground, pixels, span, row[:bands], row[bands : 2 * bands], float(row[-3]), float(row[-2]), int(row[-1]))
        for ground, row in zip(grounds, rows, strict=True)
    ]


def _tile(a: Tensor, b: Tensor, span: float, red_nir: tuple[int, int] | None, borders: bool) -> Tensor:
    """(2 C + 3,): squared errors and SSIM of each band, mean angle, sum of NDVI errors, their pixels."""
    cosine = (a * b).sum(0) / (torch.linalg.vector_norm(a, dim=0) * torch.linalg.vector_norm(b, dim=0) + 1e-12)
    rest = [cosine.clamp(-1, 1).arccos().mean(), *_ndvi(a, b, red_nir)]
    return torch.cat([(a - b).square().sum((1, 2)), _ssim(a, b, span, borders), torch.stack(rest)])


def _ndvi(a: Tensor, b: Tensor, red_nir: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Sum of |NDVI errors| and how many pixels they are of, as `model.metrics.ndvi_errors`."""
    if red_nir is None:
        return a.new_zeros(()), a.new_zeros(())
    red, nir = red_nir
    first, second = (
        (v[nir] - v[red]) / (v[nir] + v[red]).clamp_min(1e-6) for v in (a.clamp_min(0), b.clamp_min(0))
    )  # fmt: skip
    seen = b[nir].clamp_min(0) + b[red].clamp_min(0) > _FLOOR
    return (first - second).abs()[seen].sum(), seen.sum().double()


def _ssim(a: Tensor, b: Tensor, span: float, borders: bool) -> Tensor:
    """(C,) as `model.metrics.ssim_bands`."""
    distance = torch.arange(-_RADIUS, _RADIUS + 1, dtype=a.dtype, device=a.device)
    line = torch.exp(-((distance / _SIGMA) ** 2) / 2)
    line = line / line.sum()
    stack = F.pad(torch.cat([a, b, a * a, b * b, a * b])[:, None], (_RADIUS,) * 4, mode="reflect")
    smooth = F.conv2d(F.conv2d(stack, line[None, None, :, None]), line[None, None, None])[:, 0]
    mu_a, mu_b, aa, bb, ab = smooth.chunk(5)
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    similar = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
    similar = similar / ((mu_a**2 + mu_b**2 + c1) * (aa - mu_a**2 + bb - mu_b**2 + c2))
    inner = slice(None) if borders else slice(_RADIUS, -_RADIUS)
    return similar[:, inner, inner].mean((1, 2))
