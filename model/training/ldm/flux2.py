"""Encodes red, green and blue with FLUX.2's own autoencoder, where diffusers is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

COLOURS_KEPT = ("B04", "B03", "B02")
BRIGHTEST = 0.4
"""Reflectance that is white: pictures are made of 0 to this, brighter is cut off."""


@dataclass(frozen=True, slots=True)
class Flux2:
    """diffusers' `AutoencoderKLFlux2`: pictures in -1..1 to 32 channels at an eighth of the size."""

    network: Any

    @classmethod
    def load(cls, path: Path) -> Self:
        """Of a diffusers folder or a single file. ValueError in one line without diffusers, or without such weights."""
        try:
            from diffusers import AutoencoderKLFlux2
        except ImportError:
            raise ValueError('--autoencoder flux2 needs diffusers with FLUX.2: pip install "eocube[flux2]"') from None
        if not path.exists():
            raise ValueError(f"no FLUX.2 autoencoder at {path}: give a diffusers folder or its safetensors file")
        try:
            made = (
                AutoencoderKLFlux2.from_pretrained(path) if path.is_dir() else AutoencoderKLFlux2.from_single_file(path)
            )
        except Exception as error:  # diffusers' own are many; each one means "cannot be had"
            raise ValueError(f"{path} is no FLUX.2 autoencoder: {str(error).splitlines()[0][:160]}") from None
        return cls(made.eval().requires_grad_(False))

    def encoder(self, colours: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """Reflectance (B, bands, H, W) -> raw posterior modes (B, 32, H/8, W/8) of its `colours`."""

        def encode(x: Tensor) -> Tensor:
            picture = x[:, list(colours)].clamp(0, BRIGHTEST) / BRIGHTEST * 2 - 1
            with torch.no_grad():
                found: Tensor = self.network.encode(picture).latent_dist.mode()
            return found

        return encode

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents -> reflectance of red, green and blue."""
        with torch.no_grad():
            picture: Tensor = self.network.decode(z).sample
        return (picture.clamp(-1, 1) + 1) / 2 * BRIGHTEST
