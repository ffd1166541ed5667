"""Measures what reconstructions lose in z-score space: Charbonnier, MS-SSIM, and errors weighed by difficulty.

Source of the first two: EO-VAE specification, section 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
DATA_RANGE = 6.0
SIGMA = 1.5
K1, K2 = 0.01, 0.03
WINDOW = 11
MIN_SIDE = 96


def charbonnier(prediction: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """mean sqrt((prediction - target)^2 + eps^2): scalar."""
    return torch.sqrt((prediction - target).square() + eps * eps).mean()


def _gaussian(channels: int, like: Tensor) -> Tensor:
    distance = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    line = torch.exp(-((distance / SIGMA) ** 2) / 2)
    line = line / line.sum()
    return torch.outer(line, line).expand(channels, 1, WINDOW, WINDOW)


def _similarity(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure factor, one value an image; reflect padding. As in the reference (torchmetrics)
    only the second leaves the padded border out of its mean. It is NaN below 11 pixels, where nobody reads it."""
    channels, pad = x.shape[1], WINDOW // 2
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    padded = [F.pad(v, (pad, pad, pad, pad), mode="reflect") for v in (x, y)]
    a, b = padded
    stack = torch.cat([a, b, a * a, b * b, a * b])
    means = F.conv2d(stack, _gaussian(channels, x), groups=channels).chunk(5)
    mu_a, mu_b = means[0], means[1]
    var_a = (means[2] - mu_a.square()).clamp_min(0.0)
    var_b = (means[3] - mu_b.square()).clamp_min(0.0)
    contrast = (2 * (means[4] - mu_a * mu_b) + c2) / (var_a + var_b + c2)
    full = (2 * mu_a * mu_b + c1) / (mu_a.square() + mu_b.square() + c1) * contrast
    return full.flatten(1).mean(1), contrast[..., pad:-pad, pad:-pad].flatten(1).mean(1)


def ms_ssim(
    prediction: Tensor, target: Tensor, data_range: float = DATA_RANGE, betas: Sequence[float] = BETAS
) -> Tensor:
    """Multi-scale SSIM of (B, C, H, W), mean over the batch, negative factors clipped to zero ('relu').

    ValueError below 96 pixels a side: the coarsest of five scales must still hold the window.
    """
    if min(prediction.shape[-2:]) < MIN_SIDE:
        raise ValueError(f"MS-SSIM of {tuple(prediction.shape[-2:])} pixels: need at least {MIN_SIDE} a side")
    result = torch.ones(prediction.shape[0], dtype=prediction.dtype, device=prediction.device)
    x, y = prediction, target
    for scale, beta in enumerate(betas):
        full, contrast = _similarity(x, y, data_range)
        factor = full if scale == len(betas) - 1 else contrast
        result = result * torch.relu(factor) ** beta
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result.mean()


def ms_ssim_loss(prediction: Tensor, target: Tensor, data_range: float = DATA_RANGE) -> Tensor:
    """1 - MS-SSIM: scalar."""
    return 1 - ms_ssim(prediction, target, data_range)


def detail(target: Tensor, block: int = 4) -> Tensor:
    """What block means leave over: target minus its means over `block` x `block` pixels, (B, C, H, W)."""
    means = F.avg_pool2d(target, block)
    return target - F.interpolate(means, scale_factor=float(block), mode="nearest")


def relative_error(prediction: Tensor, target: Tensor, floor: float = 1e-3) -> Tensor:
    """Root mean squared error of each patch over that of its own detail, mean over the batch: scalar.

    Dark and bright patches, smooth and rough ones then count alike, as they do when places are compared one by one.
    """
    weight = detail(target).square().flatten(1).mean(1) + floor
    error = (prediction - target).square().flatten(1).mean(1)
    return torch.sqrt(error / weight + 1e-4).mean()


def relative_angle(prediction: Tensor, target: Tensor, floor: float = 0.03) -> Tensor:
    """As `relative_error` with every pixel's error over its own spectrum's length: a smooth stand-in for the SAM."""
    length = target.square().mean(1, keepdim=True) + floor
    weight = (detail(target).square() / length).flatten(1).mean(1) + 2e-3
    error = ((prediction - target).square() / length).flatten(1).mean(1)
    return torch.sqrt(error / weight + 1e-4).mean()
