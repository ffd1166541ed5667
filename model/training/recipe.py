"""What decides a training run: stages, network, mix of sensors, listing of sources; read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from model.config import EOVAEConfig
from model.losses import MIN_SIDE
from model.training.eo_vae.sampler import DEFAULT_MIX

RECIPES = Path(__file__).parent / "recipes"
OPTIMISERS = ("muon", "adam")
SCHEDULES = ("cosine", "warmup_cosine")
LOSSES = ("relative_error", "relative_angle", "charbonnier", "ms_ssim")
PRECISIONS = ("bf16", "fp16", "fp32")
DIVISIONS = ("streams", "shares", "slices")
AUGMENTATIONS = ("physical", "symmetries")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. It ends after `steps`, `epochs` of the data or `minutes`, whichever of those given comes first.

    An epoch is the data's real length, or `epoch_limit` steps of it where that is less or not known (published: 2000).
    `schedule` "cosine" (the nano recipe's) is a cosine over the stage times a ramp of `warmup` steps; "warmup_cosine"
    (published) is linear from 0 over `warmup` steps or `warmup_epochs`, then a cosine. Both end at `final` of the rate.
    `optimiser` "muon" has the rates `lr_skeleton`, `lr_branches` and `lr_generators`; "adam" (published) has `lr`.
    `batch` patches make one optimiser step, computed in `accumulate` parts. `skeleton` trains without residual
    branches, `freeze_body` the generated convolutions alone. `margin` pixels a side are left out of the loss:
    production drops more. `loss` weighs relative_error, relative_angle, charbonnier and ms_ssim; the last begins at
    `ms_ssim_from` of the stage, or at optimiser step `ms_ssim_step`. `sample` decodes a draw from the posterior instead
    of its mode; `latent_noise` is the largest noise added to latents, in units of their spread; `equivariance` the
    chance that latents and target are turned and scaled together.
    """

    name: str
    batch: int
    patch: int
    steps: int | None = None
    minutes: float | None = None
    epochs: float | None = None
    epoch_limit: int | None = None
    skeleton: bool = False
    freeze_body: bool = False
    optimiser: str = "muon"
    schedule: str = "cosine"
    lr: float = 1e-4
    lr_skeleton: float = 1e-4
    lr_branches: float = 7e-4
    lr_generators: float = 2e-4
    warmup: int = 30
    warmup_epochs: float | None = None
    margin: int = 8
    final: float = 0.0
    loss: Mapping[str, float] = field(default_factory=lambda: {"relative_error": 1.0, "relative_angle": 0.5})
    ms_ssim_from: float = 0.7
    ms_ssim_step: int | None = None
    accumulate: int = 1
    sample: bool = False
    latent_noise: float = 0.0
    equivariance: float = 0.0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None and self.epochs is None:
            raise ValueError(f"stage {self.name}: give steps, epochs or minutes, or it never ends")
        if self.schedule == "warmup_cosine" and self.steps is None and self.epochs is None:
            raise ValueError(f"stage {self.name}: schedule warmup_cosine counts steps: give steps or epochs")
        for key, known in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise ValueError(f"stage {self.name}: {key} {getattr(self, key)!r} is none of {', '.join(known)}")
        if unknown := sorted(set(self.loss) - set(LOSSES)):
            raise ValueError(f"stage {self.name}: unknown loss {', '.join(unknown)}: known are {', '.join(LOSSES)}")
        if "ms_ssim" in self.loss and self.patch - 2 * self.margin < MIN_SIDE:
            raise ValueError(
                f"stage {self.name}: ms_ssim needs {MIN_SIDE} px a side, a patch of {self.patch} less its margins has "
                f"{self.patch - 2 * self.margin}"
            )
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(
                f"stage {self.name}: batch {self.batch} cannot be computed in {self.accumulate} equal parts"
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run but the folder of the data and how many workers share it.

    `config` None takes the sizes of the weights a run starts from.
    `listing` names local rasters (see `model.training.sources.images`); a recipe without one trains on what the job is
    told to read. `favour` multiplies the weights that the listing gives a place's images.
    `division` says what a stage's `batch` means with several workers: "streams", a batch of each worker's own random
    stream (more workers, larger batch); "slices", one batch of all workers together, of which each computes its part,
    so that their number does not change the run. `precision` is that of the bodies: bf16, fp16 (with a loss scaler) or
    fp32. `augment` "physical" changes brightness, spectra and clouds, "symmetries" only turns and mirrors (published).
    A checkpoint is written every `checkpoint_steps`, or else with each evaluation, every `evaluate_minutes`.
    """

    config: EOVAEConfig | None
    stages: tuple[Stage, ...]
    listing: str = ""
    favour: Mapping[str, float] = field(default_factory=dict)
    shards: str = ""
    held_out_shards: str = ""
    block: float = 20_000.0
    margin: float = 1_000.0
    held_out_share: float = 0.1
    seed: int = 0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    start_patches: int = 64
    start_patch: int = 96
    distil_steps: int = 0
    ema: float = 0.998
    clip: float = 5.0
    precision: str = "bf16"
    division: str = "streams"
    augment: str = "physical"
    evaluate_minutes: float = 6.0
    checkpoint_steps: int | None = None
    complete_bands: bool = True
    free_kernels: bool = False
    teach_minutes: float = 0.0
    dtype: str = "float16"
    training_data: str = ""
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        for key, known in (("precision", PRECISIONS), ("division", DIVISIONS), ("augment", AUGMENTATIONS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key} {getattr(self, key)!r} is none of {', '.join(known)}")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML recipe: a name shipped in recipes/ or a path. ValueError names unknown keys."""
        file = Path(path) if Path(path).is_file() else RECIPES / f"{path}.yaml"
        if not file.is_file():
            names = sorted(p.stem for p in RECIPES.glob("*.yaml") if not p.stem.endswith("_data"))
            raise ValueError(f"no recipe {path}: give a YAML file or one of {', '.join(names)}")
        values = yaml.safe_load(file.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"{file.name} holds no recipe: expected keys such as stages")
        if values.get("listing"):
            listing = Path(values["listing"])
            values["listing"] = str(listing if listing.is_absolute() else file.parent / listing)
        config = values.get("config")
        values["config"] = None if config is None else EOVAEConfig.from_dict(config)
        try:
            values["stages"] = tuple(Stage(**stage) for stage in values["stages"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file.name}: {error}") from None
        except KeyError as error:
            raise ValueError(f"{file.name}: key {error} is missing") from None


@dataclass(frozen=True, slots=True)
class Job:
    """Where a run reads and writes. `init`: "linear", "random", or weights that `load_weights` knows.

    `parallel` is how several workers share the network: "ddp" or "fsdp" (FSDP2).
    """

    data: Path | str
    out: Path
    init: str = "linear"
    name: str = "nano"
    minutes: float | None = None
    steps: int | None = None
    threads: int | None = None
    parallel: str = "ddp"


def limited(recipe: Recipe, job: Job) -> Recipe:
    """The recipe with its stages scaled to the job's own limits of steps or minutes in all."""
    stages = recipe.stages
    if job.steps is not None:
        known = [s.steps for s in stages if s.steps is not None]
        share = job.steps / sum(known) if len(known) == len(stages) else None
        if share is None:  # epochs or minutes decide: every stage gets the same number
            even = max(1, round(job.steps / len(stages)))
            stages = tuple(replace(s, steps=even, epochs=None) for s in stages)
        else:
            stages = tuple(replace(s, steps=max(1, round((s.steps or 0) * share))) for s in stages)
            recipe = replace(recipe, distil_steps=round(recipe.distil_steps * min(1.0, share)))
    if job.minutes is not None:
        total = sum(s.minutes or 0.0 for s in stages)
        stages = tuple(
            replace(s, minutes=s.minutes * job.minutes / total if s.minutes else job.minutes / len(stages))
            for s in stages
        )
        if total > 0:
            recipe = replace(recipe, teach_minutes=recipe.teach_minutes * job.minutes / total)
    return replace(recipe, stages=stages)


def recipe_summary(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON can hold it, without local paths."""
    config = None if recipe.config is None else recipe.config.to_dict()
    values = asdict(recipe) | {"config": config, "listing": Path(recipe.listing).name}
    values["mix"], values["favour"] = dict(recipe.mix), dict(recipe.favour)
    values["stages"] = [asdict(s) | {"loss": dict(s.loss)} for s in recipe.stages]
    return values
