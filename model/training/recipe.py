"""States what decides a training run whatever the network: its stages and how they run; read from YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import yaml

RECIPES = Path(__file__).parent / "recipes"
OPTIMISERS = ("muon", "adam", "adamw")
SCHEDULES = ("cosine", "warmup_cosine")
PRECISIONS = ("bf16", "fp16", "fp32")
DIVISIONS = ("streams", "shares", "slices")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. It ends after `steps`, `epochs` of the data or `minutes`, whichever of those given comes first.

    `batch` examples make one optimiser step, computed in `accumulate` parts; `patch` is the side that the source cuts
    to, where it does. An epoch is the data's real length, or `epoch_limit` steps of it where that is less or not known.
    `schedule` "cosine" is a cosine over the stage times a ramp of `warmup` steps; "warmup_cosine" is linear from 0 over
    `warmup` steps or `warmup_epochs`, then a cosine. Both end at `final` of the rate. `lr` is the rate of the task's
    parameter groups that name none; `weight_decay` is adamw's.
    """

    name: str
    batch: int
    patch: int = 1
    steps: int | None = None
    minutes: float | None = None
    epochs: float | None = None
    epoch_limit: int | None = None
    optimiser: str = "adam"
    schedule: str = "cosine"
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 30
    warmup_epochs: float | None = None
    final: float = 0.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None and self.epochs is None:
            raise ValueError(f"stage {self.name}: give steps, epochs or minutes, or it never ends")
        if self.schedule == "warmup_cosine" and self.steps is None and self.epochs is None:
            raise ValueError(f"stage {self.name}: schedule warmup_cosine counts steps: give steps or epochs")
        for key, known in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise ValueError(f"stage {self.name}: {key} {getattr(self, key)!r} is none of {', '.join(known)}")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(
                f"stage {self.name}: batch {self.batch} cannot be computed in {self.accumulate} equal parts"
            )


S = TypeVar("S", bound=Stage)


@dataclass(frozen=True, slots=True)
class Recipe(Generic[S]):
    """What the loop needs to know of a run; a network's own recipe adds what its task needs.

    `division` says what a stage's `batch` means with several workers: "streams", a batch of each worker's own random
    stream (more workers, larger batch); "shares", each worker draws its part of the batch from its share of the data;
    "slices", one batch of all workers together, of which each computes its part, so that their number does not change
    the run. `precision` is bf16, fp16 (with a loss scaler) or fp32. `ema` is the decay of the averaged weights, 0 for
    none, `clip` the largest norm of a gradient. The network is scored every `evaluate_minutes`; a checkpoint is written
    every `checkpoint_steps`, or else with each score.
    """

    stages: tuple[S, ...]
    seed: int = 0
    ema: float = 0.998
    clip: float = 5.0
    precision: str = "bf16"
    division: str = "streams"
    evaluate_minutes: float = 6.0
    checkpoint_steps: int | None = None

    stage_type: ClassVar[type[Stage]] = Stage
    task: ClassVar[str] = ""
    """A recipe file may say which task it is of (`task: probe`); one of another is refused."""

    def __post_init__(self) -> None:
        for key, known in (("precision", PRECISIONS), ("division", DIVISIONS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key} {getattr(self, key)!r} is none of {', '.join(known)}")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML recipe: a name shipped in recipes/ or a path. ValueError names unknown keys."""
        file = Path(path) if Path(path).is_file() else RECIPES / f"{path}.yaml"
        if not file.is_file():
            names = sorted(p.stem for p in RECIPES.glob("*.yaml") if not p.stem.endswith("_data"))
            raise ValueError(f"no recipe {path}: give a YAML file or one of {', '.join(names)}")
        values = yaml.safe_load(file.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"{file.name} holds no recipe: expected keys such as stages")
        task = values.pop("task", cls.task)
        if cls.task and task != cls.task:
            raise ValueError(f"{file.name} is a recipe for {task}: {cls.task} is trained here")
        values = cls.prepared(values, file)
        try:
            values["stages"] = tuple(cls.stage_type(**stage) for stage in values["stages"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file.name}: {error}") from None
        except KeyError as error:
            raise ValueError(f"{file.name}: key {error} is missing") from None

    @classmethod
    def prepared(cls, values: dict[str, Any], file: Path) -> dict[str, Any]:
        """The file's values as the constructor takes them, all but the stages."""
        return values
