"""Batches for tests of the loop: one fixed batch, or random ones of a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from model.eo_vae import EOVAE, EOVAEConfig
from model.sensors import S1RTC, S2L2A, TrainedSensor
from model.training.batch import Batch
from model.training.eo_vae.recipe import EOVAERecipe, EOVAEStage
from model.training.eo_vae.task import EOVAETask, Export, Judge, MeasureSteps
from model.training.loop import Loop

TINY = EOVAEConfig(
    ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, norm_groups=4, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip
RGB = S2L2A.subset(("B04", "B03", "B02"))


class Random:
    """Smooth random pictures of a seed, of RGB or (where `mixed`) S1RTC."""

    def __init__(self, seed: int = 0, mixed: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.mixed = mixed
        self.drawn = 0

    def draw(self, batch_size: int, patch: int) -> Batch:
        sensor: TrainedSensor = RGB
        if self.mixed and float(torch.rand(1, generator=self.generator)) < 0.5:
            sensor = S1RTC
        coarse = torch.randn(batch_size, len(sensor.bands), patch // 4, patch // 4, generator=self.generator)
        self.drawn += 1
        x = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
        return Batch(x, sensor)

    def steps_per_epoch(self, batch_size: int) -> int | None:
        return 40 // batch_size

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.drawn = state["drawn"]


class Fixed(Random):
    """The first batch for ever; draws of a part of it give its parts in turn."""

    def __init__(self, whole: int, patch: int) -> None:
        super().__init__()
        self.whole = super().draw(whole, patch)
        self.at = 0

    def draw(self, batch_size: int, patch: int) -> Batch:
        rows = self.whole.x[self.at : self.at + batch_size]
        self.at = (self.at + batch_size) % len(self.whole.x)
        return Batch(rows, self.whole.sensor)


def recipe(stage: Mapping[str, Any] | None = None, **values: Any) -> EOVAERecipe:
    """A recipe of one stage of Adam without margins or warm-up, in float32."""
    plain: dict[str, Any] = {
        "name": "s", "batch": 4, "patch": 32, "steps": 6, "optimiser": "adam", "schedule": "warmup_cosine", "warmup": 0,
        "lr": 1e-3, "margin": 0, "loss": {"charbonnier": 1.0},
    }  # fmt: skip
    base: dict[str, Any] = {"precision": "fp32", "ema": 0.0, "clip": 1.0, "evaluate_minutes": 60.0}
    return EOVAERecipe((EOVAEStage(**{**plain, **(stage or {})}),), config=TINY, **{**base, **values})


def looped(
    vae: EOVAE,
    how: EOVAERecipe,
    source: Any,
    *more: Any,
    judge: Judge | None = None,
    export: Export | None = None,
    measure_steps: MeasureSteps | None = None,
    **given: Any,
) -> Loop[Batch, EOVAEStage]:  # fmt: skip
    """EO-VAE on the loop."""
    return Loop(EOVAETask(vae, how, judge, export, measure_steps), how, source, *more, **given)
