"""The encoder and the decoder as production runs them: one sensor, frozen kernels, one precision, raw pixels.

The hypernetwork runs once, at construction, and leaves plain convolutions. Same input, same batch shape, same device
and thread count give the same bits; images of a batch do not influence each other.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from model.eo_vae import EOVAE, Decoder, Encoder
from model.hypernet import DynamicConv
from model.pixels import BandLike, PixelPipeline, SensorLike

__all__ = ["BandLike", "FusedDecoder", "FusedEncoder", "SensorLike"]

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class _ExactConvolutions:
    """cuDNN without TF32 and autotuning while at least one caller is inside; counted, so threads may overlap.

    By default cuDNN computes float32 convolutions in TF32 (10 bits): "fp32" would not be. The flags are process-wide,
    so only the first caller in sets them and only the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = (True, False, False)

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        cudnn = torch.backends.cudnn
        with self._lock:
            if self._inside == 0:
                self._saved = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
                cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = self._saved


_exact_convolutions = _ExactConvolutions()


@torch.no_grad()
def _static_kernel(conv: DynamicConv, sensor: SensorLike) -> tuple[Tensor, Tensor]:
    """The generated (weight, bias) for all of the sensor's wavelengths, computed in float32."""
    exact = copy.deepcopy(conv).to("cpu", torch.float32).eval()
    return exact.kernel([band.wavelength for band in sensor.bands])


def _frozen(module: Encoder | Decoder, device: torch.device, dtype: torch.dtype) -> None:
    """Ready a copied half of the network for inference: no gradients, one precision, channels last."""
    module.eval().requires_grad_(False).to(device, dtype)
    # Channels last halves the time of these convolutions on a CPU and is what tensor cores want.
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _checked(dtype: torch.dtype) -> torch.dtype:
    if dtype not in PRECISIONS:
        raise ValueError(f"precision {dtype}: choose torch.float32, torch.bfloat16 or torch.float16")
    return dtype


class FusedEncoder:
    """Raw pixels of one sensor -> raw latents (the posterior's mean).

    GroupNorm statistics and the attention's softmax accumulate in float32 in every precision, as torch's kernels do.

    Args:
        vae: the network; copied, so later training does not change this encoder.
        sensor: bands (wavelengths and statistics as the weights were trained with) and radiometry.
        device: "cpu" or "cuda".
        dtype: float32, bfloat16 or float16: weights and activations.
        resolution: metres a pixel.
        window: pixels a side, for sensors with no band at `resolution`; otherwise the finest group tells.

    Raises:
        ValueError: another precision, no bands, or deviations that are not positive.
    """

    def __init__(
        self,
        vae: EOVAE,
        sensor: SensorLike,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float16,
        resolution: int = 10,
        window: int = 256,
    ) -> None:
        self.device, self.dtype = torch.device(device), _checked(dtype)
        self.channels, self.stride = vae.config.z_channels, vae.scale_factor
        self.name = "eo-vae" if vae.meta is None else vae.meta.name
        self.sensor = sensor
        self.pixels = PixelPipeline(sensor, resolution, window, self.device)
        weight, bias = _static_kernel(vae.encoder.conv_in, sensor)
        self._weight = weight.to(self.device, dtype).contiguous(memory_format=torch.channels_last)
        self._bias = bias.to(self.device, dtype)
        self._encoder = copy.deepcopy(vae.encoder)
        del self._encoder.conv_in
        _frozen(self._encoder, self.device, dtype)

    def physical(self, pixels: Tensor | Mapping[int, Tensor]) -> Tensor:
        """Raw pixels -> (B, C, H, W) float32 in the sensor's physical unit, as the encoder upsamples them."""
        with torch.inference_mode():
            return self.pixels.physical(pixels)

    def __call__(self, pixels: Tensor | Mapping[int, Tensor]) -> Tensor:
        """Raw pixels -> raw latents (B, channels, H / stride, W / stride), float32 on the device.

        Args:
            pixels: travelling units, (B, C, H, W), or {sampling in metres: (B, C_g, H_g, W_g)} with coarser groups
                symmetric about the window. Nodata must be filled before: NaN in a window makes its latents NaN.

        Raises:
            ValueError: other bands, groups or shapes than the sensor's; sides that are no multiple of `stride`.
        """
        with torch.inference_mode(), _exact_convolutions(self.device):
            x = self.pixels.zscore(self.pixels.physical(pixels))
            if x.shape[2] % self.stride or x.shape[3] % self.stride:
                raise ValueError(f"window of {x.shape[2]}x{x.shape[3]}: sides must be multiples of {self.stride}")
            x = x.to(self.dtype, memory_format=torch.channels_last)
            moments = self._encoder.body(F.conv2d(x, self._weight, self._bias, padding=1))
            return moments[:, : self.channels].to(torch.float32, memory_format=torch.contiguous_format)


class FusedDecoder:
    """Raw latents -> pixels of one sensor in its physical unit.

    Args:
        vae: the network; copied.
        sensor: the sensor the latents were made with: all its bands, even if few are wanted, because a band's kernel
            depends on its mates.
        device: "cpu" or "cuda".
        dtype: float32, bfloat16 or float16.
        bands: names of the bands wanted, in that order; all by default.

    Raises:
        ValueError: another precision, or a band that the sensor lacks.
    """

    def __init__(
        self,
        vae: EOVAE,
        sensor: SensorLike,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float16,
        bands: Sequence[str] | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), _checked(dtype)
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
        self._weight = weight[self._places].to(self.device, dtype).contiguous(memory_format=torch.channels_last)
        self._bias = bias[self._places].to(self.device, dtype)
        self._decoder = copy.deepcopy(vae.decoder)
        del self._decoder.conv_out
        _frozen(self._decoder, self.device, dtype)

    def __call__(self, z: Tensor) -> Tensor:
        """Raw latents (B, channels, h, w), any float type -> (B, bands, h * stride, w * stride), float32, physical.

        Raises:
            ValueError: another rank or number of channels.
        """
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"latents have shape {tuple(z.shape)}: need (B, {self.channels}, h, w)")
        with torch.inference_mode(), _exact_convolutions(self.device):
            z = z.to(self.device).to(self.dtype, memory_format=torch.channels_last)
            y = F.conv2d(self._decoder.body(z), self._weight, self._bias, padding=1)
            y = y.to(torch.float32, memory_format=torch.contiguous_format)
            return self.pixels.from_zscore(y, self._places)
