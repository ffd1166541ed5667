"""Defines the ADM-style U-Net of TerraMind's diffusion decoder and its DDIM sampler, with the published keys.

Source: TerraMind tokenizer specification, section 4 (terratorch's `unet_patched`, DDIM with zero terminal SNR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS, _MAX_PERIOD = 32, 10_000
TRAIN_STEPS, _BETA_FIRST, _BETA_LAST = 1000, 1e-4, 0.02


class _Block(nn.Module):
    """Two convolutions with the time embedding added between them."""

    def __init__(self, width_in: int, width_out: int, embedded: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, width_in), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedded, width_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, width_out), nn.SiLU(), nn.Identity(), nn.Conv2d(width_out, width_out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return cast(Tensor, self.skip_connection(x) + self.out_layers(h))


class _Attention(nn.Module):
    """Single-head attention over pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return cast(Tensor, flat + self.proj_out(h)).view_as(x)


class _Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.op(x))


class _Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2, mode="nearest")))


class _Steps(nn.Sequential):
    """Layers in turn; residual blocks get the time embedding too."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]  # one more input than Sequential's
        for layer in self:
            x = layer(x, time) if isinstance(layer, _Block) else layer(x)
        return x


class PatchedUNet(nn.Module):
    """(B, C, H, W) noisy pixels, a step and codes (B, K, h, w) -> predicted clean pixels of the same shape.

    Pixels are folded 4x4 into channels and codes repeated onto that grid. H and W: multiples of 4 * 2**(levels - 1).
    """

    def __init__(
        self, channels: int, code: int, *, base: int = 256, mult: Sequence[int] = (1, 2, 2, 2), blocks: int = 3,
        attend_at: Sequence[int] = (4, 8), patch: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base, self.patch = base, patch
        embedded = 4 * base
        self.time_embed = nn.Sequential(nn.Linear(base, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        width = base * mult[0]
        first = nn.Conv2d(channels * patch**2 + code, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([_Steps(first)])
        widths = [width]
        for level, factor in enumerate(mult):
            for _ in range(blocks):
                self.input_blocks.append(_level(width, base * factor, embedded, 2**level in attend_at))
                width = base * factor
                widths.append(width)
            if level < len(mult) - 1:
                self.input_blocks.append(_Steps(_Down(width)))
                widths.append(width)
        self.middle_block = _Steps(_Block(width, width, embedded), _Attention(width), _Block(width, width, embedded))
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                steps = _level(width + widths.pop(), base * factor, embedded, 2**level in attend_at)
                width = base * factor
                if level and i == blocks:
                    steps.append(_Up(width))
                self.output_blocks.append(steps)
        last = nn.Conv2d(base * mult[0], channels * patch**2, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(_GROUPS, width), nn.SiLU(), last)

    def forward(self, x: Tensor, step: int, codes: Tensor) -> Tensor:
        h = F.pixel_unshuffle(x, self.patch)
        h = torch.cat([h, F.interpolate(codes, size=h.shape[-2:], mode="nearest")], dim=1)
        time = self.time_embed(_sinusoid(step, self.base).to(h).expand(len(x), -1))
        kept = []
        for down in self.input_blocks:
            h = down(h, time)
            kept.append(h)
        h = self.middle_block(h, time)
        for up in self.output_blocks:
            h = up(torch.cat([h, kept.pop()], dim=1), time)
        return F.pixel_shuffle(cast(Tensor, self.out(h)), self.patch)


def _level(width_in: int, width_out: int, embedded: int, attends: bool) -> _Steps:
    steps = _Steps(_Block(width_in, width_out, embedded))
    if attends:
        steps.append(_Attention(width_out))
    return steps


def _sinusoid(step: int, width: int) -> Tensor:
    """(1, width): cosines, then sines, of a step at geometric frequencies."""
    half = width // 2
    angle = step * torch.exp(-math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angle.cos(), angle.sin()])[None]


def signal_shares() -> Tensor:
    """(1000,) cumulative alphas of a linear schedule, rescaled so that the last one is 0 (zero terminal SNR).

    Formula: Lin et al. 2023 (arXiv 2305.08891), algorithm 1.
    """
    betas = torch.linspace(_BETA_FIRST, _BETA_LAST, TRAIN_STEPS, dtype=torch.float64)
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def ddim(predict: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int, *, clamp: float | None = 1.0) -> Tensor:
    """Deterministic DDIM (eta 0, trailing steps) of a network that predicts the clean image.

    Args:
        predict: (noisy image, step) -> clean image.
        noise: the start, standard normal, (B, C, H, W).
        steps: how many of the 1000 steps are taken.
        clamp: bound on the predicted clean image at every step, 1 as published; None leaves it free.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"{steps} diffusion steps: choose 1 to {TRAIN_STEPS}")
    shares = signal_shares()
    stride = TRAIN_STEPS // steps
    x = noise
    for step in range(TRAIN_STEPS - 1, -1, -stride):
        now = float(shares[step])
        before = float(shares[step - stride]) if step >= stride else 1.0
        clean = predict(x, step)
        # As published, the noise is inferred from the prediction before it is clamped.
        residue = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
        if clamp is not None:
            clean = clean.clamp(-clamp, clamp)
        x = math.sqrt(before) * clean + math.sqrt(1 - before) * residue
    return x
