"""States what decides a training run of EO-VAE: stages, network, mix of sensors, listing of sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from model.config import EOVAEConfig
from model.losses import MIN_SIDE
from model.training.recipe import Recipe, Stage

LOSSES = ("relative_error", "relative_angle", "charbonnier", "ms_ssim")
AUGMENTATIONS = ("physical", "symmetries")
BATCH_NORMS = ("measured", "published")
DEFAULT_MIX = {"S2L2A": 0.5, "subset": 0.14, "RGBN": 0.1, "S2L1C": 0.08, "S2RGB": 0.06, "S1RTC": 0.12}


@dataclass(frozen=True, slots=True)
class EOVAEStage(Stage):
    """One stage; the published one has schedule warmup_cosine and epochs of at most 2000 steps.

    `optimiser` "muon" has the rates `lr_skeleton`, `lr_branches` and `lr_generators`; "adam" (published) has `lr`.
    `skeleton` trains without residual branches, `freeze_body` the generated convolutions alone. `margin` pixels a side
    are left out of the loss: production drops more. `loss` weighs relative_error, relative_angle, charbonnier and
    ms_ssim; the last begins at `ms_ssim_from` of the stage, or at optimiser step `ms_ssim_step`. `sample` decodes a
    draw from the posterior instead of its mode; `latent_noise` is the largest noise added to latents, in units of their
    spread; `equivariance` the chance that latents and target are turned and scaled together. For latents that are
    stored as codes, in steps measured when the stage begins (without a listing: those of the weights that the run
    starts from): `rounding` is the width in steps of uniform
    noise on each channel, `rate` weighs the bytes a cell that codes would take beside the other losses, `tail` is the
    chance that all but the first quarter or half of the channels are left out.
    """

    optimiser: str = "muon"
    skeleton: bool = False
    freeze_body: bool = False
    lr_skeleton: float = 1e-4
    lr_branches: float = 7e-4
    lr_generators: float = 2e-4
    margin: int = 8
    loss: Mapping[str, float] = field(default_factory=lambda: {"relative_error": 1.0, "relative_angle": 0.5})
    ms_ssim_from: float = 0.7
    ms_ssim_step: int | None = None
    sample: bool = False
    latent_noise: float = 0.0
    equivariance: float = 0.0
    rounding: float = 0.0
    rate: float = 0.0
    tail: float = 0.0

    @property
    def coded(self) -> bool:
        """Whether it takes code steps."""
        return self.rounding > 0 or self.rate > 0

    def __post_init__(self) -> None:
        Stage.__post_init__(self)  # super() knows not the class that slots made anew
        if unknown := sorted(set(self.loss) - set(LOSSES)):
            raise ValueError(f"stage {self.name}: unknown loss {', '.join(unknown)}: known are {', '.join(LOSSES)}")
        for name in ("rounding", "rate", "tail"):
            if getattr(self, name) < 0:
                raise ValueError(f"stage {self.name}: {name} {getattr(self, name)} is below 0")
        if "ms_ssim" in self.loss and self.patch - 2 * self.margin < MIN_SIDE:
            raise ValueError(
                f"stage {self.name}: ms_ssim needs {MIN_SIDE} px a side, a patch of {self.patch} less its margins has "
                f"{self.patch - 2 * self.margin}"
            )


@dataclass(frozen=True, slots=True)
class EOVAERecipe(Recipe[EOVAEStage]):
    """Everything that decides a training run but the folder of the data and how many workers share it.

    `config` None takes the sizes of the weights a run starts from.
    `listing` names local rasters (see `model.training.sources.images`); a recipe without one trains on what the job is
    told to read. `favour` multiplies the weights that the listing gives a place's images. `precision` is that of the
    bodies. `augment` "physical" changes brightness, spectra and clouds, "symmetries" only turns and mirrors
    (published). `batch_norm` "measured" trains without it and measures its statistics at the end; "published" trains
    through it, normalised by a batch's statistics and undone by the running ones, which are what the weights keep.
    `corrected` takes TerraMesh's shards as EO-VAE* does (`sources.terramesh.decode`), z-scored with the statistics of
    such data (`model.sensors.CORRECTED`), whatever statistics the weights had that the run starts from.
    """

    config: EOVAEConfig | None = None
    listing: str = ""
    favour: Mapping[str, float] = field(default_factory=dict)
    shards: str = ""
    held_out_shards: str = ""
    corrected: bool = False
    block: float = 20_000.0
    margin: float = 1_000.0
    held_out_share: float = 0.1
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    start_patches: int = 64
    start_patch: int = 96
    distil_steps: int = 0
    augment: str = "physical"
    batch_norm: str = "measured"
    complete_bands: bool = True
    free_kernels: bool = False
    teach_minutes: float = 0.0
    dtype: str = "float16"
    training_data: str = ""
    licence: str = "Apache-2.0"

    stage_type: ClassVar[type[Stage]] = EOVAEStage
    task: ClassVar[str] = "eo-vae"

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment {self.augment!r} is none of {', '.join(AUGMENTATIONS)}")
        if self.batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm {self.batch_norm!r} is none of {', '.join(BATCH_NORMS)}")
        if self.corrected and self.listing:
            raise ValueError("corrected is how TerraMesh's shards are read: a listing's images say their own offset")

    @classmethod
    def prepared(cls, values: dict[str, Any], file: Path) -> dict[str, Any]:
        """With the listing beside the file, and the sizes checked."""
        if values.get("listing"):
            listing = Path(values["listing"])
            values["listing"] = str(listing if listing.is_absolute() else file.parent / listing)
        config = values.get("config")
        return values | {"config": None if config is None else EOVAEConfig.from_dict(config)}


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


def limited(recipe: EOVAERecipe, job: Job) -> EOVAERecipe:
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


def recipe_summary(recipe: EOVAERecipe) -> dict[str, Any]:
    """The recipe as JSON can hold it, without local paths."""
    config = None if recipe.config is None else recipe.config.to_dict()
    values = asdict(recipe) | {"config": config, "listing": Path(recipe.listing).name}
    values["mix"], values["favour"] = dict(recipe.mix), dict(recipe.favour)
    values["stages"] = [asdict(s) | {"loss": dict(s.loss)} for s in recipe.stages]
    return values
