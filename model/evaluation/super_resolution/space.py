"""Encodes and decodes whole pairs as production does windows: fused network, mirrored borders, cut off again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.eo_vae import EOVAE
from model.fused import FusedDecoder, FusedEncoder
from model.sensors import Floats
from model.wald import bicubic, sharpened
from model.weights_meta import SensorMeta

HALO = 32
"""Pixels around an image that is encoded, and around what is decoded: without them the border costs up to 9 dB."""


class Space(Protocol):
    """Where a latent method lives: pixels of some bands in, latents (B, z, h, w), pixels out."""

    @property
    def parameters(self) -> int: ...
    def below(self, lr: Floats) -> Tensor:
        """Latents of the input as it is."""
        ...

    def upsampled(self, lr: Floats, factor: int, mtf: Sequence[float] | None = None) -> Tensor:
        """Latents of the input brought to the fine grid by bicubic, and put right by the MTF where one is given."""
        ...

    def above(self, hr: Floats) -> Tensor:
        """Latents of the truth, which must be finite."""
        ...

    def decode(self, z: Tensor) -> Floats:
        """(B, C, H, W) reflectance."""
        ...


@dataclass(frozen=True, slots=True)
class _Band:
    name: str
    wavelength: float
    gsd: int
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class _Sensor:
    name: str
    bands: tuple[_Band, ...]
    scale: float
    offset: float
    unit_factor: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """Z-score statistics of reflectance, a band each: what an image of one resolution is normalised by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def trained_as(vae: EOVAE, bands: Sequence[str], sensor: str | None = None) -> SensorMeta:
    """What the weights know of a sensor with exactly these bands, else with all of them; ValueError without."""
    known = {} if vae.meta is None else dict(vae.meta.sensors)
    first = [known[sensor]] if sensor in known else []
    for meta in (*first, *(m for m in known.values() if m.bands == tuple(bands)), *known.values()):
        if set(bands) <= set(meta.bands) and meta.unit == "reflectance*1e4":
            return meta
    name = "the weights" if vae.meta is None else vae.meta.name
    raise ValueError(f"{name} know no sensor of reflectances with {', '.join(bands)}: take weights that do")


@dataclass(slots=True)
class EoVaeSpace:
    """An EO-VAE on a device. `high` are the truth's statistics where they are not the input's own (aerial pictures)."""

    vae: EOVAE
    bands: tuple[str, ...]
    sensor: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    low: Scaled | None = None
    high: Scaled | None = None
    _encoders: dict[bool, FusedEncoder] = field(init=False, default_factory=dict)
    _decoder: FusedDecoder | None = field(init=False, default=None)

    @property
    def parameters(self) -> int:
        """Of the autoencoder."""
        return sum(p.numel() for p in self.vae.parameters())

    def _like(self, *, high: bool) -> _Sensor:
        meta = trained_as(self.vae, self.bands, self.sensor)
        places = [meta.bands.index(band) for band in self.bands]
        scaled = (self.high if high else self.low) or Scaled(
            tuple(meta.mean[k] * 1e-4 for k in places), tuple(meta.std[k] * 1e-4 for k in places)
        )
        bands = tuple(
            _Band(band, meta.wavelengths[k], 1, mean, std)
            for band, k, mean, std in zip(self.bands, places, scaled.mean, scaled.std, strict=True)
        )
        return _Sensor("pairs", bands, 1.0, 0.0, 1.0)

    def _encode(self, padded: Floats, *, high: bool) -> Tensor:
        if high not in self._encoders:
            self._encoders[high] = FusedEncoder(self.vae, self._like(high=high), self.device, torch.float32, 1)
        z = self._encoders[high](torch.from_numpy(np.ascontiguousarray(padded))[None].to(self.device))
        cells = HALO // self.vae.scale_factor
        return z[..., cells:-cells, cells:-cells].clone()

    def below(self, lr: Floats) -> Tensor:
        """See `Space`."""
        return self._encode(mirrored(lr), high=False)

    def upsampled(self, lr: Floats, factor: int, mtf: Sequence[float] | None = None) -> Tensor:
        """See `Space`: the mirrored border is upsampled with it."""
        coarse = torch.from_numpy(mirrored(lr))[None]
        fine = (bicubic(coarse, factor) if mtf is None else sharpened(coarse, mtf, factor))[0].numpy()
        cut = (factor - 1) * HALO
        return self._encode(fine[:, cut:-cut, cut:-cut], high=False)

    def above(self, hr: Floats) -> Tensor:
        """See `Space`."""
        return self._encode(mirrored(hr), high=True)

    def decode(self, z: Tensor) -> Floats:
        """See `Space`."""
        if self._decoder is None:
            self._decoder = FusedDecoder(self.vae, self._like(high=True), self.device, torch.float32)
        cells = HALO // self.vae.scale_factor
        wide = np.pad(z.float().cpu().numpy(), ((0, 0), (0, 0), (cells, cells), (cells, cells)), mode="reflect")
        pixels = self._decoder(torch.from_numpy(wide).to(self.device)).cpu().numpy()
        return np.ascontiguousarray(pixels[..., HALO:-HALO, HALO:-HALO])


def mirrored(image: Floats) -> Floats:
    """(C, n + 2 HALO, m + 2 HALO) about the outermost pixels' centres, again and again where the image is narrower."""
    return np.pad(image, ((0, 0), (HALO, HALO), (HALO, HALO)), mode="reflect")
