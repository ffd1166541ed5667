"""Writes convolutions' kernels with a small transformer from the channels' wavelengths (DOFA style).

Source: the published code of EO-VAE (nilsleh/eo-vae), which follows DOFA.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 3
WEIGHT_TOKENS = 128
OUTPUT_SCALE = 0.1


def wavelength_tensor(wavelengths: Tensor | Sequence[float], like: Tensor) -> Tensor:
    """Wavelengths (C,) in micrometres as a float32 tensor on `like`'s device; ValueError for another rank or none."""
    values = torch.as_tensor(wavelengths, dtype=torch.float32).to(like.device, non_blocking=True)
    if values.ndim != 1 or values.numel() == 0:
        raise ValueError(f"wavelengths must be one list with one entry a channel, got shape {tuple(values.shape)}")
    return values


def wavelength_embedding(wavelengths: Tensor, dim: int) -> Tensor:
    """Sine and cosine features of wavelengths (C,) in micrometres, taken in nanometres: (C, dim), float32."""
    half = dim // 2
    omega = torch.arange(half, dtype=torch.float32, device=wavelengths.device) / half
    angles = torch.outer(1000.0 * wavelengths.float(), 1.0 / 10000.0**omega)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class WavelengthMLP(nn.Module):
    """Residual two-layer perceptron on the embedding: (C, D) -> (C, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, dim)
        self.w2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.w2(F.relu(self.w1(x))))


class WeightGenerator(nn.Module):
    """Transformer over [weight tokens; one token a channel; bias token] that yields a convolution's kernel and bias.

    `per_channel_bias` False (encoder): the bias of `embed` outputs comes from the bias token's output.
    True (decoder): one bias a spectral channel, from the channel's output plus the bias token's *parameter*.
    """

    def __init__(self, dim: int, embed: int, layers: int, heads: int, ff: int, *, per_channel_bias: bool) -> None:
        super().__init__()
        self.embed = embed
        self.per_channel_bias = per_channel_bias
        layer = nn.TransformerEncoderLayer(dim, heads, dim_feedforward=ff, dropout=0.0, activation="gelu")
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.fc_weight = nn.Linear(dim, KERNEL * KERNEL * embed)
        self.fc_bias = nn.Linear(dim, 1 if per_channel_bias else embed)
        self.weight_tokens = nn.Parameter(torch.empty(WEIGHT_TOKENS, dim))
        self.bias_token = nn.Parameter(torch.empty(1, dim))

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Channel tokens (C, D) -> weight (C, 3, 3, embed) in (kh, kw, embed) order, bias (embed,) or (C,)."""
        sequence = torch.cat([self.weight_tokens, waves, self.bias_token])
        out: Tensor = self.transformer_encoder(sequence)
        channels = out[WEIGHT_TOKENS:-1]
        weight = self.fc_weight(channels + waves).reshape(-1, KERNEL, KERNEL, self.embed)
        # reshape, not squeeze: the published code breaks on a single channel here
        bias = self.fc_bias(channels + self.bias_token if self.per_channel_bias else out[-1]).reshape(-1)
        return weight, bias


class DynamicConv(nn.Module, ABC):
    """What the encoder's first and the decoder's last convolution share: embedding, generator, initialisation."""

    def __init__(self, embed: int, dim: int, layers: int, heads: int, ff: int, *, per_channel_bias: bool) -> None:
        super().__init__()
        self.dim = dim
        self.weight_generator = WeightGenerator(dim, embed, layers, heads, ff, per_channel_bias=per_channel_bias)
        self.fclayer = WavelengthMLP(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Published initialisation: every Linear Xavier-uniform with bias 0.01, tokens N(0, 0.02)."""
        if self.weight_generator.weight_tokens.is_meta:
            return  # no values; drawing them all the same makes torch import its compiler, a second of processor time
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0.01)
        nn.init.normal_(self.weight_generator.weight_tokens, std=0.02)
        nn.init.normal_(self.weight_generator.bias_token, std=0.02)

    def _generate(self, wavelengths: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
        """Unscaled weight (C, 3, 3, embed) and bias for wavelengths (C,) in micrometres."""
        tokens = self.weight_generator.weight_tokens
        embedding = wavelength_embedding(wavelength_tensor(wavelengths, tokens), self.dim).to(tokens.dtype)
        return cast("tuple[Tensor, Tensor]", self.weight_generator(self.fclayer(embedding)))

    @abstractmethod
    def kernel(self, wavelengths: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
        """The static (weight, bias) that inference uses for these wavelengths (C,), micrometres."""

    def forward(self, x: Tensor, wavelengths: Tensor | Sequence[float]) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W) with the kernel of these wavelengths."""
        weight, bias = self.kernel(wavelengths)
        return F.conv2d(x, weight, bias, padding=KERNEL // 2)


class DynamicConvIn(DynamicConv):
    """Encoder entry: (B, C, H, W) with C wavelengths -> (B, embed, H, W)."""

    def __init__(self, embed: int, dim: int, layers: int, heads: int, ff: int) -> None:
        super().__init__(embed, dim, layers, heads, ff, per_channel_bias=False)

    def kernel(self, wavelengths: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
        """Weight (embed, C, 3, 3) and bias (embed,) for wavelengths (C,) in micrometres, as inference uses them."""
        weight, bias = self._generate(wavelengths)
        return weight.permute(3, 0, 1, 2) * OUTPUT_SCALE, bias * OUTPUT_SCALE


class DynamicConvOut(DynamicConv):
    """Decoder end: (B, embed, H, W) -> (B, C, H, W) with C wavelengths."""

    def __init__(self, embed: int, dim: int, layers: int, heads: int, ff: int) -> None:
        super().__init__(embed, dim, layers, heads, ff, per_channel_bias=True)

    def kernel(self, wavelengths: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
        """Weight (C, embed, 3, 3) and bias (C,) for wavelengths (C,) in micrometres, as inference uses them.

        The published forward pass scales this bias twice (0.01 in all); its weights were trained that way.
        """
        weight, bias = self._generate(wavelengths)
        return weight.permute(0, 3, 1, 2) * OUTPUT_SCALE, bias * OUTPUT_SCALE * OUTPUT_SCALE
