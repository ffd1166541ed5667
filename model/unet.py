"""Defines the U-Nets of diffusion, with published keys: super-resolution's, and TerraMind's decoder with its DDIM.

Sources: EO-VAE specification, section 13 (azula's `UNet`); TerraMind tokenizer specification, section 4 (terratorch's
`unet_patched`, DDIM with zero terminal SNR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.unet_blocks import GROUPS, AdaZeroBlock, Attention, Embedded, Steps, geometric, sinusoid

_MAX_PERIOD = 10_000
# Of log(sigma / alpha), whose range is about -7 to 7: from half a turn over all of it to one in 0.8.
_EMBEDDED, _FREQUENCIES = 128, (0.2, 8.0)
TRAIN_STEPS, _BETA_FIRST, _BETA_LAST = 1000, 1e-4, 0.02


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """Sizes of a `TimeUNet`; ValueError in one line for what cannot be built.

    Args:
        channels_in: channels of the noisy input.
        channels_out: channels of the answer.
        widths: channels at each depth, finest first.
        blocks: blocks at each depth, as many going down as going up.
        condition: channels of the condition, concatenated with the input; 0 for none.
        time: whether the noise level modulates the blocks; else learned constants do.
        as_published: built and started as the published one (azula's), which ignores time.
        attention: attention over all pixels at the coarsest depth (its width a multiple of 32).
        condition_scale: how many times smaller than the input a condition comes. Above 1 two convolutions at its own
            size and a pixel shuffle lift it, so a low-resolution cube's latents go in as they are.
    """

    channels_in: int
    channels_out: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    condition: int = 0
    time: bool = True
    as_published: bool = False
    attention: bool = False
    condition_scale: int = 1

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths {self.widths} and blocks {self.blocks} of a U-Net: one of each a depth, at least one"
            )
        least = min(self.condition, *self.blocks)
        if min(self.channels_in, self.channels_out, self.condition_scale, *self.widths) < 1 or least < 0:
            raise ValueError(
                "channels, widths and condition_scale of a U-Net: 1 or more; condition and blocks 0 or more"
            )
        if self.condition_scale > 1 and not self.condition:
            raise ValueError(f"condition_scale {self.condition_scale} of a U-Net with no condition: give its channels")
        if self.as_published and (self.time or self.attention or self.condition_scale != 1):
            raise ValueError("the published U-Net has no time, attention or lift: leave them out, or as_published")
        if self.attention and self.widths[-1] % GROUPS:
            raise ValueError(f"attention at width {self.widths[-1]}: its norm takes a multiple of {GROUPS}")

    @classmethod
    def published_latent(cls) -> UNetConfig:
        """EO-VAE's latent super-resolution: 10,999,776 parameters (its specification, section 13)."""
        return cls(32, 32, (256, 128, 64), (3, 3, 3), condition=32, time=False, as_published=True)

    @classmethod
    def published_pixel(cls) -> UNetConfig:
        """Its baseline on RGBN pixels: 10,806,212 parameters."""
        return cls(4, 4, (256, 128, 64), (3, 3, 3), condition=4, time=False, as_published=True)


class TimeUNet(nn.Module):
    """(B, C, H, W), a noise level (B,) and a condition (B, K, H, W) -> (B, C_out, H, W).

    Convolutions only: blocks and a stride-2 convolution going down, blocks, a doubling by nearest neighbour and a
    convolution over what came from above and the skip going up. H and W are free; odd ones are cut after doubling. As
    published the keys are azula's. The noise level is log(sigma / alpha), -7 to 7. The answer of a fresh one that is
    not `as_published` is 0. Runs in channels_last.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, embedded = config.widths, _EMBEDDED if config.time else 0
        self.time_embed: nn.Sequential | None = None
        if config.time:
            self.time_embed = nn.Sequential(
                nn.Linear(_EMBEDDED, _EMBEDDED), nn.SiLU(), nn.Linear(_EMBEDDED, _EMBEDDED), nn.SiLU()
            )
        self.lift: nn.Sequential | None = None
        if config.condition and config.condition_scale > 1:
            self.lift = nn.Sequential(
                nn.Conv2d(config.condition, 2 * config.condition, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(2 * config.condition, config.condition * config.condition_scale**2, 3, padding=1),
                nn.PixelShuffle(config.condition_scale),
            )
        self.descent, self.ascent = nn.ModuleList(), nn.ModuleList()
        for depth, (width, count) in enumerate(zip(widths, config.blocks, strict=True)):
            down, up = (
                [AdaZeroBlock(width, embedded, unbiased=config.as_published) for _ in range(count)] for _ in range(2)
            )
            enters = config.channels_in + config.condition if depth == 0 else widths[depth - 1]
            first = nn.Conv2d(enters, width, 3, stride=2 if depth else 1, padding=1)
            last = nn.Upsample(scale_factor=2) if depth else nn.Conv2d(width, config.channels_out, 3, padding=1)
            coarsest = depth + 1 == len(widths)
            joins = [] if coarsest else [nn.Conv2d(width + widths[depth + 1], width, 3, padding=1)]
            attends = [Attention(width)] if coarsest and config.attention else []
            self.descent.append(Steps(first, *down, *attends))
            self.ascent.insert(0, Steps(*joins, *up, last))
            if not depth and not config.as_published:
                # So that a fresh denoiser answers c_skip x, the best linear guess for unit noise-like data.
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, x: Tensor, noise_level: Tensor, condition: Tensor | None = None) -> Tensor:
        h, embedding = self._joined(x, condition), self._embedding(noise_level)
        h = h.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        for depth, down in enumerate(self.descent):
            if depth:
                kept.append(h)
            h = down(h, embedding)
        for up in self.ascent:
            h = up(h, embedding)
            if kept:
                skip = kept.pop()
                h = torch.cat([skip, h[..., : skip.shape[-2], : skip.shape[-1]]], dim=1)
        return h

    def _joined(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if (0 if condition is None else condition.shape[1]) != self.config.condition:
            given = "none" if condition is None else f"{condition.shape[1]} channels"
            raise ValueError(f"a condition of {given} for a U-Net built for {self.config.condition}")
        if condition is None:
            return x
        if self.lift is not None:
            condition = self.lift(condition)
        if condition.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"a condition of {tuple(condition.shape[-2:])} beside an input of {tuple(x.shape[-2:])}: "
                f"it must be 1/{self.config.condition_scale} of the input"
            )
        return torch.cat([x, condition.to(x.dtype)], dim=1)

    def _embedding(self, noise_level: Tensor) -> Tensor | None:
        if self.time_embed is None:
            return None
        # Made here: a buffer would lose its digits when the network is cast, and its values when it is built on "meta".
        angles = noise_level[:, None] * geometric(*_FREQUENCIES, _EMBEDDED // 2).to(noise_level.device)
        return cast(Tensor, self.time_embed(sinusoid(angles).to(next(self.time_embed.parameters()).dtype)))


class _Block(Embedded):
    """Two convolutions with the time embedding added between them."""

    def __init__(self, width_in: int, width_out: int, embedded: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, width_in), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedded, width_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, width_out), nn.SiLU(), nn.Identity(), nn.Conv2d(width_out, width_out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return cast(Tensor, self.skip_connection(x) + self.out_layers(h))


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
        self.input_blocks = nn.ModuleList([Steps(first)])
        widths = [width]
        for level, factor in enumerate(mult):
            for _ in range(blocks):
                self.input_blocks.append(_level(width, base * factor, embedded, 2**level in attend_at))
                width = base * factor
                widths.append(width)
            if level < len(mult) - 1:
                self.input_blocks.append(Steps(_Down(width)))
                widths.append(width)
        self.middle_block = Steps(_Block(width, width, embedded), Attention(width), _Block(width, width, embedded))
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                steps = _level(width + widths.pop(), base * factor, embedded, 2**level in attend_at)
                width = base * factor
                if level and i == blocks:
                    steps.append(_Up(width))
                self.output_blocks.append(steps)
        last = nn.Conv2d(base * mult[0], channels * patch**2, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)

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


def _level(width_in: int, width_out: int, embedded: int, attends: bool) -> Steps:
    steps = Steps(_Block(width_in, width_out, embedded))
    if attends:
        steps.append(Attention(width_out))
    return steps


def _sinusoid(step: int, width: int) -> Tensor:
    """(1, width): cosines, then sines, of a step at geometric frequencies."""
    half = width // 2
    angle = step * torch.exp(-math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
    return sinusoid(angle)[None]


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
