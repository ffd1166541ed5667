"""From a plan to the models that carry it out: weights, device, precision, batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from eocube.errors import InputError
from eocube.plan import Encoding, Plan
from eocube.sensors import Sensor
from eocube.worker import Encoder, Models
from model.eo_vae import EOVAE
from model.fused import FusedDecoder, FusedEncoder
from model.pixels import PixelPipeline
from model.weights import WeightsError, WeightsMeta, load_weights

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LADDER = {"fp16": ("fp16", "bf16", "fp32"), "bf16": ("bf16", "fp32"), "fp32": ("fp32",)}
"""Precisions tried in turn for a window whose latents are not finite, the run's own first."""
GPU_BATCH = 8
"""Windows a batch on a GPU. Fixed: the last bits of a convolution depend on it."""
INT8_STEPS_PER_SIGMA = 16.0
"""int8 storage: a step is a 16th of a channel's spread, so codes reach 7.9 spreads either side."""


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Weights with their metadata, as named by the user."""

    source: str
    vae: EOVAE
    meta: WeightsMeta


def load(source: str, device: str = "cpu") -> LoadedWeights:
    """Weights with metadata, by a name, path or URL that `model.weights.load_weights` takes.

    Raises:
        InputError: no such weights, or weights without the metadata that says what their latents mean.
    """
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


def encoding_of(weights: LoadedWeights, precision: str, storage: str) -> Encoding:
    """What of the weights and choices decides the latents' meaning."""
    vae = weights.vae
    channels = vae.config.z_channels
    quantisation = int8_quantisation(vae) if storage == "int8" else None
    return Encoding(
        weights.source, weights.meta.name, weights.meta.sha256, channels, vae.scale_factor, precision, storage,
        quantisation,
    )  # fmt: skip


def int8_quantisation(vae: EOVAE) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel (scale, offset) for int8 latents, from the running statistics that the weights carry.

    The batch norm sees latents packed 2x2, channel-major: four consecutive statistics belong to one channel.
    """
    if vae.bn.running_mean is None or vae.bn.running_var is None:
        raise InputError("the weights keep no latent statistics: --storage int8 needs them")
    mean = vae.bn.running_mean.double().reshape(vae.config.z_channels, 4)
    var = vae.bn.running_var.double().reshape(vae.config.z_channels, 4)
    offset = mean.mean(1)
    spread = (var.mean(1) + (mean - offset[:, None]).square().mean(1)).sqrt()
    return tuple((spread / INT8_STEPS_PER_SIGMA).tolist()), tuple(offset.tolist())


def models_for(plan: Plan, weights: LoadedWeights, device: str) -> Models:
    """The encoder at its precisions, the decoder and the truth that carry out a plan on a device."""
    sensor, lattice, vae = plan.sensor, plan.grid.lattice, weights.vae.to(device)

    def maker(precision: str) -> Callable[[], Encoder]:
        return lambda: FusedEncoder(
            vae, sensor, device=device, dtype=DTYPES[precision], resolution=lattice.resolution,
            window=lattice.window_px,
        )  # fmt: skip

    encoders: Mapping[str, Callable[[], Encoder]] = {p: maker(p) for p in LADDER[plan.encoding.precision]}
    pixels = PixelPipeline(sensor, lattice.resolution, lattice.window_px, torch.device(device))
    decoder = FusedDecoder(vae, sensor, device=device, dtype=torch.float32)
    return Models(encoders, decoder, pixels.physical, GPU_BATCH if device == "cuda" else 1, device)


def numerics(device: str) -> dict[str, Any]:
    """Device kind, batch and library versions: same numerics, same bytes (DESIGN 3.12).

    The driver of a cluster may have no GPU itself; then the actors' one is recorded as `cuda`.
    """
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    return {
        "device": name,
        "batch": GPU_BATCH if device == "cuda" else 1,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def fit_sensor(sensor: Sensor, weights: LoadedWeights) -> Sensor:
    """The sensor with wavelengths and statistics as the weights were trained with them."""
    return sensor.with_weights(weights.meta)
