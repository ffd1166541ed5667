"""Runs TerraMind's image tokenizers as a baseline: published weights in, reconstructions of z-scored tiles out.

Source: TerraMind tokenizer specification, sections 2-7. Only the diffusion-decoded ones (S2L2A, S1RTC, S1GRD, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.sensors import SENSORS, Floats, TrainedSensor
from model.unet import PatchedUNet, ddim
from model.weights_meta import WeightsError

STEPS = 20
_GRID = 16
# terratorch's v1 statistics: what these weights were trained with, not EO-VAE's.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "S2L2A": (
        (1390.458, 1503.317, 1718.197, 1853.91, 2199.1, 2779.975, 2987.011, 3083.234, 3132.22, 3162.988, 2424.884,
         1857.648),
        (2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918, 1753.829, 1797.379, 1434.261,
         1334.311),
    ),
    "S1RTC": ((-10.93, -17.329), (4.391, 4.459)),
}  # fmt: skip


class FiniteScalars(nn.Module):
    """Finite scalar quantisation: (B, K, h, w) -> codes n / (L - 1) in [0, 1], n the rounded sigmoid * (L - 1)."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    def forward(self, z: Tensor) -> Tensor:
        top = torch.tensor(self.levels, device=z.device)[:, None, None] - 1
        return (torch.sigmoid(z) * top).round() / top

    def tokens(self, codes: Tensor) -> Tensor:
        """Codes (B, K, h, w) -> indices (B, h, w) into the code book, the first dimension counting fastest."""
        index = torch.zeros_like(codes[:, 0], dtype=torch.long)
        for k in reversed(range(len(self.levels))):
            index = index * self.levels[k] + (codes[:, k] * (self.levels[k] - 1)).round().long()
        return index

    def codes(self, tokens: Tensor) -> Tensor:
        """Inverse of `tokens`."""
        parts = []
        for level in self.levels:
            parts.append((tokens % level) / (level - 1))
            tokens = tokens // level
        return torch.stack(parts, dim=1)


class _Mlp(nn.Module):
    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = activation
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.act(self.fc1(x))))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return cast(Tensor, self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _SelfAttention(width, heads)
        self.mlp = _Mlp(width, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class _Encoder(nn.Module):
    """(B, C, H, W), sides multiples of `patch` -> (B, width, H / patch, W / patch)."""

    def __init__(self, sizes: TokenizerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.pos_emb = nn.Parameter(torch.zeros(1, width, sizes.grid, sizes.grid), requires_grad=False)
        self.proj = nn.Conv2d(sizes.channels, width, sizes.patch, stride=sizes.patch)
        self.blocks = nn.ModuleList(_Layer(width, sizes.heads) for _ in range(sizes.depth))
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.post_mlp = _Mlp(width, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h = self.proj(x)
        where: Tensor = self.pos_emb
        if where.shape[-2:] != h.shape[-2:]:
            where = F.interpolate(where, size=h.shape[-2:], mode="bicubic", align_corners=False)
        grid = h.shape[-2:]
        tokens = (h + where).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = tokens + self.post_mlp(self.norm_mlp(tokens))
        return cast(Tensor, tokens.transpose(1, 2).unflatten(2, grid))


@dataclass(frozen=True, slots=True)
class TokenizerSizes:
    """Sizes of a tokenizer; the defaults are the published ones, `channels` the sensor's bands."""

    channels: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    grid: int = _GRID
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    unet_base: int = 256
    unet_mult: tuple[int, ...] = (1, 2, 2, 2)
    unet_blocks: int = 3
    attend_at: tuple[int, ...] = (4, 8)


class Tokenizer(nn.Module):
    """ViT encoder, finite scalar quantisation and diffusion decoder, with the published keys."""

    def __init__(self, sizes: TokenizerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = _Encoder(sizes)
        self.quant_proj = nn.Conv2d(sizes.width, len(sizes.levels), 1)
        self.quantise = FiniteScalars(sizes.levels)
        self.decoder = PatchedUNet(
            sizes.channels, len(sizes.levels), base=sizes.unet_base, mult=sizes.unet_mult, blocks=sizes.unet_blocks,
            attend_at=sizes.attend_at,
        )  # fmt: skip

    def codes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) z-scores by the tokenizer's own statistics -> codes (B, K, H / patch, W / patch)."""
        return cast(Tensor, self.quantise(self.quant_proj(self.encoder(x))))

    def decode(self, codes: Tensor, *, steps: int = STEPS, clamp: float | None = 1.0, seed: int = 0) -> Tensor:
        """Codes -> (B, C, H, W) z-scores, from noise of `seed`; `clamp` 1 as published, None for a fair comparison.

        The noise is the same for each image: what an image decodes to must not depend on the batch it is in.
        """
        b, _, h, w = codes.shape
        shape = (1, self.sizes.channels, h * self.sizes.patch, w * self.sizes.patch)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(codes.device).expand(b, -1, -1, -1)
        return ddim(lambda x, step: self.decoder(x, step, codes), noise, steps, clamp=clamp)


def load_tokenizer(path: Path, sensor: str, sizes: TokenizerSizes | None = None) -> Tokenizer:
    """The tokenizer of a published `TerraMind_Tokenizer_<sensor>.pt`. WeightsError where the file holds another."""
    if sensor not in STATISTICS:
        raise WeightsError(f"TerraMind {sensor}: tokenizers can be given for {', '.join(STATISTICS)}")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"no such weights file: {path}") from None
    except Exception as error:  # on bytes that are no pickle the unpickler fails in any way whatever
        raise WeightsError(f"{path}: no torch checkpoint of tensors only ({type(error).__name__})") from error
    state = loaded
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds no state_dict")
    with torch.device("meta"):
        tokenizer = Tokenizer(sizes or TokenizerSizes(len(STATISTICS[sensor][0])))
    expected = {key: value.shape for key, value in tokenizer.state_dict().items()}
    wrong = [key for key, shape in expected.items() if key not in state or state[key].shape != shape]
    unknown = [key for key in state if key not in expected]
    if wrong or unknown:
        raise WeightsError(
            f"{path}: no TerraMind tokenizer of {sensor}: {len(wrong)} keys missing or of another shape, "
            f"{len(unknown)} unknown (first: {(wrong or unknown)[0]})"
        )
    tokenizer.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return tokenizer.eval()


@dataclass(slots=True)
class TerraMind:
    """A tokenizer of the sensor `name` for z-scores by anybody's statistics: it is fed with z-scores by its own.

    What goes in goes through physical units into terratorch's z-scores, what comes out the same way back. (The
    published evaluation of EO-VAE fed it with z-scores by EO-VAE's statistics.)
    """

    tokenizer: Tokenizer
    name: str
    steps: int = STEPS
    own: TrainedSensor = field(init=False)

    def __post_init__(self) -> None:
        mean, std = STATISTICS[self.name]
        self.own = replace(SENSORS[self.name], mean=mean, std=std)

    def reconstruct(self, z: Floats, sensor: TrainedSensor, *, clamp: bool) -> Floats:
        """(C, H, W) z-scores by `sensor` -> the same through the tokenizer, as `reconstruct_batch`."""
        whole: Floats = self.reconstruct_batch(_tensor(z)[None], sensor, clamp=clamp)[0].numpy()
        return whole

    @torch.no_grad()
    def reconstruct_batch(self, z: Tensor, sensor: TrainedSensor, *, clamp: bool) -> Tensor:
        """(B, C, H, W) z-scores by `sensor`, on the tokenizer's device -> the same through the tokenizer.

        Mirrored up to whole patches and U-Net. ValueError where `sensor` has other bands than the tokenizer.
        """
        if sensor.bands != self.own.bands:
            raise ValueError(f"TerraMind {self.name} knows {', '.join(self.own.bands)}, not {', '.join(sensor.bands)}")
        sizes = self.tokenizer.sizes
        whole = max(sizes.patch, self.tokenizer.decoder.patch * 2 ** (len(sizes.unet_mult) - 1))
        height, width = z.shape[-2:]
        x = F.pad(converted(z, sensor, self.own), (0, -width % whole, 0, -height % whole), mode="reflect")
        y = self.tokenizer.decode(self.tokenizer.codes(x), steps=self.steps, clamp=1.0 if clamp else None)
        return converted(y[..., :height, :width], self.own, sensor)


def converted(z: Tensor, old: TrainedSensor, new: TrainedSensor) -> Tensor:
    """z-scores (..., C, H, W) by one sensor's statistics -> z-scores by another's."""
    first, scale, mean, std = (
        torch.tensor(values, dtype=z.dtype, device=z.device)[:, None, None]
        for values in (old.mean, old.std, new.mean, new.std)
    )
    return (z * scale + first - mean) / std


def convert(z: Floats, old: TrainedSensor, new: TrainedSensor) -> Floats:
    """`converted`, of an array."""
    out: Floats = converted(_tensor(z), old, new).numpy()
    return out


def clamped(z: Tensor, sensor: TrainedSensor) -> Tensor:
    """The truth (..., C, H, W) with nothing but TerraMind's clamp to [-1, 1] in its own z-scores: the least error it
    can have."""
    own = sensor
    if sensor.name in STATISTICS and len(STATISTICS[sensor.name][0]) == len(sensor.bands):
        own = replace(sensor, mean=STATISTICS[sensor.name][0], std=STATISTICS[sensor.name][1])
    return converted(converted(z, sensor, own).clamp(-1, 1), own, sensor)


def clamp_alone(z: Floats, sensor: TrainedSensor) -> Floats:
    """`clamped`, of an array."""
    out: Floats = clamped(_tensor(z), sensor).numpy()
    return out


def _tensor(z: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(z))
