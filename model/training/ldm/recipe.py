"""States what decides a training of super-resolution: the network, its start, its losses and its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from model.super_resolution import SRConfig
from model.training.recipe import Recipe, Stage


@dataclass(frozen=True, slots=True)
class SRStage(Stage):
    """A stage and the shares of its losses: of the regression (`mean`) and of the denoiser (`diffusion`).

    With `diffusion` 0 the U-Net is not computed at all; without a trunk there is no regression to train.
    """

    mean: float = 1.0
    diffusion: float = 1.0

    def __post_init__(self) -> None:
        Stage.__post_init__(self)
        if min(self.mean, self.diffusion) < 0 or self.mean + self.diffusion <= 0:
            raise ValueError(f"stage {self.name}: mean and diffusion are shares of the loss, one at least above 0")


@dataclass(frozen=True, slots=True)
class SRRecipe(Recipe[SRStage]):
    """A recipe of super-resolution.

    `network` are the sizes (`SRConfig`). `ridge` damps the closed-form start, relative to the mean variance of what it
    reads. `whiten` says in which coordinates the residual is diffused: "cost" (white, the decoder's cost diagonal),
    or "channels" (each channel to unit spread). `hr_statistics` normalises the condition with the target's statistics,
    as published. `cost_power` weighs the coordinates in the denoiser's loss by that power of their cost in pixels; the
    regression's loss is weighed by the cost itself, which makes it the pixels' squared error.
    `weight_cap` bounds the loss's weight over times (None: not, as published); `noisy` is the share of examples drawn
    at the noisiest time, where the denoiser's answer is the mean. `balance` in 0..1 evens out how often places are
    drawn: 0 as often as they have pairs, 1 each place alike. `coarser` is a factor on how much pairs count in the
    closed-form start whose fine pixels are larger than the finest of the store: ground seen at 100 m is not what it is
    at 10 m. The denoiser draws them all the same: what it lacks is variety.
    `condition_noise` is the most noise (a share of the condition's unit spread, drawn evenly from 0 up for each
    example) that is added to what the U-Net sees of the condition: without it a network learns few places by heart
    (conditioning augmentation, Ho et al. 2022, "Cascaded diffusion models").
    """

    network: SRConfig = field(kw_only=True)
    ridge: float = 1e-3
    whiten: Literal["cost", "channels"] = "cost"
    hr_statistics: bool = False
    cost_power: float = 0.5
    weight_cap: float | None = None
    noisy: float = 0.0
    balance: float = 0.5
    coarser: float = 1.0
    condition_noise: float = 0.0
    gram_pairs: int = 48
    licence: str = ""
    training_data: str = ""

    stage_type: ClassVar[type[Stage]] = SRStage
    task: ClassVar[str] = "sr"

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        if self.whiten not in ("cost", "channels"):
            raise ValueError(f"whiten {self.whiten!r}: choose cost or channels")
        if (
            not 0 <= self.noisy < 1
            or not 0 <= self.balance <= 1
            or min(self.ridge, self.coarser, self.condition_noise) < 0
        ):
            raise ValueError(
                "noisy is in 0..1 and not 1, balance in 0..1, ridge, coarser and condition_noise 0 or more"
            )

    def limited(self, steps: int | None = None, minutes: float | None = None) -> Self:
        """The recipe with its stages' steps, or minutes instead, scaled to these in all."""
        stages = self.stages
        if steps is not None:
            whole = sum(s.steps or 0 for s in stages) or len(stages)
            stages = tuple(
                replace(s, steps=max(1, round((s.steps or 1) * steps / whole)), minutes=None) for s in stages
            )
        if minutes is not None:
            shares = [float(s.minutes or s.steps or 1) for s in stages]
            stages = tuple(
                replace(s, steps=None, minutes=share * minutes / sum(shares))
                for s, share in zip(stages, shares, strict=True)
            )
        return replace(self, stages=stages)

    @classmethod
    def prepared(cls, values: dict[str, Any], file: Path) -> dict[str, Any]:
        """The file's values with `network` as a configuration."""
        network = values.get("network")
        if not isinstance(network, Mapping):
            raise ValueError(f"{file.name}: key 'network' is missing: it holds the sizes of a super-resolver")
        try:
            return {**values, "network": SRConfig.from_dict(network)}
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from None
