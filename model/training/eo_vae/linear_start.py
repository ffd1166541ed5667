"""Solves a start in closed form: the network as a linear transform near the KLT, before any training.

What remains when every residual branch ends in a zeroed convolution (the skeleton) is linear up to the two final norms.
Down: each stride-2 convolution holds the PCA of the 2x2 blocks of the level above. Up: each convolution after nearest
upsampling is fitted by ridge regression. The final norms are made transparent: a pair of constant channels +c and -c
fixes the spread of its group, and signals stand in pairs (s, -s), so that the group's mean is zero and SiLU passes
them unchanged: silu(s) - silu(-s) = s, exactly and at any brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import ResBlock
from model.eo_vae import EOVAE
from model.training.eo_vae.skeleton import silence_branches

SPREAD = 0.5
ENCODER_CONSTANT = 256.0
DECODER_CONSTANT = 96.0
LOGVAR = -10.0
OPTICAL, RADAR, RADAR_SIGNALS = 12, 2, 22


@dataclass(frozen=True, slots=True)
class StaticKernels:
    """First (ch, C, 3, 3) and last (C, ch, 3, 3) convolutions of the start for S2L2A and S1.

    `cirrus` (12,) predicts L1C's B10 from the other bands' z-scores.
    """

    optical_in: Tensor
    optical_out: Tensor
    radar_in: Tensor
    radar_out: Tensor
    cirrus: Tensor


def _principal(samples: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Second-moment PCA of (N, D): rows (keep, D) and their root mean squares (keep,)."""
    values, vectors = torch.linalg.eigh((samples.T @ samples / len(samples)).double())
    order = values.argsort(descending=True)[:keep]
    return vectors[:, order].T.float(), values[order].clamp_min(1e-12).sqrt().float()


def _blocks(h: Tensor) -> Tensor:
    """(N, C, H, W) -> (M, C * 4), 2x2 blocks in (c, row, column) order."""
    return F.pixel_unshuffle(h, 2).permute(0, 2, 3, 1).flatten(0, 2)


def _set_down(conv: nn.Conv2d, rows: Tensor, out_at: int, in_at: int) -> None:
    """Write (K, C * 4) block filters into the first two rows and columns of a stride-2 3x3 convolution."""
    taps = rows.reshape(len(rows), -1, 2, 2)
    conv.weight[out_at : out_at + len(taps), in_at : in_at + taps.shape[1], :2, :2] = taps


def _ridge(h: Tensor, target: Tensor, most: int = 60_000) -> Tensor:
    """3x3 convolution (K, C, 3, 3) that after nearest upsampling of `h` predicts `target` best, bar the borders."""
    up = F.interpolate(h, scale_factor=2.0, mode="nearest")
    features = F.unfold(up, 3)
    wanted = target[:, :, 1:-1, 1:-1].flatten(2)
    per_image = max(1, most // len(h))
    pick = torch.randperm(features.shape[2], generator=torch.Generator().manual_seed(0))[:per_image]
    a = features[:, :, pick].permute(1, 0, 2).flatten(1).double()
    b = wanted[:, :, pick].permute(1, 0, 2).flatten(1).double()
    gram = a @ a.T
    gram += 1e-5 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram, a @ b.T).T
    kernel: Tensor = solution.reshape(len(target[0]), h.shape[1], 3, 3).float()
    return kernel


def pair_layout(channels: int, groups: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Channel numbers of the signal pairs, dealt over the groups in turn, and of each group's pair of constants."""
    size = channels // groups
    if size < 4 or size % 2:
        raise ValueError(f"{channels} channels in {groups} groups: the linear start needs an even group of 4 or more")
    pairs = [(g * size + 2 * p, g * size + 2 * p + 1) for p in range(size // 2 - 1) for g in range(groups)]
    constants = [(g * size + size - 2, g * size + size - 1) for g in range(groups)]
    return pairs, constants


def _open_norm(norm: nn.GroupNorm, pairs: list[tuple[int, int]], constant: float, gain: float) -> None:
    """Make a norm pass its signals times `gain` and give zero for the constants that fix its spread."""
    size = norm.num_channels // norm.num_groups
    norm.weight.zero_()
    norm.bias.zero_()
    for pair in pairs:
        norm.weight[list(pair)] = constant * (2 / size) ** 0.5 * gain


@dataclass(slots=True)
class _Fit:
    """What the encoder's fit leaves for the decoder's: per sensor (S2, S1) the true signals of each level, the
    spreads that the network's own channels were divided by, and the latents."""

    signals: list[list[Tensor]]
    spreads: list[list[Tensor]]
    latents: list[Tensor]
    spectral: Tensor


@torch.no_grad()
def linear_start(vae: EOVAE, optical: Tensor, radar: Tensor) -> StaticKernels:
    """Set `vae` to the closed form, fitted on z-scored patches (N, 12, H, W) of S2L2A and (N, 2, H, W) of S1.

    Returns the static kernels of the two dynamic layers. ValueError for another topology than ch >= 32 and the
    published multipliers.
    """
    cfg = vae.config
    if cfg.ch < 32 or cfg.ch_mult != (1, 2, 4, 4):
        raise ValueError(f"linear start: need ch >= 32 and ch_mult (1, 2, 4, 4), got {cfg.ch} and {cfg.ch_mult}")
    _clear(vae)
    fit = _set_encoder(vae, optical, radar)
    current = _set_decoder(vae, fit)
    return _set_ends(vae, fit, current)


def _clear(vae: EOVAE) -> None:
    """Silent branches, identities as shortcuts, no biases, little elsewhere."""
    silence_branches(vae)
    for name, p in vae.named_parameters():
        if any(part in name for part in ("weight_generator", "fclayer", ".block", ".attn")):
            continue
        if name.endswith("bias"):
            p.zero_()
        elif ".norm" not in name:
            p.mul_(0.2)
    for module in vae.modules():
        if isinstance(module, ResBlock) and module.nin_shortcut is not None:
            weight, bias = module.nin_shortcut.weight, module.nin_shortcut.bias
            weight.zero_()
            if bias is not None:
                bias.zero_()
            wide = min(weight.shape[:2])
            weight[range(wide), range(wide), 0, 0] = 1


def _set_encoder(vae: EOVAE, optical: Tensor, radar: Tensor) -> _Fit:
    """PCA of 2x2 blocks, level by level; S2's signals first, S1's own channels behind them.

    Weights are written for channels of unit spread (equal steps then do equal good), the PCA sees true energies.
    """
    cfg, encoder = vae.config, cast(Any, vae.encoder)
    spectral, rms = _principal(optical.permute(0, 2, 3, 1).flatten(0, 2)[::7], OPTICAL)
    signals = [[torch.einsum("kc,nchw->nkhw", spectral, optical)], [radar]]
    spreads = [[_floored(rms, 0.2)], [_floored(radar.square().mean((0, 2, 3)).sqrt())]]
    starts = [0, OPTICAL]
    for depth, split in enumerate(((24, 8), (2 * cfg.ch - 24, 24))):
        conv, at = encoder.down[depth].downsample.conv, 0
        conv.weight.zero_()
        for s in range(2):
            rows, rms = _principal(_blocks(signals[s][-1])[::3], split[s])
            _set_down(conv, _rescaled(rows, spreads[s][-1], _floored(rms)), at, starts[s])
            signals[s].append(_apply_blocks(signals[s][-1], rows))
            spreads[s].append(_floored(rms))
            starts[s] = at
            at += len(rows)
    pairs, constants = pair_layout(encoder.norm_out.num_channels, cfg.norm_groups)
    conv, at, latents = encoder.down[2].downsample.conv, 0, []
    conv.weight.zero_()
    encoder.conv_out.weight.zero_()
    for s, count in enumerate((len(pairs) - RADAR_SIGNALS, RADAR_SIGNALS)):
        rows, rms = _principal(_blocks(signals[s][-1]), count)
        used = pairs[at : at + count]
        _set_pairs_down(conv, _rescaled(rows, spreads[s][-1], rms / SPREAD), used, starts[s])
        at += count
        # Latents are the leading signals at unit variance; a rotation would only hide which is which.
        keep = min(cfg.z_channels, count)
        for k, (plus, minus) in enumerate(used[:keep]):
            encoder.conv_out.weight[k, plus, 1, 1] = 1 / SPREAD
            encoder.conv_out.weight[k, minus, 1, 1] = -1 / SPREAD
        signal = _apply_blocks(signals[s][-1], rows[:keep] / rms[:keep, None])
        latents.append(F.pad(signal, (0, 0, 0, 0, 0, cfg.z_channels - keep)))
    for plus, minus in constants:
        conv.bias[plus], conv.bias[minus] = ENCODER_CONSTANT, -ENCODER_CONSTANT
    _open_norm(encoder.norm_out, pairs, ENCODER_CONSTANT, 1.0)
    inner = [block.norm1 for block in (*encoder.down[3].block, encoder.mid.block_1, encoder.mid.block_2)]
    for norm in (*inner, encoder.mid.attn_1.norm):
        _open_norm(norm, pairs, ENCODER_CONSTANT, 1 / SPREAD)
    encoder.quant_conv.weight.copy_(torch.eye(2 * cfg.z_channels)[:, :, None, None])
    encoder.quant_conv.bias[cfg.z_channels :] = LOGVAR
    return _Fit(signals, spreads, latents, spectral)


def _set_decoder(vae: EOVAE, fit: _Fit) -> list[Tensor]:
    """Latents back to each level's signals by ridge regression, spare channels random and unread.

    Returns per sensor the signals at full resolution, as the decoder gives them.
    """
    z, decoder = vae.config.z_channels, cast(Any, vae.decoder)
    decoder.post_quant_conv.weight.copy_(torch.eye(z)[:, :, None, None])
    decoder.conv_in.weight.zero_()
    decoder.conv_in.weight[range(z), range(z), 1, 1] = 1
    current, read = fit.latents, [list(range(z))] * 2
    for depth in (2, 1, 0):
        conv, at = decoder.up[depth + 1].upsample.conv, 0
        conv.weight.zero_()
        following: list[Tensor] = []
        homes: list[list[int]] = []
        for s in range(2):
            kernel = _ridge(current[s], fit.signals[s][depth] / fit.spreads[s][depth][:, None, None])
            home = list(range(at, at + len(kernel)))
            conv.weight[torch.tensor(home)[:, None], torch.tensor(read[s])[None, :]] = kernel
            following.append(F.conv2d(F.interpolate(current[s], scale_factor=2.0, mode="nearest"), kernel, padding=1))
            homes.append(home)
            at += len(kernel)
        nn.init.kaiming_uniform_(conv.weight[at:], a=2.0)
        current, read = following, homes
    return current


def _set_ends(vae: EOVAE, fit: _Fit, current: list[Tensor]) -> StaticKernels:
    """The decoder's last norm, and the static kernels of the two dynamic convolutions."""
    c, decoder = vae.config.ch, cast(Any, vae.decoder)
    pairs, constants = pair_layout(c, vae.config.norm_groups)
    last = decoder.up[0].block[0].nin_shortcut
    last.weight.zero_()
    gains = torch.cat([SPREAD / h.square().mean((0, 2, 3)).sqrt().clamp_min(0.3) for h in current])
    taps = torch.zeros(OPTICAL + RADAR, c)
    for k, (plus, minus) in enumerate(pairs[: OPTICAL + RADAR]):
        last.weight[plus, k], last.weight[minus, k] = gains[k], -gains[k]
        taps[k, plus], taps[k, minus] = 1 / gains[k], -1 / gains[k]
    for plus, minus in constants:
        last.bias[plus], last.bias[minus] = DECODER_CONSTANT, -DECODER_CONSTANT
    _open_norm(decoder.norm_out, pairs, DECODER_CONSTANT, 1.0)
    for block in list(decoder.up[0].block)[1:]:
        _open_norm(block.norm1, pairs, DECODER_CONSTANT, 1 / SPREAD)
    spectral, (optical, radar) = fit.spectral, (spread[0] for spread in fit.spreads)
    kernels = StaticKernels(
        torch.zeros(c, OPTICAL, 3, 3),
        torch.zeros(OPTICAL, c, 3, 3),
        torch.zeros(c, RADAR, 3, 3),
        torch.zeros(RADAR, c, 3, 3),
        torch.zeros(OPTICAL),
    )
    kernels.optical_in[:OPTICAL, :, 1, 1] = spectral / optical[:, None]
    kernels.optical_out[:, :, 1, 1] = spectral.T @ (optical[:, None] * taps[:OPTICAL])
    kernels.radar_in[OPTICAL : OPTICAL + RADAR, :, 1, 1] = torch.diag(1 / radar)
    kernels.radar_out[:, :, 1, 1] = radar[:, None] * taps[OPTICAL:]
    return kernels


def _floored(rms: Tensor, share: float = 0.02) -> Tensor:
    return rms.clamp_min(share * float(rms.max()))


def _rescaled(rows: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Block filters (K, C * 4) for inputs divided by `inside` (C,), giving outputs divided by `outside` (K,)."""
    return rows * inside.repeat_interleave(4)[None] / outside[:, None]


def _apply_blocks(h: Tensor, rows: Tensor) -> Tensor:
    return F.conv2d(F.pixel_unshuffle(h, 2), rows[:, :, None, None])


def _set_pairs_down(conv: nn.Conv2d, rows: Tensor, pairs: list[tuple[int, int]], in_at: int) -> None:
    for row, (plus, minus) in zip(rows, pairs, strict=True):
        _set_down(conv, row[None], plus, in_at)
        _set_down(conv, -row[None], minus, in_at)
