"""What decides a training run: stages, network, mix of sensors, listing of sources; read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from model.eo_vae import EOVAEConfig
from model.training.sampler import DEFAULT_MIX

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. It ends after `steps` or `minutes`, whichever comes first; the rates follow a cosine to zero over it.

    `skeleton` trains without residual branches. `margin` pixels a side are left out of the loss: production drops more.
    `loss` weighs relative_error, relative_angle, charbonnier and ms_ssim (which begins at `ms_ssim_from` of the stage).
    """

    name: str
    steps: int
    minutes: float
    batch: int
    patch: int
    skeleton: bool = False
    lr_skeleton: float = 1e-4
    lr_branches: float = 7e-4
    lr_generators: float = 2e-4
    warmup: int = 30
    margin: int = 8
    final: float = 0.0
    loss: Mapping[str, float] = field(default_factory=lambda: {"relative_error": 1.0, "relative_angle": 0.5})
    ms_ssim_from: float = 0.7


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run but the folder of the data and how many workers share it."""

    config: EOVAEConfig
    stages: tuple[Stage, ...]
    listing: str
    seed: int = 0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    start_patches: int = 64
    start_patch: int = 96
    distil_steps: int = 0
    ema: float = 0.998
    clip: float = 5.0
    bfloat16: bool = True
    evaluate_minutes: float = 6.0
    complete_bands: bool = True
    free_kernels: bool = False
    teach_minutes: float = 0.0
    dtype: str = "float16"
    training_data: str = ""
    licence: str = "Apache-2.0"

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML recipe: a name shipped in recipes/ or a path. ValueError names unknown keys."""
        file = Path(path) if Path(path).is_file() else RECIPES / f"{path}.yaml"
        if not file.is_file():
            names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
            raise ValueError(f"no recipe {path}: give a YAML file or one of {', '.join(names)}")
        values = yaml.safe_load(file.read_text())
        listing = Path(values["listing"])
        values["listing"] = str(listing if listing.is_absolute() else file.parent / listing)
        values["config"] = EOVAEConfig.from_dict(values["config"])
        try:
            values["stages"] = tuple(Stage(**stage) for stage in values["stages"])
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{file.name}: {error}") from None


@dataclass(frozen=True, slots=True)
class Job:
    """Where a run reads and writes. `init`: "linear", "random", or weights that `load_weights` knows."""

    data: Path
    out: Path
    init: str = "linear"
    name: str = "nano"
    minutes: float | None = None
    steps: int | None = None
    threads: int | None = None


def limited(recipe: Recipe, job: Job) -> Recipe:
    """The recipe with its stages scaled to the job's own limits of steps or minutes in all."""
    stages = recipe.stages
    if job.steps is not None:
        whole = sum(s.steps for s in stages)
        stages = tuple(replace(s, steps=max(1, round(s.steps * job.steps / whole))) for s in stages)
        share = job.steps / whole
        recipe = replace(recipe, distil_steps=round(recipe.distil_steps * min(1.0, share)))
    if job.minutes is not None:
        total = sum(s.minutes for s in stages)
        stages = tuple(replace(s, minutes=s.minutes * job.minutes / total) for s in stages)
        recipe = replace(recipe, teach_minutes=recipe.teach_minutes * job.minutes / total)
    return replace(recipe, stages=stages)


def recipe_summary(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON can hold it, without local paths."""
    values = asdict(recipe) | {"config": recipe.config.to_dict(), "listing": Path(recipe.listing).name}
    values["mix"], values["stages"] = dict(recipe.mix), [asdict(s) | {"loss": dict(s.loss)} for s in recipe.stages]
    return values
