"""Builds what the U-Nets of diffusion share: layers in turn with an embedding, pixel attention, ada-zero blocks."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
_NORM_EPS = 1e-5


class Embedded(nn.Module):
    """A layer that takes the embedding of the noise level beside its input: forward(x, embedding)."""


class Steps(nn.Sequential):
    """Layers in turn; `Embedded` ones get the embedding too."""

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:  # type: ignore[override]  # one more input
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, Embedded) else layer(x)
        return x


class Attention(nn.Module):
    """Single-head attention over pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return cast(Tensor, flat + self.proj_out(h)).view_as(x)


class AdaZeroBlock(Embedded):
    """x + c * convolutions((a + 1) * norm(x) + b), each (C,): a linear map of the embedding, or learned constants.

    `norm` is over the channels of each pixel, without weights. Source: Peebles and Xie 2022 (ada-zero, arXiv
    2212.09748), in the convolutional form of azula's `UNetBlock`, whose keys and start these are (`embedding` 0).

    Args:
        width: channels C.
        embedding: width of the embedding; 0 for constants, which know no time.
        unbiased: the variance by C - 1, as published; else by C.
    """

    def __init__(self, width: int, embedding: int = 0, *, unbiased: bool = False) -> None:
        super().__init__()
        # The unbiased norm is the plain one with eps and the result scaled.
        self.share = (width - 1) / width if unbiased else 1.0
        self.ada_zero: nn.Parameter | nn.Linear
        if embedding:
            self.ada_zero = nn.Linear(embedding, 3 * width)
            self.ada_zero.weight.data.mul_(1e-2)
        else:
            self.ada_zero = nn.Parameter(torch.randn(3, width, 1, 1) * 1e-2)
        self.ffn = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Identity(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        if isinstance(self.ada_zero, nn.Parameter):
            a, b, c = self.ada_zero
        else:
            a, b, c = self.ada_zero(embedding)[:, :, None, None].chunk(3, dim=1)
        # Channels last: the norm reads what lies together, and permute copies nothing.
        h = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=_NORM_EPS * self.share).permute(0, 3, 1, 2)
        h = torch.addcmul(b, h.to(a.dtype), (a + 1) * math.sqrt(self.share))
        return torch.addcmul(x, c.to(x.dtype), self.ffn(h).to(x.dtype))


def sinusoid(angles: Tensor) -> Tensor:
    """(..., n) angles -> (..., 2n): their cosines, then their sines."""
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def geometric(first: float, last: float, count: int) -> Tensor:
    """(count,) float32 from `first` to `last` in equal ratios."""
    return torch.exp(torch.linspace(math.log(first), math.log(last), count))
