"""Two kinds of product that are not EO-VAE, as another package would bring them: a code a cell, a vector a window."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eocube.errors import InputError
from eocube.products.base import Ask, Pixels
from eocube.products.spec import Product, pixels_meaning
from eocube.products.storage import Codes, Raw32
from model.pixels import PixelPipeline

CORE, HALO = 192, 32
LEVELS = 64
HOLD = "TOYS_HOLD"
"""Environment variable: a file that the encoder makes, to wait for ever, when it has encoded `HELD_AFTER` windows."""
HELD_AFTER = 4
_encoded: list[None] = []


def hold_if_asked() -> None:
    """Stop in the middle of encoding, where a test wants to kill."""
    if os.environ.get(HOLD):
        _encoded.append(None)
        if len(_encoded) > HELD_AFTER:
            Path(os.environ[HOLD]).touch()
            time.sleep(1e6)


class Codec:
    """What both have in common: one precision, a window at a time."""

    ladder = ("fp32",)
    floor = None

    def __init__(self, product: Product) -> None:
        self.product = product

    def batch(self, device: str, numerics: Mapping[str, Any]) -> int:
        return 1

    def truth(self, device: str) -> Any:
        p = self.product
        pixels = PixelPipeline(p.sensor, int(p.meaning["resolution"]), p.window_px, torch.device(device))
        return pixels.physical


class BrightnessCodec(Codec):
    """The mean brightness of 16 x 16 pixels as one of 64 codes, and grey squares back."""

    def encoder(self, device: str, precision: str, numerics: Mapping[str, Any]) -> Any:
        physical, cell = self.truth(device), self.product.cell_px

        def encode(pixels: Pixels) -> torch.Tensor:
            hold_if_asked()
            mean = torch.nn.functional.avg_pool2d(physical(pixels).mean(1, keepdim=True), cell)
            return (mean * LEVELS).clamp(0, LEVELS - 1).to(torch.int32)

        return encode

    def decoder(
        self, device: str, dtype: str = "float32", bands: Sequence[str] | None = None,
        numerics: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        count = len(self.product.sensor.bands if bands is None else bands)

        def decode(codes: torch.Tensor) -> torch.Tensor:
            grey = (codes.float() + 0.5) / LEVELS
            return torch.nn.functional.interpolate(grey, scale_factor=self.product.cell_px).repeat(1, count, 1, 1)

        return decode


class MeansCodec(Codec):
    """The mean of every band over a window's core."""

    def encoder(self, device: str, precision: str, numerics: Mapping[str, Any]) -> Any:
        physical, core = self.truth(device), slice(HALO, HALO + CORE)

        def encode(pixels: Pixels) -> torch.Tensor:
            hold_if_asked()
            return physical(pixels)[:, :, core, core].mean(dim=(2, 3), keepdim=True)

        return encode

    def decoder(self, *_: Any, **__: Any) -> Any:
        raise InputError("band means are not decoded")


class Brightness:
    name = "brightness-codes"

    def plan(self, ask: Ask) -> Product:
        return Product(
            kind=self.name, array="token", channels=1, cell_px=16, core_px=CORE, halo_px=HALO, inputs=(ask.sensor,),
            meaning={**pixels_meaning(ask.sensor, ask.resolution), "levels": LEVELS}, storage=Codes(LEVELS),
            summary="histogram", long_name="mean brightness of 16 x 16 pixels", scores=("psnr", "sam"),
        )  # fmt: skip

    def open(self, product: Product, device: str = "cpu") -> BrightnessCodec:
        return BrightnessCodec(product)

    def numerics(self, product: Product, device: str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {"device": device, "batch": 1, "torch": torch.__version__}


class Means:
    name = "band-means"

    def plan(self, ask: Ask) -> Product:
        bands = ask.sensor.band_names
        return Product(
            kind=self.name, array="embedding", channels=len(bands), cell_px=CORE, core_px=CORE, halo_px=HALO,
            inputs=(ask.sensor,), meaning=pixels_meaning(ask.sensor, ask.resolution), storage=Raw32(),
            summary="moments", long_name="mean of each band over a core", channel_names=bands,
        )  # fmt: skip

    def open(self, product: Product, device: str = "cpu") -> MeansCodec:
        return MeansCodec(product)

    def numerics(self, product: Product, device: str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {"device": device, "batch": 1, "torch": torch.__version__}


BRIGHTNESS, MEANS = Brightness(), Means()
ENTRY_POINTS = """[eocube.products]
brightness-codes = tests.eocube.products.toys:BRIGHTNESS
band-means = tests.eocube.products.toys:MEANS
"""
