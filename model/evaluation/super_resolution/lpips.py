"""Measures LPIPS of red, green and blue, where torchmetrics and torchvision can: both are optional."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from model.evaluation.super_resolution.pairs import Case
from model.sensors import COLOURS, Floats


class Perceptual:
    """Zhang et al. (2018), the AlexNet variant by torchmetrics, of pictures clamped to 0..1.

    ValueError, in one line, where torchmetrics or torchvision is not installed, or AlexNet cannot be had.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self._network: Any = LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(device)
        except (ImportError, ModuleNotFoundError):
            raise ValueError(
                "--lpips needs torchmetrics and torchvision: pip install torchmetrics torchvision"
            ) from None
        except OSError as error:
            raise ValueError(f"--lpips: AlexNet cannot be had: {str(error).splitlines()[0][:160]}") from None
        self._device = device

    def __call__(self, result: Floats, case: Case) -> float:
        """Of one result; what the truth lacks is 0 in both. NaN without the three bands."""
        bands = tuple(case.pair.bands)
        if not set(COLOURS) <= set(bands):
            return float("nan")
        picks = [bands.index(band) for band in COLOURS]
        pictures = [
            torch.from_numpy(np.where(case.valid, np.clip(image[picks], 0, 1), 0).astype(np.float32))[None]
            for image in (result, case.hr)
        ]
        with torch.no_grad():
            return float(self._network(*(p.to(self._device) for p in pictures)))
