"""Describes a super-resolver (its sizes, what weights say of themselves) and builds its parts but for the U-Net."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.diffusion import schedule_named
from model.unet import UNetConfig
from model.weights_meta import WeightsError

FORMAT = "eocube-sr-1"
SPACES = ("latent", "pixel")
CONDITIONINGS = ("native", "upsampled", "sharpened")
TIMES = ("schedule", "even")


@dataclass(frozen=True, slots=True)
class SRConfig:
    """Sizes and meaning of a `SuperResolver`; ValueError in one line for what cannot be built.

    Args:
        channels: of the latents, or bands of the pixels.
        scale: how many times finer the result is.
        space: "latent" or "pixel".
        conditioning: "native", on what the low-resolution cube holds, (B, C, h, w); or "upsampled", as published: on
            its pixels brought to the fine grid by bicubic and then encoded, (B, C, 4h, 4w); or "sharpened", the same
            with the bicubic image put right by the sensor's MTF (`model.wald.sharpened`) before it is encoded.
        schedule: "vp" or "edm", see `model.diffusion`.
        unet: the denoiser. Its channels are `channels * fold**2`, its condition `features * fold**2` (or `channels`
            where there is no trunk; with `amplitude` and without a trunk it sees the condition relative to the local
            mean and contrast, and the contrast's logarithm: `channels` + 1).
        base: cells a side that the closed-form regression reads; 0 for none.
        trunk: channels of the convolutions that read the condition; 0 for none: the U-Net gets it as it is.
        trunk_blocks: how many residual blocks they are.
        features: channels of the condition on the fine grid that the trunk gives the U-Net.
        fold: cells a side that the U-Net takes together as channels.
        amplitude: whether the residual is measured in multiples of what the condition's own contrast lets expect
            (`Amplitude`), and the trunk sees the condition so too.
        times: the times that `sample` walks: the schedule's own, or "even" ones, in which few steps do more.
    """

    unet: UNetConfig
    channels: int = 32
    scale: int = 4
    space: str = "latent"
    conditioning: str = "native"
    schedule: str = "vp"
    base: int = 3
    trunk: int = 0
    trunk_blocks: int = 0
    features: int = 8
    fold: int = 1
    amplitude: bool = True
    times: str = "even"

    def __post_init__(self) -> None:
        for key, known in (("space", SPACES), ("conditioning", CONDITIONINGS), ("times", TIMES)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key} {getattr(self, key)!r} of a super-resolver: choose {' or '.join(known)}")
        if self.space == "pixel" and self.conditioning == "sharpened":
            raise ValueError("conditioning sharpened is of latents: in pixel space choose native or upsampled")
        schedule_named(self.schedule)
        if min(self.channels, self.scale, self.fold) < 1 or min(self.base, self.trunk, self.trunk_blocks) < 0:
            raise ValueError("channels, scale and fold of a super-resolver are 1 or more, base and trunk 0 or more")
        if self.base and self.base % 2 == 0:
            raise ValueError(f"base {self.base}: a neighbourhood has an odd number of cells a side")
        if self.scale % self.fold:
            raise ValueError(f"fold {self.fold} does not divide the scale {self.scale}")
        if not self.trunk and self.conditioning == "native" and self.unet.condition_scale * self.fold != self.scale:
            raise ValueError("without a trunk native conditioning needs a U-Net that lifts it: condition_scale")
        given = self.unet.channels_in, self.unet.channels_out, self.unet.condition
        if given != self.unet_channels:
            raise ValueError(
                f"the U-Net has {given[0]} channels in, {given[1]} out and {given[2]} of condition, these sizes need "
                f"{self.unet_channels[0]}, {self.unet_channels[1]} and {self.unet_channels[2]}"
            )

    @property
    def unet_channels(self) -> tuple[int, int, int]:
        """Channels in, out and of the condition that the U-Net must have."""
        inside = self.channels * self.fold**2
        if self.trunk:
            return inside, inside, self.features * self.fold**2
        seen = self.channels + (1 if self.amplitude else 0)
        return inside, inside, self.channels if self.conditioning == "native" else seen * self.fold**2

    @property
    def finer(self) -> int:
        """Cells of the result along one of the condition: `scale`, or 1 where that was upsampled before."""
        return self.scale if self.conditioning == "native" else 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        values = asdict(self)
        values["unet"] = {key: list(v) if isinstance(v, tuple) else v for key, v in values["unet"].items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` gave, or a recipe's; ValueError names a key that is none."""
        try:
            inner: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(values["unet"]).items()}
            return cls(**{**values, "unet": UNetConfig(**inner)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no configuration of a super-resolver: {error}") from None


@dataclass(frozen=True, slots=True)
class SRMeta:
    """What weights say of themselves.

    `encoder` is {"weights", "sha256", "bands", "sensor"} of what made the latents ("sha256" is that of
    `model.weights_meta`); None in pixel space. `bands` in order, `resolutions` the pairs (coarse, fine) in metres that
    it was trained on, `mtf` the transfer function at the coarse Nyquist of each band that made the pairs. `split` says
    which places were left out. `sha256` identifies tensors and configuration; it is computed on load.
    """

    name: str
    bands: tuple[str, ...]
    encoder: Mapping[str, Any] | None = None
    resolutions: tuple[tuple[float, float], ...] = ()
    mtf: tuple[float, ...] = ()
    training_data: str = ""
    licence: str = ""
    created: str = ""
    split: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = field(default="", compare=False)

    def to_header(self, config: SRConfig) -> dict[str, str]:
        """The safetensors header: every value a JSON string."""
        values = {"format": FORMAT, "config": config.to_dict(), **asdict(self)}
        del values["sha256"]
        return {key: json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_header(cls, header: Mapping[str, str] | None) -> tuple[SRMeta, SRConfig] | None:
        """Metadata and sizes of a header that `to_header` wrote; None for a header of another origin.

        Raises WeightsError where the header is ours but damaged.
        """
        if header is None or header.get("format") != json.dumps(FORMAT):
            return None
        try:
            values = {key: json.loads(text) for key, text in header.items() if key != "format"}
            config = SRConfig.from_dict(values.pop("config"))
            values["bands"] = tuple(values["bands"])
            values["mtf"] = tuple(values["mtf"])
            values["resolutions"] = tuple((float(low), float(high)) for low, high in values["resolutions"])
            known = {f.name for f in fields(cls)}
            if unknown := sorted(set(values) - known):
                raise ValueError(f"unknown key {unknown[0]}")
            return cls(**values), config
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise WeightsError(f"damaged metadata ({str(error)[:200]}): write the file again with save_sr") from error


class Whitening(nn.Module):
    """Coordinates of the residual: y = A (r - mean), unit covariance over the training split.

    Among all such coordinates those are taken in which the decoder's cost G (mean of J^T J: what a change of the
    latents does to the pixels, squared) is diagonal: A = U^T S^-1/2 with U the eigenvectors of S^1/2 G S^1/2. `cost`
    are its eigenvalues scaled to a mean of 1: what an error of one unit in each coordinate costs in pixels.
    """

    mean: Tensor
    forth: Tensor
    back: Tensor
    cost: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("forth", torch.eye(channels))
        self.register_buffer("back", torch.eye(channels))
        self.register_buffer("cost", torch.ones(channels))

    @torch.no_grad()
    def fit(self, mean: Tensor, covariance: Tensor, gram: Tensor | None = None) -> None:
        """Set them from moments (C,) and (C, C) of the residual, and the decoder's G (C, C) where it is known; without,
        each channel is scaled for itself."""
        covariance = covariance.double()
        if gram is None:
            spread = covariance.diagonal().clamp_min(1e-12).sqrt()
            forth, back, cost = torch.diag(1 / spread), torch.diag(spread), torch.ones_like(spread)
        else:
            values, vectors = torch.linalg.eigh(covariance)
            root = values.clamp_min(float(values.max()) * 1e-6).sqrt()
            half, unhalf = vectors * root @ vectors.T, vectors / root @ vectors.T
            cost, turned = torch.linalg.eigh(half @ gram.double() @ half)
            forth, back = turned.T @ unhalf, half @ turned
            cost = cost.clamp_min(0) / cost.clamp_min(0).mean()
        for name, value in (("mean", mean), ("forth", forth), ("back", back), ("cost", cost)):
            getattr(self, name).copy_(value)

    def into(self, residual: Tensor) -> Tensor:
        """(B, C, H, W) -> white coordinates."""
        return mixed_channels(self.forth, residual - self.mean[:, None, None])

    def out(self, white: Tensor) -> Tensor:
        """The inverse of `into`."""
        return mixed_channels(self.back, white) + self.mean[:, None, None]


class Amplitude(nn.Module):
    """How large a residual is to be expected around each cell, from what the condition itself does there.

    A field's edges leave less than a mountain's shadows: in coordinates of one spread for all ground the former are
    drowned. With E_c the energy of channel c of the normalised condition about its local mean, log s^2 = offset + sum
    of slope_c log E_c in each white coordinate, fitted by damped least squares over the training split; each E_c is
    held within what was seen there. Channels are told apart because some of them are what a codec keeps of fine detail:
    held-out places' residuals come out at 0.76 to 1.1 times what is expected, by the contrast of all channels together
    at 0.8 to 1.5, without any of this at 0.6 to 2.6 (RMS, nano2's RGBN).
    """

    slope: Tensor
    offset: Tensor
    range: Tensor

    def __init__(self, channels: int, finer: int, scale: int) -> None:
        super().__init__()
        self.pooled, self.scale = scale // finer, scale
        self.register_buffer("slope", torch.zeros(channels, channels))
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("range", torch.tensor([[-30.0], [30.0]]).repeat(1, channels))

    def local(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """Local mean and energy about it (B, C, h, w) of each channel on the coarse grid, over 3x3 coarse cells;
        borders repeated."""
        mean = around(F.avg_pool2d(normalised, self.pooled))
        energy = around(F.avg_pool2d((normalised - self._onto(mean)).square(), self.pooled))
        return mean, energy.clamp_min(1e-9)

    def forward(self, normalised: Tensor) -> Tensor:
        """Normalised condition -> s (B, C, H, W) on the fine grid."""
        low, high = self.range[:, :, None, None]
        log_energy = torch.minimum(torch.maximum(self.local(normalised)[1].log(), low), high)
        log_square = mixed_channels(self.slope, log_energy) + self.offset[:, None, None]
        fine = F.interpolate(log_square, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return (0.5 * fine).exp()

    def relative(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) and (B, 1, h, w) on the condition's own grid: its difference from the local mean over the root
        of all channels' energy, and the logarithm of that energy."""
        mean, energy = self.local(normalised)
        mean, whole = self._onto(mean), self._onto(energy.mean(1, keepdim=True))
        return (normalised - mean) * whole.rsqrt(), whole.log()

    def _onto(self, coarse: Tensor) -> Tensor:
        if self.pooled == 1:
            return coarse
        return F.interpolate(coarse, scale_factor=self.pooled, mode="bilinear", align_corners=False)


def around(x: Tensor) -> Tensor:
    """(B, C, h, w) -> means over 3x3 cells, borders repeated."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def mixed_channels(matrix: Tensor, x: Tensor) -> Tensor:
    """(C, C) applied to the channels of (B, C, H, W)."""
    return F.conv2d(x, matrix[:, :, None, None])


class _Block(nn.Module):
    """x + convolutions of the normalised x; the second starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(cast(Tensor, self.second.bias))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + cast(Tensor, self.second(F.silu(self.first(h))))


class Trunk(nn.Module):
    """Normalised condition -> its mean's part beyond the base (white coordinates) and features, both on the fine grid.

    All convolutions are on the coarse grid: an upsampled condition is folded onto it first.
    """

    def __init__(self, config: SRConfig) -> None:
        super().__init__()
        self.folded = config.scale // config.finer
        self.scale = config.scale
        seen = config.channels * (2 if config.amplitude else 1) * self.folded**2
        self.first = nn.Conv2d(seen, config.trunk, 3, padding=1, padding_mode="replicate")
        self.blocks = nn.Sequential(*(_Block(config.trunk) for _ in range(config.trunk_blocks)))
        self.mean = nn.Conv2d(config.trunk, config.channels * config.scale**2, 1)
        self.features = nn.Conv2d(config.trunk, config.features * config.scale**2, 1)
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(cast(Tensor, self.mean.bias))

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pixel_unshuffle(condition, self.folded).contiguous(memory_format=torch.channels_last)
        h = F.silu(self.blocks(self.first(x)))
        return F.pixel_shuffle(self.mean(h), self.scale), F.pixel_shuffle(self.features(h), self.scale)
