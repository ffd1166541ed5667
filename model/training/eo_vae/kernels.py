"""Frees kernels: while the body trains, each trained set of bands owns its first and last convolution outright.

The generators share their weights between the sets, so that a step for one moves the levels of all others; kernels of
their own do not. The generators are taught the outcome at the end (`model.training.eo_vae.subsets.teach`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.eo_vae import EOVAE
from model.hypernet import KERNEL, DynamicConv, DynamicConvIn, DynamicConvOut
from model.sensors import TrainedSensor


def _key(wavelengths: Tensor | Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(w), 4) for w in wavelengths)


class KernelTable(nn.Module):
    """Stands in for a `DynamicConv`: the same calls, one parameter pair for each set of wavelengths, in any order."""

    def __init__(self, layer: DynamicConv, sets: Sequence[Sequence[float]]) -> None:
        super().__init__()
        pairs = [layer.kernel(waves) for waves in sets]
        self.weights = nn.ParameterList([nn.Parameter(w.detach().clone()) for w, _ in pairs])
        self.biases = nn.ParameterList([nn.Parameter(b.detach().clone()) for _, b in pairs])
        self.encoder = isinstance(layer, DynamicConvIn)
        self.sets = [_key(waves) for waves in sets]

    def knows(self, wavelengths: Tensor | Sequence[float]) -> bool:
        """Whether this set, in whatever order, has a kernel."""
        return sorted(_key(wavelengths)) in [sorted(s) for s in self.sets]

    def kernel(self, wavelengths: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
        """Weight and bias of a set of the table; KeyError names wavelengths that are none."""
        key = _key(wavelengths)
        for own, weight, bias in zip(self.sets, self.weights, self.biases, strict=True):
            if own == key:
                return cast(Tensor, weight), cast(Tensor, bias)
            if sorted(own) == sorted(key):
                order = [own.index(w) for w in key]
                return (weight[:, order], bias) if self.encoder else (weight[order], bias[order])
        raise KeyError(f"no kernel for wavelengths {key}: free kernels are only those of the recipe's mix")

    def forward(self, x: Tensor, wavelengths: Tensor | Sequence[float]) -> Tensor:
        weight, bias = self.kernel(wavelengths)
        return F.conv2d(x, weight, bias, padding=KERNEL // 2)


def free_kernels(vae: EOVAE, sensors: Sequence[TrainedSensor]) -> tuple[DynamicConvIn, DynamicConvOut]:
    """Put tables where the generators were; returns the generators, for `restore_generators`."""
    sets = [s.wavelengths for s in sensors]
    generators = (vae.encoder.conv_in, vae.decoder.conv_out)
    with torch.no_grad():
        vae.encoder.conv_in, vae.decoder.conv_out = (KernelTable(g, sets) for g in generators)  # type: ignore[assignment]
    return generators


def restore_generators(vae: EOVAE, generators: tuple[DynamicConvIn, DynamicConvOut]) -> None:
    """Undo `free_kernels`: the tables are dropped, so take what they hold (`trained_lessons`) before."""
    vae.encoder.conv_in, vae.decoder.conv_out = generators
