"""Runs encoder and decoder as production does: one sensor, frozen kernels, one precision, raw pixels.

The hypernetwork runs once, at construction, and leaves plain convolutions. On a CPU images are computed one by one, so
neither the other images of a batch nor their number change a bit; the number of threads does. On a GPU a batch is
computed as one: same batch shape, same place in it, same device, same bits.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.eo_vae import EOVAE
from model.fused_body import DecoderBody, EncoderBody
from model.fused_gpu import GpuDecoder, GpuEncoder, exact_arithmetic
from model.hypernet import DynamicConv
from model.memory import MemoryModel
from model.native import NativeSteps, NativeUnavailableError, Steps, TorchSteps, native_steps
from model.pixels import BandLike, PixelPipeline, SensorLike

__all__ = ["BandLike", "FusedDecoder", "FusedEncoder", "SensorLike"]

log = logging.getLogger(__name__)

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
COMPILE = ("auto", "on", "off")


@torch.no_grad()
def _static_kernel(conv: DynamicConv, sensor: SensorLike) -> tuple[Tensor, Tensor]:
    """The generated (weight, bias) for all of the sensor's wavelengths, computed in float32."""
    exact = copy.deepcopy(conv).to("cpu", torch.float32).eval()
    return exact.kernel([band.wavelength for band in sensor.bands])


def _checked(dtype: torch.dtype, compile: str) -> None:
    if dtype not in PRECISIONS:
        raise ValueError(f"precision {dtype}: choose torch.float32, torch.bfloat16 or torch.float16")
    if compile not in COMPILE:
        raise ValueError(f"compile={compile!r}: choose {', '.join(COMPILE)}")


def cpu_steps(dtype: torch.dtype, compile: str = "auto") -> Steps:
    """The steps between convolutions on a CPU: compiled kernels, or torch's where these cannot be, or by choice.

    Raises:
        NativeUnavailableError: compile "on" where there is no compiler, or float16, which the kernels do not know.
    """
    if compile == "off":
        return TorchSteps()
    if dtype == torch.float16:
        if compile == "on":
            raise NativeUnavailableError("the compiled kernels know float32 and bfloat16: float16 is slow on any CPU")
        return TorchSteps()
    try:
        return native_steps()
    except NativeUnavailableError as error:
        if compile == "on":
            raise
        log.warning("kernels are not compiled (%s): torch's own operations take their place, more slowly", error)
        return TorchSteps()


class FusedEncoder:
    """Raw pixels of one sensor -> raw latents (the posterior's mean).

    GroupNorm statistics, softmax and accumulation are in float32 or wider in every precision.

    Args:
        vae: the network; copied, so later training does not change this encoder.
        sensor: bands (wavelengths and statistics as the weights were trained with) and radiometry.
        device: "cpu" or "cuda".
        dtype: float32, bfloat16 or float16: weights and activations.
        resolution: metres a pixel.
        window: pixels a side, for sensors with no band at `resolution` (otherwise the finest group tells), and the
            size that weights are laid out for: others are right too, and slower.
        compile: "auto" compiles where a compiler is there and says so in a warning where it is not; "on" insists;
            "off" does not. On a CPU that means our kernels (seconds, once a machine), on a GPU torch.compile (a minute
            or two, once a process). `kernels` tells what came of it.
        narrow: on a GPU in float16, latents come as float16, which is all that they hold, in half the bytes.

    Raises:
        ValueError: another precision, no bands, or deviations that are not positive.
        NativeUnavailableError: compile "on", and it cannot be.
    """

    def __init__(
        self,
        vae: EOVAE,
        sensor: SensorLike,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float16,
        resolution: int = 10,
        window: int = 256,
        *,
        compile: str = "auto",
        narrow: bool = False,
    ) -> None:
        _checked(dtype, compile)
        self.device, self.dtype = torch.device(device), dtype
        self.channels, self.stride = vae.config.z_channels, vae.scale_factor
        self.name = "eo-vae" if vae.meta is None else vae.meta.name
        self.sensor = sensor
        self.pixels = PixelPipeline(sensor, resolution, window, self.device)
        first = _static_kernel(vae.encoder.conv_in, sensor)
        if self.device.type == "cpu":
            steps = cpu_steps(dtype, compile)
            self._steps: Steps | None = steps
            with torch.no_grad():
                self._body = EncoderBody(vae.encoder, first, self.channels, dtype, window, steps)
            self.kernels = steps.name
        else:
            self._steps = None
            self._gpu = GpuEncoder(vae.encoder, first, self.channels, self.pixels, self.device, dtype, compile, narrow)
            self.kernels = self._gpu.kernels

    def physical(self, pixels: Tensor | Mapping[int, Tensor]) -> Tensor:
        """Raw pixels -> (B, C, H, W) float32 in the sensor's physical unit, as the encoder upsamples them."""
        with torch.inference_mode():
            return self.pixels.physical(pixels)

    def __call__(self, pixels: Tensor | Mapping[int, Tensor]) -> Tensor:
        """Raw pixels -> raw latents (B, channels, H / stride, W / stride), float32 (or as `narrow` says) on the device.

        Args:
            pixels: travelling units, (B, C, H, W), or {sampling in metres: (B, C_g, H_g, W_g)} with coarser groups
                symmetric about the window. Nodata must be filled before: NaN in a window makes its latents NaN.

        Raises:
            ValueError: other bands, groups or shapes than the sensor's; sides that are no multiple of `stride`.
        """
        _, (height, width) = self.pixels.checked(pixels)
        if height % self.stride or width % self.stride:
            raise ValueError(f"window of {height}x{width}: sides must be multiples of {self.stride}")
        with torch.inference_mode():
            if self._steps is None:
                with exact_arithmetic(self.device):
                    return self._gpu(pixels)
            x = self._normalised(pixels)
            # One image at a time: its bits depend on nobody else's presence, and a cache holds it better.
            latents = [self._body(image[None]).float() for image in x]
            return torch.cat(latents).contiguous(memory_format=torch.contiguous_format)

    def memory_model(self, pixels: Mapping[int, Tensor]) -> MemoryModel:
        """Bytes that batches of windows like this one, {sampling: (1, C_g, H_g, W_g)}, need on the GPU: measured.

        Raises:
            ValueError: an encoder on the CPU, which takes windows one by one.
        """
        if self._steps is not None:
            raise ValueError("on a CPU windows are computed one by one: there is no batch to choose")

        def probe(batch: int) -> int:
            with exact_arithmetic(self.device):
                return self._gpu.peak_bytes({k: t.expand(batch, *t.shape[1:]) for k, t in pixels.items()})

        return MemoryModel.measured(probe)

    def _normalised(self, pixels: Tensor | Mapping[int, Tensor]) -> Tensor:
        """z-scores (B, C, H, W), channels last, in the encoder's precision."""
        if isinstance(self._steps, NativeSteps):
            return self.pixels.network_input(pixels, self.dtype, self._steps)
        z = self.pixels.zscore(self.pixels.physical(pixels))
        return z.to(self.dtype, memory_format=torch.channels_last)


class FusedDecoder:
    """Raw latents -> pixels of one sensor in its physical unit.

    Args:
        vae: the network; copied.
        sensor: the sensor the latents were made with: all its bands, even if few are wanted, because a band's kernel
            depends on its mates.
        device: "cpu" or "cuda".
        dtype: float32, bfloat16 or float16.
        bands: names of the bands wanted, in that order; all by default.
        compile: as for the encoder.
        window: pixels a side that weights are laid out for: others are right too, and slower.
        branches: on a CPU, the precision inside residual blocks and attention, whose results add up in `dtype`; None:
            `dtype` too. bfloat16 in float32 costs `nano` under 0.001 dB, where bfloat16 throughout costs up to 0.19;
            where blocks add more than they do in `nano` it costs more.
        capture: on a GPU, False launches each step as it comes instead of capturing a graph: for a few windows.

    Raises:
        ValueError: another precision, a band that the sensor lacks, or `branches` on a GPU.
        NativeUnavailableError: compile "on", and it cannot be.
    """

    def __init__(
        self,
        vae: EOVAE,
        sensor: SensorLike,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float16,
        bands: Sequence[str] | None = None,
        *,
        compile: str = "auto",
        window: int = 256,
        branches: torch.dtype | None = None,
        capture: bool = True,
    ) -> None:
        _checked(dtype, compile)
        if branches is not None:
            _checked(branches, compile)
            if torch.device(device).type != "cpu":
                raise ValueError("branches have a precision of their own on a CPU alone: leave `branches` out")
        self.device, self.dtype = torch.device(device), dtype
        self.channels, self.stride = vae.config.z_channels, vae.scale_factor
        names = [band.name for band in sensor.bands]
        self.bands = tuple(names if bands is None else bands)
        unknown = [name for name in self.bands if name not in names]
        if unknown or not self.bands:
            raise ValueError(f"bands {', '.join(unknown) or '(none)'}: {sensor.name} has {', '.join(names)}")
        self.sensor = sensor
        self.pixels = PixelPipeline(sensor, 1, 1, self.device)
        self._places = [names.index(name) for name in self.bands]
        weight, bias = _static_kernel(vae.decoder.conv_out, sensor)
        last = (weight[self._places], bias[self._places])
        if self.device.type == "cpu":
            steps = cpu_steps(dtype, compile)
            with torch.no_grad():
                self._body: DecoderBody | None = DecoderBody(
                    vae.decoder, last, dtype, window // self.stride, steps, branches
                )
            self.kernels = steps.name
        else:
            self._body = None
            self._gpu = GpuDecoder(vae.decoder, last, self.device, dtype, compile, capture)
            self.kernels = self._gpu.kernels

    def __call__(self, z: Tensor) -> Tensor:
        """Raw latents (B, channels, h, w), any float type -> (B, bands, h * stride, w * stride), float32, physical.

        Raises:
            ValueError: another rank or number of channels.
        """
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"latents have shape {tuple(z.shape)}: need (B, {self.channels}, h, w)")
        with torch.inference_mode():
            if self._body is None:
                with exact_arithmetic(self.device):
                    y = self._gpu(z)
            else:
                z = z.to("cpu", self.dtype, memory_format=torch.channels_last)
                y = torch.cat([self._body(image[None]).float() for image in z])
            return self.pixels.from_zscore(y.contiguous(memory_format=torch.contiguous_format), self._places)
