"""Lays out the network's two bodies for a CPU: packed convolutions that add in place, and few passes over memory.

What differs from `model.blocks`, and why it is the same function:

- `quant_conv` (1x1) follows `conv_out` with nothing between: their product is one 3x3 convolution, multiplied in
  float64, and of it only the mean half is computed.
- `post_quant_conv` is *not* merged into the decoder's `conv_in`: its bias lies inside the picture and not in the zero
  padding around, so a merged bias would be wrong along the borders.
- nearest upsampling and the 3x3 convolution after it are four 2x2 convolutions of the coarse image, one for each place
  of a fine pixel in its coarse one: taps that fall on the same coarse pixel are summed. Zero padding falls on the same
  places. That is 16 multiplications a coarse pixel instead of 36.
- a residual block's second convolution accumulates onto the identity in float32 and rounds once.
- the decoder may compute inside its residual blocks and attention (`branches`) in bfloat16 and keep what they add to in
  float32: what bfloat16 costs a picture comes from rounding that sum, over and over, and hardly from the products.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import AttnBlock, Level, ResBlock
from model.eo_vae import Decoder, Encoder
from model.native import Norm, Steps

PART = 128
"""Input channels that a large float32 convolution sums at once.

oneDNN adds up a channels-last convolution's products one after the other in float32: rounding grows with the root of
their number, to five times that of other layouts for 3x3 kernels over 512 channels. In parts it is half as much, for
a few percent of time.
"""


def merged_out(encoder: Encoder, channels: int) -> tuple[Tensor, Tensor]:
    """Weight (channels, C, 3, 3) and bias of conv_out and the first `channels` outputs of quant_conv as one."""
    quant = encoder.quant_conv.weight.detach().double()[:channels, :, 0, 0]
    weight = torch.einsum("oi,ichw->ochw", quant, encoder.conv_out.weight.detach().double())
    out_bias, quant_bias = _bias(encoder.conv_out), _bias(encoder.quant_conv)
    return weight.float(), (quant @ out_bias.double() + quant_bias.double()[:channels]).float()


def phase_weights(weight: Tensor) -> Tensor:
    """3x3 kernels (O, I, 3, 3) that follow nearest upsampling -> 2x2 kernels (4 * O, I, 2, 2) of the coarse image.

    Block 2a + b makes the fine pixels (2i + a, 2j + b). Upsampled, a coarse pixel appears twice: in phase 0 the second
    and third tap fall on one coarse pixel, in phase 1 the first and second.
    """
    wide = weight.double()
    rows = {0: (wide[:, :, 0], wide[:, :, 1] + wide[:, :, 2]), 1: (wide[:, :, 0] + wide[:, :, 1], wide[:, :, 2])}
    phases = []
    for a in (0, 1):
        taps = torch.stack(rows[a], 2)
        for columns in (
            (taps[..., 0], taps[..., 1] + taps[..., 2]),
            (taps[..., 0] + taps[..., 1], taps[..., 2]),
        ):
            phases.append(torch.stack(columns, 3))
    return torch.cat(phases).to(weight.dtype)


class Conv:
    """A frozen convolution in one precision; packed in oneDNN's layout for inputs of `size` pixels a side."""

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype, size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        self._stride, self._padding = [stride, stride], [padding, padding]
        # Copies, even where nothing changes: training the network afterwards must not reach in.
        weight = weight.detach().to("cpu", dtype, copy=True).contiguous(memory_format=torch.channels_last)
        self._bias = bias.detach().to("cpu", dtype, copy=True)
        self._packed = _can_pack(dtype)
        channels = weight.shape[1]
        large = dtype == torch.float32 and channels > 2 * PART and weight.shape[2:].numel() > 1
        self._part = PART if large and self._packed else channels
        self._weights = [
            torch.ops.mkldnn._reorder_convolution_weight(
                part, self._padding, self._stride, [1, 1], 1, [1, part.shape[1], size, size]
            ) if self._packed else part
            for part in torch.split(weight, self._part, dim=1)
        ]  # fmt: skip

    @classmethod
    def of(cls, layer: nn.Conv2d, dtype: torch.dtype, size: int) -> Conv:
        """A layer's weights as they are."""
        return cls(
            layer.weight, _bias(layer), dtype, size, stride=layer.stride[0], padding=cast("int", layer.padding[0])
        )

    def __call__(self, x: Tensor) -> Tensor:
        if not self._packed:
            return F.conv2d(x, self._weights[0], self._bias, self._stride, self._padding)
        (part, first), *others = zip(torch.split(x, self._part, dim=1), self._weights, strict=True)
        made = cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise(
                part, first, self._bias, self._padding, self._stride, [1, 1], 1, "none", [], ""
            ),
        )
        for part, weight in others:
            made = self._add(part, weight, None, made)
        return made

    def onto(self, x: Tensor, skip: Tensor) -> Tensor:
        """skip + convolution of x; `skip` is overwritten."""
        if not self._packed:
            return skip.add_(F.conv2d(x, self._weights[0], self._bias, self._stride, self._padding))
        bias: Tensor | None = self._bias
        for part, weight in zip(torch.split(x, self._part, dim=1), self._weights, strict=True):
            skip, bias = self._add(part, weight, bias, skip), None
        return skip

    def _add(self, x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor) -> Tensor:
        return cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise_.binary(
                onto, x, weight, bias, self._padding, self._stride, [1, 1], 1, "add", 1.0, None, [], None
            ),
        )


def _bias(layer: nn.Conv2d) -> Tensor:
    return layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes weights of this precision in its own layout on this CPU: bfloat16 needs AVX-512 there."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def norm_of(layer: nn.GroupNorm) -> Norm:
    """A copy of a layer's parameters in float32."""
    weight, bias = (p.detach().to("cpu", torch.float32, copy=True) for p in (layer.weight, layer.bias))
    return Norm(weight, bias, layer.num_groups, layer.eps)


class Residual:
    """`ResBlock` of inputs of `size` pixels a side; overwrites its input where its width stays.

    Both convolutions are in the precision of `branch`, the sum and the shortcut in `dtype`.
    """

    def __init__(
        self, block: ResBlock, dtype: torch.dtype, size: int, steps: Steps, branch: torch.dtype | None = None
    ) -> None:
        self._steps = steps
        self._branch = dtype if branch is None else branch
        self._norm1, self._norm2 = norm_of(block.norm1), norm_of(block.norm2)
        self._conv1, self._conv2 = (Conv.of(conv, self._branch, size) for conv in (block.conv1, block.conv2))
        shortcut = block.nin_shortcut
        self._shortcut = None if shortcut is None else Conv.of(shortcut, dtype, size)

    def __call__(self, x: Tensor) -> Tensor:
        h = self._conv1(self._steps.norm(x, self._norm1, silu=True).to(self._branch))
        h = self._steps.norm(h, self._norm2, silu=True, in_place=True)
        return _added(self._conv2, h, x if self._shortcut is None else self._shortcut(x))


class Attention:
    """`AttnBlock`: both products as oneDNN's 1x1 convolutions, with keys and probabilities' partners as weights.

    On the AMD chip it was measured on, torch's `scaled_dot_product_attention` takes 2.7 to 3.4 times as long in
    bfloat16. One image at a time.
    """

    def __init__(
        self, block: AttnBlock, dtype: torch.dtype, size: int, steps: Steps, branch: torch.dtype | None = None
    ) -> None:
        self._steps = steps
        self._branch = dtype if branch is None else branch
        self._norm = norm_of(block.norm)
        layers = (block.q, block.k, block.v)
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([_bias(layer) for layer in layers])
        self._qkv = Conv(weight, bias, self._branch, size)
        self._out = Conv.of(block.proj_out, self._branch, size)

    def __call__(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        tokens = height * width
        qkv = self._qkv(self._steps.norm(x, self._norm, silu=False).to(self._branch))
        q, k, v = qkv.permute(0, 2, 3, 1).reshape(tokens, 3, channels).unbind(1)
        scores = _product(q, k, height, width)
        shares = self._steps.softmax(scores, channels**-0.5)
        mixed = _product(shares, v.t(), height, width)
        return _added(self._out, mixed.reshape(1, height, width, channels).permute(0, 3, 1, 2), x)


def _added(conv: Conv, h: Tensor, skip: Tensor) -> Tensor:
    """skip + convolution of h, in skip's precision; `skip` is overwritten."""
    if h.dtype == skip.dtype:
        return conv.onto(h, skip)
    return skip.add_(conv(h).to(skip.dtype))  # torch adds two types more slowly than it makes one of them first


def _product(a: Tensor, b: Tensor, height: int, width: int) -> Tensor:
    """a (height * width, n) times b (m, n) transposed, as a 1x1 convolution: (height * width, m)."""
    image = a.reshape(1, height, width, a.shape[1]).permute(0, 3, 1, 2)
    product = F.conv2d(image, b.reshape(*b.shape, 1, 1))
    return product.permute(0, 2, 3, 1).reshape(height * width, b.shape[0])


class Upsampling:
    """Nearest neighbour times two and the 3x3 convolution after it, for coarse images of `size` pixels a side."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, size: int, steps: Steps) -> None:
        self._steps = steps
        self._conv = Conv(phase_weights(layer.weight.detach()), _bias(layer).repeat(4), dtype, size, padding=1)

    def __call__(self, x: Tensor) -> Tensor:
        return self._steps.interleave(self._conv(x))


class EncoderBody:
    """Normalised pixels (1, C, H, W), channels last, in `dtype` -> means of the latents (1, channels, h, w)."""

    def __init__(
        self, encoder: Encoder, first: tuple[Tensor, Tensor], channels: int, dtype: torch.dtype, size: int, steps: Steps
    ) -> None:
        self._steps = steps
        self._first = Conv(*first, dtype, size, padding=1)
        self._levels: list[tuple[list[Residual], Conv | None]] = []
        for level in encoder.down:
            assert isinstance(level, Level)
            blocks = _residuals(level, dtype, size, steps)
            down = None if level.downsample is None else Conv.of(level.downsample.conv, dtype, size + 1)
            self._levels.append((blocks, down))
            size //= 1 if down is None else 2
        mid = encoder.mid
        self._mid = (
            Residual(mid.block_1, dtype, size, steps), Attention(mid.attn_1, dtype, size, steps),
            Residual(mid.block_2, dtype, size, steps),
        )  # fmt: skip
        self._norm = norm_of(encoder.norm_out)
        # In float32 where the rest is bfloat16: a percent of the work, and a third of what bfloat16 costs in PSNR back.
        self._end = torch.float32 if dtype == torch.bfloat16 else dtype
        self._last = Conv(*merged_out(encoder, channels), self._end, size, padding=1)

    def __call__(self, x: Tensor) -> Tensor:
        h = self._first(x)
        for blocks, down in self._levels:
            for block in blocks:
                h = block(h)
            if down is not None:
                h = down(F.pad(h, (0, 1, 0, 1)))
        for part in self._mid:
            h = part(h)
        h = h.to(self._end)
        return self._last(self._steps.norm(h, self._norm, silu=True, in_place=True))


class DecoderBody:
    """Raw latents (1, z, h, w), channels last, in `dtype` -> normalised pixels (1, bands, H, W).

    Residual blocks and attention compute in the precision of `branch`, by default `dtype`, and add up in `dtype`.
    """

    def __init__(
        self, decoder: Decoder, last: tuple[Tensor, Tensor], dtype: torch.dtype, size: int, steps: Steps,
        branch: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self._steps = steps
        self._before = Conv.of(decoder.post_quant_conv, dtype, size)
        self._first = Conv.of(decoder.conv_in, dtype, size)
        mid = decoder.mid
        self._mid = (
            Residual(mid.block_1, dtype, size, steps, branch), Attention(mid.attn_1, dtype, size, steps, branch),
            Residual(mid.block_2, dtype, size, steps, branch),
        )  # fmt: skip
        self._levels: list[tuple[list[Residual], Upsampling | None]] = []
        for level in reversed(decoder.up):
            assert isinstance(level, Level)
            blocks = _residuals(level, dtype, size, steps, branch)
            up = None if level.upsample is None else Upsampling(level.upsample.conv, dtype, size, steps)
            self._levels.append((blocks, up))
            size *= 1 if up is None else 2
        self._norm = norm_of(decoder.norm_out)
        self._last = Conv(*last, dtype, size, padding=1)

    def __call__(self, z: Tensor) -> Tensor:
        h = self._first(self._before(z))
        for part in self._mid:
            h = part(h)
        for blocks, up in self._levels:
            for block in blocks:
                h = block(h)
            if up is not None:
                h = up(h)
        return self._last(self._steps.norm(h, self._norm, silu=True, in_place=True))


def _residuals(
    level: Level, dtype: torch.dtype, size: int, steps: Steps, branch: torch.dtype | None = None
) -> list[Residual]:
    return [Residual(block, dtype, size, steps, branch) for block in level.block if isinstance(block, ResBlock)]
