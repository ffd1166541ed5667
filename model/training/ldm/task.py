"""Trains a super-resolver on the house's loop: a regression's loss, and a denoiser's on what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.diffusion import draw_times, preconditioning
from model.super_resolution import SuperResolver
from model.training.ldm.pairs import PairBatch
from model.training.ldm.recipe import SRRecipe, SRStage
from model.training.readings import Figures
from model.training.task import Progress, Task, mixed

Score = Callable[[SuperResolver, int], float | None]
Export = Callable[[SuperResolver, Path], None]


class Losses(nn.Module):
    """The network inside its losses, so that one call computes all of them (DDP wants one)."""

    def __init__(self, net: SuperResolver, recipe: SRRecipe) -> None:
        super().__init__()
        self.net = net
        self.cap, self.power = recipe.weight_cap, recipe.cost_power

    def forward(
        self,
        condition: Tensor,
        target: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        blur: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Raw condition and target, times (B,) and noise of the target's shape, or None for the regression alone ->
        the losses of the regression and of the denoiser, (B,) each; 0 where there is none. `blur` is added to what the
        U-Net sees of the condition."""
        net = self.net
        given = net.normalised(condition)
        linear = net.linear(given)
        wanted = net.white.into(target.float() if linear is None else target.float() - linear)
        spread = net.spread(given)
        wanted = wanted if spread is None else wanted / spread
        nothing = torch.zeros(len(target), device=wanted.device)
        mean, features = net.regression(given)
        regression = nothing if mean is None else self._squared(mean.float() - wanted, 1.0)
        if t is None or noise is None:
            return regression, nothing
        features = features if blur is None else features + blur
        # The denoiser is told what the regression left, not asked to move it.
        x0 = wanted if mean is None else wanted - mean.detach().float()
        alpha, sigma = net.schedule.alpha(t), net.schedule.sigma(t)
        x = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * noise
        weight = preconditioning(alpha, sigma).weight
        if self.cap is not None:
            weight = weight.clamp(max=self.cap)
        return regression, weight * self._squared(net.denoise_with(features)(x, t) - x0, self.power)

    def _squared(self, error: Tensor, power: float) -> Tensor:
        cost = self.net.white.cost.pow(power)
        return (error.square().mean((2, 3)) * (cost / cost.mean())).mean(1)


class SRTask(Task[PairBatch, SRStage]):
    """A `SuperResolver` whose closed-form start was solved already (`model.training.ldm.start.solve`)."""

    memory_format = torch.channels_last

    def __init__(
        self, net: SuperResolver, recipe: SRRecipe, score: Score | None = None, export: Export | None = None
    ) -> None:
        self.module: Losses = Losses(net, recipe)
        self.recipe = recipe
        self._score, self._export = score, export

    @property
    def config(self) -> Mapping[str, Any]:
        return self.recipe.network.to_dict()

    def network(self, module: nn.Module) -> nn.Module:
        return cast(Losses, module).net

    def parameter_groups(self, stage: SRStage) -> list[dict[str, Any]]:
        net = self.module.net
        net.unet.requires_grad_(stage.diffusion > 0)
        if net.trunk is not None:
            net.trunk.requires_grad_(True)
            net.trunk.mean.requires_grad_(stage.mean > 0)
            net.trunk.features.requires_grad_(stage.diffusion > 0)
        return super().parameter_groups(stage)

    def loss(self, batch: PairBatch, progress: Progress[SRStage]) -> tuple[Tensor, Figures]:
        stage, rows, device = progress.stage, progress.rows, progress.device
        condition, target = (x[rows].to(device, non_blocking=True) for x in (batch.condition, batch.target))
        drawn: tuple[Tensor, ...] = ()
        if stage.diffusion > 0:
            drawn = tuple(x[rows].to(device, non_blocking=True) for x in self._noise(batch, progress.generator))
        with mixed(device, self.recipe.precision):
            mean, diffusion = progress.forward(condition, target, *drawn)
        figures = {}
        if self.module.net.trunk is not None and stage.mean > 0:
            figures["mean"] = mean.detach().mean()
        if stage.diffusion > 0:
            figures["diffusion"] = diffusion.detach().mean()
        return stage.mean * mean.mean() + stage.diffusion * diffusion.mean(), figures

    def _noise(self, batch: PairBatch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Times and noise of the whole batch, and of the condition where the recipe has some: a share of the times is
        the noisiest one."""
        t = draw_times(self.module.net.schedule, len(batch), generator)
        if self.recipe.noisy > 0:
            chosen = torch.rand(len(batch), generator=generator) < self.recipe.noisy
            t = torch.where(chosen, torch.ones_like(t), t)
        noise = torch.randn(batch.target.shape, generator=generator)
        if self.recipe.condition_noise == 0:
            return t, noise
        sizes, native = self.recipe.network, self.module.net.trunk is None and self.recipe.network.finer > 1
        side = batch.condition.shape[2:] if native else [n // sizes.fold for n in batch.target.shape[2:]]
        most = self.recipe.condition_noise * torch.rand((len(batch), 1, 1, 1), generator=generator)
        return t, noise, most * torch.randn((len(batch), sizes.unet.condition, *side), generator=generator)

    def score(self, network: nn.Module, total: int) -> float | None:
        return None if self._score is None else self._score(cast(SuperResolver, network), total)

    def export(self, network: nn.Module, folder: Path) -> None:
        if self._export is not None:
            self._export(cast(SuperResolver, network), folder)
