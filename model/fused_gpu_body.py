"""Lays out the network's two bodies for a GPU: plain layers, channels last, in shapes that tensor cores take.

What differs from `model.blocks`, and why it is the same function (see `model.fused_body` for the merged and phased
convolutions):

- attention is two batched products with the softmax between them, in float32. The published width is one head of 512
  channels, which no flash kernel takes: torch's `scaled_dot_product_attention` falls back to a slow one. It costs the
  scores: `attention_bytes` a window.
- in half precision the sensor's bands are padded with zeros to a multiple of 8 channels, and so are the decoder's
  outputs: tensor cores take no other convolutions, and the first and the last are the ones with the most pixels.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import AttnBlock, Level, Mid, Upsample
from model.eo_vae import Decoder, Encoder
from model.fused_body import merged_out, phase_weights
from model.native import TorchSteps

LANES = 8
"""Channels that a half-precision convolution on tensor cores takes at once."""


class PhasedUpsample(nn.Module):
    """`Upsample` as one 2x2 convolution of the coarse image and a rearrangement: 16 products instead of 36."""

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        conv = layer.conv
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.weight = nn.Parameter(phase_weights(conv.weight.detach()), requires_grad=False)
        self.bias = nn.Parameter(bias.repeat(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return TorchSteps().interleave(F.conv2d(x, self.weight, self.bias, padding=1))


class ProductAttention(nn.Module):
    """`AttnBlock` as one convolution for queries, keys and values, two batched products and the one at its end."""

    def __init__(self, block: AttnBlock) -> None:
        super().__init__()
        layers = (block.q, block.k, block.v)
        weights, biases = [layer.weight.detach() for layer in layers], [_bias(layer) for layer in layers]
        factor = layers[0].out_channels ** -0.5  # in the queries' own weights, so that fp16's scores stay in its range
        weights[0], biases[0] = weights[0] * factor, biases[0] * factor
        self.norm, self.proj_out = block.norm, block.proj_out
        self.qkv = static_conv(torch.cat(weights), torch.cat(biases))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, 3, channels)
        q, k, v = qkv.unbind(2)
        shares = torch.softmax(torch.bmm(q, k.transpose(1, 2)).float(), -1).to(x.dtype)
        mixed = torch.bmm(shares, v).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return cast(Tensor, x + self.proj_out(mixed))


def attention_bytes(tokens: int, dtype: torch.dtype) -> int:
    """Bytes that `ProductAttention` holds of one window's (tokens, tokens) scores at most: as they come, widened for
    the softmax, and shares; 12 MiB for a window of 256 px (1,024 tokens) in half precision. Compiled it needs less."""
    return int(tokens**2 * (2 * dtype.itemsize + 2 * torch.float32.itemsize))


class PaddedInput(nn.Module):
    """A convolution whose input gets channels of zeros up to a multiple of `LANES`."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.extra = -weight.shape[1] % LANES
        self.conv = static_conv(F.pad(weight, (0, 0, 0, 0, 0, self.extra)), bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 0, 0, 0, 0, self.extra))))


class PaddedOutput(nn.Module):
    """A convolution that makes channels up to a multiple of `LANES`, of which those past its own are let go."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.channels = weight.shape[0]
        extra = -self.channels % LANES
        self.conv = static_conv(F.pad(weight, (0, 0, 0, 0, 0, 0, 0, extra)), F.pad(bias, (0, extra)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)[:, : self.channels])


def encoder_body(encoder: Encoder, first: tuple[Tensor, Tensor], channels: int, *, padded: bool) -> nn.Sequential:
    """A copy of the encoder as plain layers: normalised pixels -> means alone, `quant_conv` merged.

    `padded` takes the bands to a multiple of `LANES`.
    """
    body = copy.deepcopy(encoder).eval()
    layers: list[nn.Module] = [PaddedInput(*first) if padded else static_conv(*first)]
    layers += [
        *body.down,
        _by_products(body.mid),
        body.norm_out,
        nn.SiLU(),
        static_conv(*merged_out(encoder, channels)),
    ]
    return nn.Sequential(*layers)


def decoder_body(decoder: Decoder, last: tuple[Tensor, Tensor], *, padded: bool) -> nn.Sequential:
    """A copy of the decoder as plain layers: raw latents -> normalised pixels, upsampling in phases.

    `padded` takes the bands to a multiple of `LANES` inside.
    """
    body = copy.deepcopy(decoder).eval()
    for level in body.up:
        assert isinstance(level, Level)
        if level.upsample is not None:
            level.upsample = cast(Upsample, PhasedUpsample(level.upsample))
    levels = reversed(list(body.up))
    end = PaddedOutput(*last) if padded else static_conv(*last)
    return nn.Sequential(
        body.post_quant_conv, body.conv_in, _by_products(body.mid), *levels, body.norm_out, nn.SiLU(), end
    )


def _by_products(mid: Mid) -> Mid:
    """The same level, its attention as products."""
    mid.attn_1 = cast(AttnBlock, ProductAttention(mid.attn_1))
    return mid


def static_conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of odd size with given weights that keeps the picture's size, zeros beyond its edge."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2)
    conv.weight.data, conv.bias = weight.detach().clone(), nn.Parameter(bias.detach().clone())
    return conv


def on_device(body: nn.Sequential, device: torch.device, dtype: torch.dtype) -> nn.Sequential:
    """Ready for inference: no gradients, one precision, channels last, which is what tensor cores want."""
    return body.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _bias(layer: nn.Conv2d) -> Tensor:
    return layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()
