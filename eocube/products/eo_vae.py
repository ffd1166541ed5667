"""Makes EO-VAE latents and pixels of them: device, precision, batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from eocube.errors import InputError
from eocube.products.base import Decoder, Encoder, Truth
from eocube.products.decoder_cache import MIXED
from eocube.products.eo_vae_document import KIND, Quantisation
from eocube.products.half_batches import HalfBatches
from eocube.products.shared_batches import Widening
from eocube.products.shelf import take
from eocube.products.spec import Actor, Product
from eocube.sensors.sensor import Sensor
from model.chip import fastest_cpu_dtype
from model.eo_vae import EOVAE
from model.fused import FusedDecoder, FusedEncoder, cpu_steps
from model.fused_gpu import compiler_missing
from model.memory import largest_divisor
from model.pixels import PixelPipeline
from model.weights import WeightsError, WeightsMeta, load_weights

log = logging.getLogger(__name__)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LADDER = {"fp16": ("fp16", "bf16", "fp32"), "bf16": ("bf16", "fp32"), "fp32": ("fp32",)}
"""Precisions tried in turn for a window whose latents are not finite, the run's own first."""
GPU_BATCH = 10
"""Windows a batch on a GPU that nobody could measure. Fixed: a convolution's last bits depend on it."""
MOST_WINDOWS = 50
"""Windows a batch at most: half of a shard's hundred, so that one half is read while the other is encoded."""
MIXED_ERROR = 1e-3
"""Share of a decoded picture's contrast that mixed precision may be off float32, in L2; beyond, float32 is taken.

A picture's own error is some 3 % of it at best, beside which this is nothing: it costs `nano` under 0.001 dB of PSNR.
"""
_PROBE = 8  # latents a side of the picture that tells
INT8_STEPS_PER_SIGMA = 16.0
"""int8 storage: a step is a 16th of a channel's spread, so codes reach 7.9 spreads either side."""


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Weights with their metadata, as named by the user."""

    source: str
    vae: EOVAE
    meta: WeightsMeta

    @property
    def means(self) -> tuple[float, ...] | None:
        """Of each latent channel; None where the weights keep no statistics."""
        try:
            return tuple(self.vae.channel_statistics()[0].tolist())
        except ValueError:
            return None


def load(source: str, device: str = "cpu") -> LoadedWeights:
    """Weights with metadata, by a name, path or URL that `model.weights.load_weights` takes.

    Raises:
        InputError: no such weights, or weights without the metadata that says what their latents mean.
    """
    if isinstance(kept := take((KIND, source)), LoadedWeights):
        kept.vae.to(device)
        return kept
    try:
        vae = load_weights(source, device=device)
    except (WeightsError, OSError, ValueError) as error:
        raise InputError(f"weights {source!r}: {error}") from error
    if vae.meta is None:
        raise InputError(
            f"weights {source!r} carry no metadata (sensors, wavelengths, normalisation): "
            "save them with model.weights.save_weights first"
        )
    return LoadedWeights(source, vae.eval(), vae.meta)


def int8_quantisation(vae: EOVAE) -> Quantisation:
    """Per-channel (scale, offset) for int8 latents, from the running statistics that the weights carry."""
    try:
        offset, spread = vae.channel_statistics()
    except ValueError as error:
        raise InputError(f"{error}: only --storage fp16 can do without them") from None
    return tuple((spread / INT8_STEPS_PER_SIGMA).tolist()), tuple(offset.tolist())


class EoVae:
    """The codec of EO-VAE latents: its weights loaded, checked to be the product's."""

    def __init__(self, product: Product, weights: LoadedWeights) -> None:
        self.product, self._weights = product, weights

    @property
    def ladder(self) -> tuple[str, ...]:
        """The run's own precision, then those of a wider range."""
        return LADDER[self.product.precision]

    @property
    def floor(self) -> float | None:
        """The least PSNR that the weights record for the sensor."""
        sensor = self.product.sensor
        return self._weights.meta.psnr_floor(sensor.trained_as or sensor.name)

    @property
    def _resolution(self) -> int:
        return int(self.product.meaning["resolution"])

    def batch(self, device: str, numerics: Mapping[str, Any]) -> int:
        """One window a thread on a CPU, as the plan has it on a GPU."""
        return int(numerics.get("batch", GPU_BATCH)) if device == "cuda" else 1

    def encoder(self, device: str, precision: str, numerics: Mapping[str, Any]) -> Encoder:
        """The fused encoder, with the kernels of the plan's numerics."""
        encoder = FusedEncoder(
            self._weights.vae.to(device), self.product.sensor, device=device, dtype=DTYPES[precision],
            resolution=self._resolution, window=self.product.window_px, compile=_compile(numerics), narrow=True,
        )  # fmt: skip
        return HalfBatches(encoder) if device == "cuda" else encoder

    def decoder(
        self, device: str, dtype: str = "float32", bands: Sequence[str] | None = None,
        numerics: Mapping[str, Any] | None = None,
    ) -> Decoder:  # fmt: skip
        """The fused decoder; `MIXED` where that is faster and as good with these weights.

        A run on a GPU that scores what it makes does so in float16, of which a score does not see the rounding.
        """
        if numerics is not None and torch.device(device).type != "cpu":
            # What a run checks itself by: a few windows, done before a network would be compiled or captured for them.
            return self._half(device, bands, compile="off", capture=False)
        if dtype == MIXED:
            return self._mixed(device, bands)
        how = {} if numerics is None else {"compile": _compile(numerics), "window": self.product.window_px}
        return self._decoder(device, getattr(torch, dtype), bands, **how)

    def truth(self, device: str) -> Truth:
        """Pixels at one sampling in physical units, as the encoder's first step makes them."""
        pixels = PixelPipeline(self.product.sensor, self._resolution, self.product.window_px, torch.device(device))
        return pixels.physical

    def _decoder(self, device: str, dtype: torch.dtype, bands: Sequence[str] | None, **how: Any) -> FusedDecoder:
        return FusedDecoder(
            self._weights.vae.to(device), self.product.sensor, device=device, dtype=dtype,
            bands=None if bands is None else tuple(bands), **how,
        )  # fmt: skip

    def _half(self, device: str, bands: Sequence[str] | None, **how: Any) -> Decoder:
        """The decoder in float16; in float32 for what overflows there."""
        fast = self._decoder(device, torch.float16, bands, **how)
        return Widening(fast, partial(self._decoder, device, torch.float32, bands, **how))

    def _mixed(self, device: str, bands: Sequence[str] | None) -> Decoder:
        """The decoder in mixed precision where that is faster and, with these weights, as good; else in float32.

        On a GPU that is float16. On a CPU what bfloat16 costs depends on how much residual blocks add, and so on the
        weights: it is tried on one picture.
        """
        if torch.device(device).type != "cpu":
            return self._half(device, bands)
        vae = self._weights.vae
        exact, fast = self._decoder(device, torch.float32, bands), fastest_cpu_dtype()
        if fast == torch.float32:
            return exact
        mixed = self._decoder(device, torch.float32, bands, branches=fast)
        z = torch.randn(1, vae.config.z_channels, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            z = vae.denormalise(z)
            told, found = exact(z), mixed(z)
        contrast = (told - told.mean(dim=(2, 3), keepdim=True)).norm()
        error = float((found - told).norm() / contrast)
        if error <= MIXED_ERROR:
            return mixed
        log.info("weights %s: mixed precision would be %.1e off float32, which is taken", self.product.weights, error)
        return exact


def _compile(numerics: Mapping[str, Any]) -> str:
    return "off" if numerics.get("kernels") == "torch" else "auto"


def gpu_batch(
    weights: LoadedWeights, sensor: Sensor, resolution: int, window: int, precision: str, actor: Actor
) -> int:
    """Windows a batch for this machine's GPU, from what two small batches are measured to need of its free memory.

    Two batches are planned for, the one that is computed and the one that is gathered meanwhile, each with its pixels
    twice, beside the shards that lie there, in the actor's share of the memory. The batch divides the windows of a
    shard. Without a GPU here, `GPU_BATCH` at most.
    """
    if not torch.cuda.is_available():
        return largest_divisor(actor.windows, GPU_BATCH)
    encoder = FusedEncoder(
        weights.vae.to("cuda"), sensor, device="cuda", dtype=DTYPES[precision], resolution=resolution, window=window,
        compile="off",
    )  # fmt: skip
    blank = {
        sampling: torch.zeros((1, len(places), *[-(-window * resolution // sampling)] * 2), dtype=torch.uint16)
        for sampling, places in encoder.pixels.groups.items()
    }
    model = encoder.memory_model(blank)
    pixels = 2 * sum(group.nbytes for group in blank.values())
    model = replace(model, fixed=model.fixed + actor.held / 2, per_window=model.per_window + pixels)
    del encoder
    weights.vae.to("cpu")  # the driver's own copy must not stand in the actors' way
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return model.largest_batch(int(free * min(1.0, actor.gpu_share)), actor.windows, MOST_WINDOWS, at_once=2)


def numerics(device: str, batch: int | None = None) -> dict[str, Any]:
    """Device kind, batch, kernels and library versions: same numerics, same bytes (DESIGN 3.12).

    The driver of a cluster may have no GPU itself; then the actors' one is recorded as `cuda`.
    """
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    return {
        "device": name,
        "batch": (batch or GPU_BATCH) if device == "cuda" else 1,
        "kernels": _kernels(device),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _kernels(device: str) -> str:
    """What computes between convolutions: "native-<hash>" (ours, compiled here), "inductor" or "torch"."""
    if device == "cuda":
        return "inductor" if compiler_missing() is None else "torch"
    return cpu_steps(torch.float32).name
