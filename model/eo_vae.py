"""Defines EO-VAE: one auto-encoder for any set of spectral channels, with the published keys, shapes and quirks.

Source: the published code of EO-VAE (nilsleh/eo-vae) and of the FLUX.2 autoencoder that it builds on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import Level, Mid, group_norm
from model.config import EOVAEConfig as EOVAEConfig
from model.hypernet import DynamicConvIn, DynamicConvOut

if TYPE_CHECKING:
    from model.weights_meta import WeightsMeta

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0
PATCH = 2
BN_EPS_FORWARD = 1e-5
BN_EPS_INVERSE = 1e-4


@dataclass(frozen=True, slots=True)
class Posterior:
    """Diagonal Gaussian over latents: `mean` and clamped `logvar`, both (B, z, H/stride, W/stride)."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The most likely latent: the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, mean + exp(logvar / 2) * noise, from `generator` (or torch's default one)."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class Encoder(nn.Module):
    """(B, C, H, W) normalised pixels and C wavelengths -> moments (B, 2 * z, H/stride, W/stride)."""

    def __init__(self, cfg: EOVAEConfig) -> None:
        super().__init__()
        widths = [cfg.ch, *[cfg.ch * m for m in cfg.ch_mult]]
        last = len(cfg.ch_mult) - 1
        self.conv_in = DynamicConvIn(
            cfg.ch, cfg.wavelength_dim, cfg.hypernet_layers, cfg.hypernet_heads, cfg.hypernet_ff
        )
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], cfg.num_res_blocks, cfg.norm_groups, downsample=i < last)
            for i in range(last + 1)
        )
        self.mid = Mid(widths[-1], cfg.norm_groups)
        self.norm_out = group_norm(widths[-1], cfg.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * cfg.z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * cfg.z_channels, 2 * cfg.z_channels, 1)

    def body(self, h: Tensor) -> Tensor:
        """Everything after the first convolution: (B, ch, H, W) -> moments."""
        for level in self.down:
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return cast(Tensor, self.quant_conv(h))

    def forward(self, x: Tensor, wavelengths: Tensor | Sequence[float]) -> Tensor:
        return self.body(self.conv_in(x, wavelengths))


class Decoder(nn.Module):
    """(B, z, h, w) raw latents and C wavelengths -> (B, C, h * stride, w * stride) normalised pixels."""

    def __init__(self, cfg: EOVAEConfig) -> None:
        super().__init__()
        widths = [*[cfg.ch * m for m in cfg.ch_mult], cfg.ch * cfg.ch_mult[-1]]
        self.post_quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 1)
        self.conv_in = nn.Conv2d(cfg.z_channels, widths[-1], 3, padding=1)
        self.mid = Mid(widths[-1], cfg.norm_groups)
        self.up = nn.ModuleList(
            Level(widths[i + 1], widths[i], cfg.num_res_blocks + 1, cfg.norm_groups, upsample=i > 0)
            for i in range(len(cfg.ch_mult))
        )
        self.norm_out = group_norm(widths[0], cfg.norm_groups)
        self.conv_out = DynamicConvOut(
            widths[0], cfg.wavelength_dim, cfg.hypernet_layers, cfg.hypernet_heads, cfg.hypernet_ff
        )

    def body(self, z: Tensor) -> Tensor:
        """Everything before the last convolution: raw latents -> (B, ch * ch_mult[0], H, W)."""
        h = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            h = level(h)
        return F.silu(self.norm_out(h))

    def forward(self, z: Tensor, wavelengths: Tensor | Sequence[float]) -> Tensor:
        return cast(Tensor, self.conv_out(self.body(z), wavelengths))


class EOVAE(nn.Module):
    """The published EO-VAE. Wavelengths are micrometres, one a channel; pixels are z-scores; latents are float.

    Published weights know the wavelengths they were trained with, errors included: pass those. `meta` says them: it is
    set by `model.weights.load_weights`, and None for a fresh network or a file that does not say.
    """

    def __init__(self, config: EOVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or EOVAEConfig()
        self.meta: WeightsMeta | None = None
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.bn = nn.BatchNorm2d(PATCH * PATCH * self.config.z_channels, eps=BN_EPS_FORWARD, affine=False)

    @property
    def scale_factor(self) -> int:
        """Pixels a side under one latent."""
        return self.config.scale_factor

    def encode(self, x: Tensor, wavelengths: Tensor | Sequence[float]) -> Posterior:
        """Pixels (B, C, H, W), sides multiples of `scale_factor` -> posterior; ValueError for other shapes."""
        if x.ndim != 4 or x.shape[1] != len(wavelengths):
            raise ValueError(f"x has shape {tuple(x.shape)}: need (B, C, H, W) with C = {len(wavelengths)} wavelengths")
        if x.shape[2] % self.scale_factor or x.shape[3] % self.scale_factor:
            raise ValueError(f"image of {x.shape[2]}x{x.shape[3]}: sides must be multiples of {self.scale_factor}")
        mean, logvar = self.encoder(x, wavelengths).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))

    def decode(self, z: Tensor, wavelengths: Tensor | Sequence[float]) -> Tensor:
        """Raw latents (B, z, h, w) -> pixels (B, C, h * scale_factor, w * scale_factor), any C >= 1."""
        if z.ndim != 4 or z.shape[1] != self.config.z_channels:
            raise ValueError(f"z has shape {tuple(z.shape)}: need (B, {self.config.z_channels}, h, w)")
        return cast(Tensor, self.decoder(z, wavelengths))

    @staticmethod
    def pack(z: Tensor) -> Tensor:
        """'b c (h 2) (w 2) -> b (c 2 2) h w'; ValueError for odd sides."""
        if z.shape[-2] % PATCH or z.shape[-1] % PATCH:
            raise ValueError(f"latent of {z.shape[-2]}x{z.shape[-1]}: normalised latents need even sides")
        return F.pixel_unshuffle(z, PATCH)

    @staticmethod
    def unpack(z: Tensor) -> Tensor:
        """Inverse of `pack`."""
        return F.pixel_shuffle(z, PATCH)

    def normalise_packed(self, packed: Tensor) -> Tensor:
        """Batch-norm packed latents (B, 4z, h/2, w/2) with eps 1e-5; in training mode batch statistics normalise
        and the running ones are updated, as published."""
        return cast(Tensor, self.bn(packed))

    def denormalise_packed(self, packed: Tensor) -> Tensor:
        """Undo `normalise_packed` with the running statistics and eps 1e-4: by that asymmetry not an exact inverse."""
        mean, var = self.bn.running_mean, self.bn.running_var
        if mean is None or var is None:
            raise ValueError("bn keeps no running statistics: build it with track_running_stats=True")
        scale = torch.sqrt(var + BN_EPS_INVERSE)
        return packed * scale.reshape(1, -1, 1, 1) + mean.reshape(1, -1, 1, 1)

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of each latent channel (z,) in float64, from the running statistics of the packed ones.

        The batch norm sees latents packed 2x2, channel-major: four consecutive statistics belong to one channel.

        Raises:
            ValueError: the batch norm keeps none.
        """
        if self.bn.running_mean is None or self.bn.running_var is None:
            raise ValueError("the weights keep no latent statistics")
        parts = (self.config.z_channels, PATCH * PATCH)
        means, variances = self.bn.running_mean.double().reshape(parts), self.bn.running_var.double().reshape(parts)
        mean = means.mean(1)
        return mean, (variances.mean(1) + (means - mean[:, None]).square().mean(1)).sqrt()

    def normalise(self, z: Tensor) -> Tensor:
        """Raw latents (B, z, h, w), even sides -> batch-norm-normalised latents of the same spatial form."""
        return self.unpack(self.normalise_packed(self.pack(z)))

    def denormalise(self, z: Tensor) -> Tensor:
        """Normalised latents of spatial form -> raw latents, same shape."""
        return self.unpack(self.denormalise_packed(self.pack(z)))

    def reconstruct(self, x: Tensor, wavelengths: Tensor | Sequence[float]) -> Tensor:
        """Encode, take the mode, through the batch norm and back, decode: (B, C, H, W) -> (B, C, H, W)."""
        z = self.encode(x, wavelengths).mode()
        return self.decode(self.denormalise(self.normalise(z)), wavelengths)

    def forward(self, x: Tensor, wavelengths: Tensor | Sequence[float]) -> Tensor:
        """As `reconstruct`."""
        return self.reconstruct(x, wavelengths)
