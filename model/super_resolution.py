"""Defines the super-resolver: low-resolution latents (or pixels) -> high-resolution ones, their mean and samples.

    sharp = load_sr("sr-nano.safetensors")
    mean = sharp.mean(lr)                                    # (B, 32, h, w) raw latents -> (B, 32, 4h, 4w)
    one = sharp.sample(lr, steps=8, generator=generator)     # one of the images that `lr` may stand for

What is known is taken by a regression, and only what that leaves is diffused. The `base` is a ridge regression in
closed form, a convolution with a pixel shuffle; the `trunk` adds what convolutions see beyond it, and conditions the
U-Net that denoises the residual: with no step at all the result is a regression's, never a picture of noise. The
residual lives in coordinates in which it is white and in which the decoder's cost is diagonal (`Whitening`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from model.diffusion import METHODS, Denoiser, Project, Schedule, even_times, precondition, sample, schedule_named
from model.super_resolution_parts import Amplitude, SRConfig, SRMeta, Trunk, Whitening, mixed_channels
from model.unet import TimeUNet
from model.wald import mtf_of
from model.weights import read_tensors
from model.weights_meta import WeightsError

__all__ = ["SRConfig", "SRMeta", "SuperResolver", "load_sr", "save_sr"]


class SuperResolver(nn.Module):
    """See the module. All that goes in and comes out is raw: posterior means in float32, or reflectance.

    `statistics` of the training split and the base are buffers and parameters: what a file holds is complete.
    """

    condition_mean: Tensor
    condition_std: Tensor

    def __init__(self, config: SRConfig, meta: SRMeta | None = None) -> None:
        super().__init__()
        self.config, self.meta = config, meta
        self.schedule: Schedule = schedule_named(config.schedule)
        self.register_buffer("condition_mean", torch.zeros(config.channels))
        self.register_buffer("condition_std", torch.ones(config.channels))
        self.white = Whitening(config.channels)
        self.amplitude = Amplitude(config.channels, config.finer, config.scale) if config.amplitude else None
        self.base: nn.Conv2d | None = None
        if config.base:
            self.base = nn.Conv2d(
                config.channels, config.channels * config.finer**2, config.base, padding=config.base // 2,
                padding_mode="replicate",
            )  # fmt: skip
            self.base.requires_grad_(False)
        self.trunk = Trunk(config) if config.trunk else None
        self.unet = TimeUNet(config.unet)

    def normalised(self, lr: Tensor) -> Tensor:
        """Raw condition -> z-scores by the training split's statistics."""
        if lr.ndim != 4 or lr.shape[1] != self.config.channels:
            raise ValueError(f"a condition of {tuple(lr.shape)}: need (B, {self.config.channels}, h, w)")
        return (lr.float() - self.condition_mean[:, None, None]) / self.condition_std[:, None, None]

    def linear(self, normalised: Tensor) -> Tensor | None:
        """The closed-form regression's raw result, None without one."""
        if self.base is None:
            return None
        return F.pixel_shuffle(cast(Tensor, self.base(normalised)), self.config.finer)

    def spread(self, normalised: Tensor) -> Tensor | None:
        """What the residual's white coordinates are measured in, (B, C, H, W); None where that is 1."""
        return None if self.amplitude is None else self.amplitude(normalised)

    def regression(self, normalised: Tensor) -> tuple[Tensor | None, Tensor]:
        """The trunk's part of the mean (white coordinates; None without a trunk) and the U-Net's condition."""
        relative = None if self.amplitude is None else self.amplitude.relative(normalised)
        if self.trunk is None:
            if self.config.finer > 1:
                return None, normalised
            seen = normalised if relative is None else torch.cat(relative, 1)
            return None, F.pixel_unshuffle(seen, self.config.fold)
        mean, features = self.trunk(normalised if relative is None else torch.cat([normalised, relative[0]], 1))
        return mean, F.pixel_unshuffle(features, self.config.fold)

    def denoise_with(self, condition: Tensor) -> Denoiser:
        """The preconditioned U-Net under a condition that `regression` gave, on unfolded (B, C, H, W)."""
        fold = self.config.fold

        def net(x: Tensor, level: Tensor) -> Tensor:
            given = condition if len(condition) == len(x) else condition.repeat(len(x) // len(condition), 1, 1, 1)
            return F.pixel_shuffle(cast(Tensor, self.unet(F.pixel_unshuffle(x, fold), level, given)), fold)

        return precondition(net, self.schedule)

    def denoiser(self, lr: Tensor) -> tuple[Denoiser, Callable[[Tensor], Tensor]]:
        """The denoiser under a raw condition, and the map from its white residuals (B, C, 4h, 4w) to raw results.

        `lr` of one image serves any number of noises at once; else as many as noises, or a divisor of them in whole
        repetitions.
        """
        normalised = self.normalised(lr)
        mean, condition = self.regression(normalised)
        linear, spread = self.linear(normalised), self.spread(normalised)

        def raw(white: Tensor) -> Tensor:
            times = len(white) // len(lr)
            whole = white if mean is None else white + mean.float().repeat(times, 1, 1, 1)
            result = self.white.out(whole if spread is None else whole * spread.repeat(times, 1, 1, 1))
            return result if linear is None else result + linear.repeat(times, 1, 1, 1)

        return self.denoise_with(condition), raw

    def whitened(self, change: Tensor, lr: Tensor) -> Tensor:
        """A difference of raw results (B, C, 4h, 4w) in the white coordinates under a raw condition."""
        white, spread = mixed_channels(self.white.forth, change), self.spread(self.normalised(lr))
        return white if spread is None else white / spread.repeat(len(white) // len(spread), 1, 1, 1)

    def shape(self, lr: Tensor) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the result."""
        finer = self.config.finer
        return len(lr), self.config.channels, lr.shape[-2] * finer, lr.shape[-1] * finer

    @torch.no_grad()
    def mean(self, lr: Tensor) -> Tensor:
        """The conditional mean, raw (B, C, 4h, 4w): the regression's where there is one, else the denoiser's answer to
        pure noise (of a fixed seed), which is the published network's only one."""
        if self.trunk is not None or self.base is not None:
            _, raw = self.denoiser(lr)
            return raw(torch.zeros(self.shape(lr), device=lr.device))
        denoise, raw = self.denoiser(lr)
        noise = self._noise(lr, torch.Generator().manual_seed(0))
        t = torch.ones(len(lr), device=lr.device)
        scale = torch.hypot(self.schedule.alpha(t), self.schedule.sigma(t))[:, None, None, None]
        return raw(denoise(scale * noise, t))

    @torch.no_grad()
    def sample(
        self, lr: Tensor, *, steps: int = 8, method: str = "dpmpp", noise: Tensor | None = None,
        generator: torch.Generator | None = None, project: Project | None = None,
    ) -> Tensor:  # fmt: skip
        """One draw for each condition, raw (B, C, 4h, 4w).

        Args:
            lr: raw condition (B, C, h, w).
            steps, method: see `model.diffusion.sample`.
            noise: the start, standard normal of the result's shape; else drawn from `generator` (or torch's own).
            project: maps a RAW estimate and its time to a raw estimate at every step.

        Raises:
            ValueError: an unknown method, or shapes that do not fit.
        """
        if method not in METHODS:
            raise ValueError(f"no sampler is called {method!r}: choose one of {', '.join(METHODS)}")
        denoise, raw = self.denoiser(lr)
        noise = self._noise(lr, generator) if noise is None else noise
        inner: Project | None = None
        if project is not None:
            zero = raw(torch.zeros_like(noise))

            def inner(estimate: Tensor, t: Tensor) -> Tensor:
                return self.whitened(project(raw(estimate), t) - zero, lr)

        times = even_times(self.schedule, steps) if self.config.times == "even" else None
        return raw(sample(denoise, noise, self.schedule, steps=steps, method=method, project=inner, times=times))

    def _noise(self, lr: Tensor, generator: torch.Generator | None) -> Tensor:
        device = lr.device if generator is None else generator.device
        return torch.randn(self.shape(lr), generator=generator, device=device).to(lr.device)

    def transfer(self, bands: Sequence[str]) -> tuple[float, ...]:
        """The MTF at the low resolution's Nyquist of each band: the weights' own, else the sensor's."""
        return self.meta.mtf if self.meta is not None and self.meta.mtf else mtf_of(bands)

    def check_encoder(self, sha256: str, bands: Sequence[str]) -> None:
        """WeightsError where latents of an encoder with this hash and these bands are not what these weights know."""
        meta = self.meta
        if meta is None or meta.encoder is None:
            return
        if meta.encoder["sha256"] != sha256:
            raise WeightsError(
                f"{meta.name} knows latents of {meta.encoder['weights']} ({meta.encoder['sha256'][:12]}), these are "
                f"of another encoder ({sha256[:12]}): encode with {meta.encoder['weights']}, or use jobs/train_sr.py"
            )
        if tuple(bands) != meta.bands:
            raise WeightsError(
                f"{meta.name} knows latents of {' '.join(meta.bands)}, these are of {' '.join(bands)}: encode its bands"
            )


def load_sr(source: str | Path, *, device: str | torch.device = "cpu") -> SuperResolver:
    """A super-resolver in float32 and eval mode, with `meta`.

    Args:
        source: a path, hf://owner/name or another fsspec URL, as `load_weights` takes them.
        device: where it goes.

    Raises:
        WeightsError: no such weights, weights of another kind, or keys missing, unexpected or of another shape.
    """
    said, state, header = read_tensors(str(source))
    try:
        found = SRMeta.from_header(header)
    except WeightsError as error:
        raise WeightsError(f"{said}: {error}") from error
    if found is None:
        raise WeightsError(f"{said}: no super-resolution weights: jobs/train_sr.py makes them")
    meta, config = found
    with torch.device("meta"):
        net = SuperResolver(config)
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    wrong = [key for key in {**expected, **state} if key not in state or tuple(state[key].shape) != expected.get(key)]
    if wrong:
        raise WeightsError(f"{said}: {len(wrong)} keys missing, unexpected or of another shape, {wrong[0]} the first")
    tensors = {key: value.to(torch.float32) for key, value in state.items()}
    if broken := [key for key, value in tensors.items() if not torch.isfinite(value).all()]:
        raise WeightsError(f"{said}: values that are not finite in {broken[0]}")
    net = SuperResolver(config)  # anew, off the meta device: what a state does not hold is made here
    net.load_state_dict(tensors)
    net.meta = replace(meta, sha256=content_hash(tensors, config))
    return net.to(device).eval().requires_grad_(False)


def save_sr(net: SuperResolver, path: str | Path, meta: SRMeta, dtype: torch.dtype = torch.float16) -> None:
    """Write weights as safetensors with their metadata, whole or not at all.

    Statistics, coordinates and the closed-form base stay float32: the base is solved, its small differences count.

    Raises:
        WeightsError: another dtype than float32 or float16, or values that are not finite in it.
    """
    if dtype not in (torch.float32, torch.float16):
        raise WeightsError(f"weights are saved as float32 or float16, not {dtype}")
    state: dict[str, Tensor] = {}
    for key, tensor in net.state_dict().items():
        value = tensor.detach().cpu().to(dtype if key.startswith(("trunk.", "unet.")) else torch.float32)
        if not torch.isfinite(value).all():
            raise WeightsError(f"{key} is not finite in {dtype}: save as float32, or train again")
        state[key] = value.contiguous()
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        save_file(state, partial, metadata=meta.to_header(net.config))
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def content_hash(state: Mapping[str, Tensor], config: SRConfig) -> str:
    """SHA-256 (hex) of the tensors as float32 in key order and of the configuration."""
    found = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for key in sorted(state):
        tensor = state[key].detach().to("cpu", torch.float32).contiguous()
        found.update(f"{key}{list(tensor.shape)}".encode())
        found.update(tensor.numpy().data)
    return found.hexdigest()
