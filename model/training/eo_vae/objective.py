"""Computes training's forward pass and its loss: posterior sample or mode, noise, equivariance, weighted terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.eo_vae import EOVAE, LOGVAR_MAX, LOGVAR_MIN
from model.losses import MIN_SIDE, charbonnier, ms_ssim_loss, relative_angle, relative_error
from model.training.eo_vae.recipe import EOVAEStage
from model.training.task import mixed

_SMALLEST = 0.25


@dataclass(frozen=True, slots=True)
class Turn:
    """A symmetry that latents and pixels should share: `quarters` turns by 90 degrees, then resizing to `side` latents.

    Source: EQ-VAE (Kouzelis et al., arXiv:2502.09509), which draws scales from 0.25 to 1 and quarter turns.
    """

    quarters: int
    side: int

    def __call__(self, x: Tensor, stride: int = 1) -> Tensor:
        """(B, C, H, W) turned and resized to `side` * `stride` pixels a side."""
        turned = torch.rot90(x, self.quarters, (-2, -1))
        if turned.shape[-1] == self.side * stride:
            return turned
        size = (self.side * stride, self.side * stride)
        return F.interpolate(turned.float(), size=size, mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What one batch's latents go through. `normal` (B, z, h, w) draws from the posterior (None: its mode); `noise`
    (B, z, h, w) is added in units of each image's own latent spread; `turn` is applied to latents and target alike.
    `rounding` (B, z, h, w) is added in units of `steps` (z,); of channels from `kept` on their mean is decoded."""

    normal: Tensor | None = None
    noise: Tensor | None = None
    turn: Turn | None = None
    rounding: Tensor | None = None
    steps: Tensor | None = None
    kept: int | None = None


def draw_disturbance(
    stage: EOVAEStage, shape: tuple[int, int, int, int], part: slice, generator: torch.Generator, device: torch.device,
    steps: Tensor | None = None,
) -> Disturbance:  # fmt: skip
    """The disturbance of one batch whose latents, of all workers together, have `shape`; `part` are this worker's.

    `steps` (z,) are those of codes, where the stage takes them. Every worker draws for all of them from one stream,
    so that their number does not change the run.
    """
    normal = noise = turn = None
    if stage.sample:
        normal = torch.randn(shape, generator=generator)[part].to(device, non_blocking=True)
    if stage.latent_noise > 0:
        level = stage.latent_noise * torch.rand((shape[0], 1, 1, 1), generator=generator)
        noise = (level * torch.randn(shape, generator=generator))[part].to(device, non_blocking=True)
    if stage.equivariance > 0:
        chance, scale, quarters = torch.rand(3, generator=generator).tolist()
        if chance < stage.equivariance:
            side = max(1, round(shape[-1] * (_SMALLEST + (1 - _SMALLEST) * scale)))
            turn = Turn(int(4 * quarters) % 4, side)
    rounding = kept = None
    if stage.rounding > 0:
        rounding = (stage.rounding * (torch.rand(shape, generator=generator) - 0.5))[part].to(device, non_blocking=True)
    if stage.tail > 0:
        chance, which = torch.rand(2, generator=generator).tolist()
        kept = shape[1] // (4 if which < 0.5 else 2) if chance < stage.tail else None
    given = None if steps is None else steps.to(device, non_blocking=True)
    return Disturbance(normal, noise, turn, rounding, given, kept)


def code_bytes(z: Tensor, steps: Tensor) -> Tensor:
    """Bytes that the codes of a cell take, all channels together: (B, z, h, w), (z,) -> (B,), with a gradient.

    The entropy of a Laplacian rounded to steps, log2(2 e b / step) bits a channel with b its mean deviation in an image
    (Cover and Thomas, Elements of Information Theory, 8.3 and 8.28), kept above 0 by 1 inside the logarithm.
    """
    z = z.float()
    spread = (z - z.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(2, 3))
    return torch.log2(1 + 2 * math.e * spread / steps).sum(1) / 8


class Reconstruction(nn.Module):
    """The network as training runs it; one module, so that DDP and FSDP2 wrap exactly what is computed.

    The generators and the last convolution run in float32 whatever `precision` ("bf16", "fp16", "fp32") the bodies
    have: rounded kernels would shift every level they carry. The batch norm takes no part (its statistics are set from
    the data afterwards, `calibrate`) unless it is `through_norm`: the published training normalised latents with a
    batch's statistics and undid it with the running ones, so that what it decoded was not quite what it had encoded.
    """

    def __init__(self, vae: EOVAE, precision: str = "bf16", *, through_norm: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.precision = precision
        self.through_norm = through_norm

    def forward(
        self, x: Tensor, waves: Tensor | Sequence[float], how: Disturbance | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) z-scores -> prediction of the same shape, or of the turned target's.

        With steps of codes, also the bytes a cell that they would take (a scalar).
        """
        how = how or Disturbance()
        x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = self.vae.encoder.conv_in.kernel(waves)
        with mixed(x.device, self.precision):
            moments = self.vae.encoder.body(F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2))
            z, logvar = moments.chunk(2, dim=1)
            if how.normal is not None:
                z = z.float() + torch.exp(0.5 * logvar.float().clamp(LOGVAR_MIN, LOGVAR_MAX)) * how.normal
            if self.through_norm:
                with torch.autocast(x.device.type, enabled=False):
                    z = self.vae.denormalise(self.vae.normalise(z.float()))
            if how.noise is not None:
                z = z + how.noise * z.detach().float().flatten(1).std(1)[:, None, None, None]
            rate = None if how.steps is None else code_bytes(z, how.steps).mean()
            if how.rounding is not None and how.steps is not None:
                z = z + how.rounding * how.steps[:, None, None]
            if how.kept is not None:
                middle = z.detach().float().mean(dim=(0, 2, 3), keepdim=True)[:, how.kept :]
                z = torch.cat([z[:, : how.kept], middle.to(z.dtype).expand_as(z[:, how.kept :])], dim=1)
            if how.turn is not None:
                z = how.turn(z)
            h = self.vae.decoder.body(z)
        prediction = cast(Tensor, self.vae.decoder.conv_out(h.float(), waves))
        return prediction if rate is None else (prediction, rate)


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relative_error": relative_error,
    "relative_angle": relative_angle,
    "charbonnier": charbonnier,
    "ms_ssim": ms_ssim_loss,
}


def loss_of(
    prediction: Tensor, target: Tensor, stage: EOVAEStage, progress: float, step: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the stage's losses inside its margin, and each loss's own value.

    MS-SSIM joins once `progress` reaches `ms_ssim_from`, or from optimiser step `ms_ssim_step` on where that is given.
    """
    m = stage.margin
    if m:
        prediction, target = prediction[..., m:-m, m:-m], target[..., m:-m, m:-m]
    total = prediction.new_zeros(())
    values: dict[str, Tensor] = {}
    for name, weight in stage.loss.items():
        if name == "relative_angle" and target.shape[1] == 1:
            continue
        if name == "ms_ssim":
            early = progress < stage.ms_ssim_from if stage.ms_ssim_step is None else step < stage.ms_ssim_step
            if early or min(target.shape[-2:]) < MIN_SIDE:
                continue
        value = TERMS[name](prediction, target)
        values[name] = value.detach()
        total = total + weight * value
    return total, values
