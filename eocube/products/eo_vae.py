"""From a plan to the models that carry it out: weights, device, precision, batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from eocube.errors import InputError
from eocube.ground.grid import CubeGrid
from eocube.products.base import Encoder, Models
from eocube.products.half_batches import HalfBatches
from eocube.products.spec import Encoding
from eocube.sensors.sensor import Sensor
from model.eo_vae import EOVAE
from model.fused import FusedDecoder, FusedEncoder, cpu_steps
from model.fused_gpu import compiler_missing
from model.pixels import PixelPipeline
from model.weights import WeightsError, WeightsMeta, load_weights

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LADDER = {"fp16": ("fp16", "bf16", "fp32"), "bf16": ("bf16", "fp32"), "fp32": ("fp32",)}
"""Precisions tried in turn for a window whose latents are not finite, the run's own first."""
GPU_BATCH = 8
"""Windows a batch on a GPU where the driver has none to measure. Fixed: a convolution's last bits depend on it."""
MOST_WINDOWS = 64
"""Windows a batch at most: beyond it a GPU gains nothing, and a shard's last batch runs emptier."""
INT8_STEPS_PER_SIGMA = 16.0
"""int8 storage: a step is a 16th of a channel's spread, so codes reach 7.9 spreads either side."""


class Planned(Protocol):
    """A plan as far as its models need it; `eocube.plan.plan.Plan` is one."""

    @property
    def sensor(self) -> Sensor: ...
    @property
    def grid(self) -> CubeGrid: ...
    @property
    def encoding(self) -> Encoding: ...
    @property
    def numerics(self) -> Mapping[str, Any]: ...


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


def models_for(plan: Planned, weights: LoadedWeights, device: str) -> Models:
    """The encoder at its precisions, the decoder and the truth that carry out a plan on a device.

    Batch and kernels are those of the plan's numerics, so that a resumed store goes on as it was begun.
    """
    sensor, lattice, vae = plan.sensor, plan.grid.lattice, weights.vae.to(device)
    compile = "off" if plan.numerics.get("kernels") == "torch" else "auto"
    batch = int(plan.numerics.get("batch", GPU_BATCH)) if device == "cuda" else 1

    def maker(precision: str) -> Callable[[], Encoder]:
        def make() -> Encoder:
            encoder = FusedEncoder(
                vae, sensor, device=device, dtype=DTYPES[precision], resolution=lattice.resolution,
                window=lattice.window_px, compile=compile,
            )  # fmt: skip
            return HalfBatches(encoder) if device == "cuda" else encoder

        return make

    encoders: Mapping[str, Callable[[], Encoder]] = {p: maker(p) for p in LADDER[plan.encoding.precision]}
    pixels = PixelPipeline(sensor, lattice.resolution, lattice.window_px, torch.device(device))
    decoder = FusedDecoder(
        vae, sensor, device=device, dtype=torch.float32, compile=compile, window=lattice.window_px
    )  # fmt: skip
    floor = weights.meta.psnr_floor(sensor.trained_as or sensor.name)
    return Models(encoders, decoder, pixels.physical, batch, device, floor)


def gpu_batch(weights: LoadedWeights, sensor: Sensor, resolution: int, window: int, precision: str) -> int:
    """Windows a batch for this machine's GPU, from what two small batches are measured to need of its free memory.

    Two batches are planned for: the one that is computed, and the one that a second unit brings meanwhile. Without a
    GPU here (the driver of a cluster may have none), `GPU_BATCH`.
    """
    if not torch.cuda.is_available():
        return GPU_BATCH
    encoder = FusedEncoder(
        weights.vae.to("cuda"), sensor, device="cuda", dtype=DTYPES[precision], resolution=resolution, window=window,
        compile="off",
    )  # fmt: skip
    blank = {
        sampling: torch.zeros((1, len(places), *[-(-window * resolution // sampling)] * 2), dtype=torch.uint16)
        for sampling, places in encoder.pixels.groups.items()
    }
    model = encoder.memory_model(blank)
    del encoder
    weights.vae.to("cpu")  # the driver's own copy must not stand in the actors' way
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return model.largest_batch(free, MOST_WINDOWS, at_once=2)


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


def fit_sensor(sensor: Sensor, weights: LoadedWeights) -> Sensor:
    """The sensor with wavelengths and statistics as the weights were trained with them."""
    return sensor.with_weights(weights.meta)
