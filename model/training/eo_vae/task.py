"""Trains EO-VAE on the loop: pixels of one sensor in, their reconstruction out, weighed as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.eo_vae import EOVAE
from model.sensors import TrainedSensor
from model.training.batch import Batch
from model.training.eo_vae.groups import trained_groups
from model.training.eo_vae.objective import Reconstruction, draw_disturbance, loss_of
from model.training.eo_vae.recipe import EOVAERecipe, EOVAEStage
from model.training.eo_vae.skeleton import skeleton_only
from model.training.readings import Figures
from model.training.task import Progress, Task

Judge = Callable[[EOVAE, int], float | None]
"""Scores (and publishes) the averaged weights at an optimiser step: the lower the better, None: no score."""
Export = Callable[[EOVAE, Path], None]
"""Writes the averaged weights, as a user would load them, into a folder."""
MeasureSteps = Callable[[EOVAE], Mapping[str, Sequence[float]]]
"""Sensor -> (z,) code steps of the network as it is."""


class EOVAETask(Task[Batch, EOVAEStage]):
    """`vae` trained as the recipe says; `judge` and `export` are the run's own (default: nobody scores).

    `measure_steps` is asked when a stage begins that trains for codes; without it, the steps are those of the weights
    that the run started from.
    """

    memory_format = torch.channels_last

    def __init__(
        self, vae: EOVAE, recipe: EOVAERecipe, judge: Judge | None = None, export: Export | None = None,
        measure_steps: MeasureSteps | None = None,
    ) -> None:  # fmt: skip
        self.vae, self.recipe = vae, recipe
        self.module: Reconstruction = Reconstruction(
            vae, recipe.precision, through_norm=recipe.batch_norm == "published"
        )
        self.whole_matrices = recipe.free_kernels
        self._judge, self._export, self._measure = judge, export, measure_steps
        self._measured: dict[str, dict[str, tuple[float, ...]]] = {}

    @property
    def config(self) -> Mapping[str, Any]:
        return self.vae.config.to_dict()

    def network(self, module: nn.Module) -> nn.Module:
        return cast(Reconstruction, module).vae

    def loss(self, batch: Batch, progress: Progress[EOVAEStage]) -> tuple[Tensor, Figures]:
        stage, config, device = progress.stage, self.vae.config, progress.device
        x = batch.x[progress.rows].to(device, non_blocking=True)
        waves = batch.sensor.wavelengths  # as numbers: a table of kernels looks them up, which would wait for a GPU
        side = stage.patch // config.scale_factor
        shape = (len(batch), config.z_channels, side, side)
        steps = self._steps(batch.sensor, stage) if stage.coded else None
        how = draw_disturbance(stage, shape, progress.rows, progress.generator, device, steps)
        found = progress.forward(x, waves, how)
        prediction, rate = (found, None) if steps is None else found
        target = x if how.turn is None else how.turn(x, config.scale_factor)
        total, values = loss_of(prediction, target, stage, progress.share, progress.step)
        if rate is not None:
            total, values = total + stage.rate * rate, {**values, "code_bytes": rate.detach()}
        return total, values

    def _steps(self, sensor: TrainedSensor, stage: EOVAEStage) -> Tensor:
        """(z,) code steps of a sensor: measured when the stage began, or those of the weights that the run started
        from. ValueError where neither has any."""
        measured = self._measured.get(stage.name, {}).get(sensor.name)
        if measured is not None:
            return torch.tensor(measured)
        meta = self.vae.meta
        entry = None if meta is None else meta.coded(sensor.name, sensor.bands)
        if entry is None or entry.code_steps is None:
            raise ValueError(
                f"stage {stage.name}: the weights it starts from carry no code steps for {', '.join(sensor.bands)} of "
                f"{sensor.name}: measure them with python -m model.training.eo_vae.measured"
            )
        return torch.tensor(entry.code_steps)

    def parameter_groups(self, stage: EOVAEStage) -> list[dict[str, Any]]:
        return trained_groups(self.vae, stage)

    def shard_units(self, module: nn.Module) -> Sequence[nn.Module]:
        vae = cast(Reconstruction, module).vae
        return [*vae.encoder.down, *vae.decoder.up]

    def unused(self, stage: EOVAEStage) -> bool:
        return stage.skeleton or self.recipe.free_kernels

    @contextmanager
    def during(self, stage: EOVAEStage) -> Iterator[None]:
        with skeleton_only(self.vae) if stage.skeleton else nullcontext():
            if stage.coded and self._measure is not None and stage.name not in self._measured:
                found = self._measure(self.vae)
                self._measured[stage.name] = {name: tuple(map(float, steps)) for name, steps in found.items()}
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"code_steps": {stage: dict(steps) for stage, steps in self._measured.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._measured = {stage: dict(steps) for stage, steps in state.get("code_steps", {}).items()}

    def score(self, network: nn.Module, total: int) -> float | None:
        return None if self._judge is None else self._judge(cast(EOVAE, network), total)

    def export(self, network: nn.Module, folder: Path) -> None:
        if self._export is None:
            super().export(network, folder)
        else:
            self._export(cast(EOVAE, network), folder)
