"""Reckons what a recipe costs on several GPUs: from counted FLOPs, a step timed here, and assumptions that are named.

FLOPs are counted by torch (`FlopCounterMode`, two a multiplication with addition, forward and backward) on tensors
without values, so that the recipe's own sizes can be counted on any machine.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.eo_vae import EOVAE, EOVAEConfig
from model.losses import MIN_SIDE
from model.sensors import SENSORS, TrainedSensor
from model.training.batch import Batch
from model.training.distributed import Team
from model.training.eo_vae.feeds import modalities_of
from model.training.eo_vae.objective import TERMS
from model.training.eo_vae.recipe import EOVAERecipe, EOVAEStage
from model.training.eo_vae.stage1 import Generators
from model.training.eo_vae.task import EOVAETask
from model.training.loop import Loop

MEASURED, COUNTED, RECIPE, ASSUMED, DERIVED = "measured here", "counted", "the recipe", "assumed", "derived"
_SMALL = 64
"""Side of the one patch that a step is timed on where there is no GPU."""
_WARM_UP = 1


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What nobody measured: `tflops` that each of `gpus` sustains, TFLOP/s, and `dollars` a GPU hour."""

    gpus: int = 8
    tflops: float = 100.0
    dollars: float = 3.0

    def __post_init__(self) -> None:
        for name in ("gpus", "tflops", "dollars"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} must be above 0: a cost needs it")


@dataclass(frozen=True, slots=True)
class Timed:
    """A step timed on `device`: of `batch` patches of `patch` px, in seconds (the median of `steps`)."""

    device: str
    precision: str
    batch: int
    patch: int
    steps: int
    seconds: float
    flops: float

    @property
    def tflops(self) -> float:
        """TFLOP/s reached."""
        return self.flops / self.seconds / 1e12


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a recipe: `steps` optimiser steps in all, `step_flops` the mean of one at the recipe's sizes, `flops` of all
    with `distil_flops` of stage 1. Neither the reading of data nor talk between GPUs nor the evaluation is in it."""

    recipe: str
    steps: int
    distil_steps: int
    step_flops: float
    distil_flops: float
    flops: float
    timed: Timed
    assumed: Assumptions

    @property
    def hours(self) -> float:
        """On all GPUs together, at what they are assumed to sustain."""
        return self.flops / (self.assumed.gpus * self.assumed.tflops * 1e12) / 3600

    @property
    def hours_here(self) -> float:
        """On as many devices like the one that was timed."""
        return self.flops / (self.assumed.gpus * self.timed.tflops * 1e12) / 3600

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, figure, where it is from) of everything."""
        a, t = self.assumed, self.timed
        size = f"{t.batch} x {t.patch} px"
        return [
            ("optimiser steps", f"{self.steps}, and {self.distil_steps} of stage 1", RECIPE),
            ("FLOPs of a step", f"{self.step_flops / 1e12:.4g} TFLOP", f"{COUNTED}, mean of the modalities"),
            ("FLOPs of stage 1", f"{self.distil_flops / 1e12:.4g} TFLOP", COUNTED),
            ("FLOPs in all", f"{self.flops / 1e18:.4g} EFLOP", f"{DERIVED}: steps x FLOPs"),
            (f"a step of {size}", f"{t.seconds:.4g} s", f"{MEASURED}: {t.device}, {t.precision}, median of {t.steps}"),
            ("FLOPs of that step", f"{t.flops / 1e12:.4g} TFLOP", COUNTED),
            ("reached here", f"{t.tflops:.4g} TFLOP/s", f"{DERIVED}: {COUNTED} / {MEASURED}"),
            (f"{a.gpus} devices like this one", f"{self.hours_here:.4g} h", f"{DERIVED} from the step {MEASURED}"),
            ("a GPU sustains", f"{a.tflops:g} TFLOP/s", f"{ASSUMED} (--gpu-tflops)"),
            ("a GPU hour costs", f"{a.dollars:g} $", f"{ASSUMED} (--dollars-per-gpu-hour)"),
            (f"{a.gpus} such GPUs", f"{self.hours:.4g} h", f"{DERIVED} from what is {ASSUMED}"),
            ("GPU hours", f"{self.hours * a.gpus:.4g}", f"{DERIVED} from what is {ASSUMED}"),
            ("money", f"{self.hours * a.gpus * a.dollars:.4g} $", f"{DERIVED} from what is {ASSUMED}"),
        ]

    def table(self) -> str:
        """The rows in columns."""
        rows = self.rows()
        widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in rows]
        return "\n".join(
            [f"cost of recipe {self.recipe}", *lines, "not in it: reading data, talk between GPUs, scoring"]
        )

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON, each figure beside where it is from."""
        a, t = self.assumed, self.timed
        return {
            "recipe": {"name": self.recipe, "steps": self.steps, "distil_steps": self.distil_steps},
            "counted": {"step_flops": self.step_flops, "distil_flops": self.distil_flops, "timed_step_flops": t.flops},
            "measured": {
                "device": t.device, "precision": t.precision, "batch": t.batch, "patch": t.patch, "steps": t.steps,
                "seconds_a_step": t.seconds,
            },
            "assumed": {"gpus": a.gpus, "gpu_tflops": a.tflops, "dollars_per_gpu_hour": a.dollars},
            "derived": {
                "flops": self.flops, "tflops_here": t.tflops, "hours_on_devices_like_this": self.hours_here,
                "hours": self.hours, "gpu_hours": self.hours * a.gpus,
                "dollars": self.hours * a.gpus * a.dollars,
            },
        }  # fmt: skip


def cost_of(
    name: str, recipe: EOVAERecipe, distil_steps: int, assumed: Assumptions, device: torch.device, *, steps: int = 3
) -> Cost:
    """Count the recipe's steps and time `steps` small ones here.

    ValueError for a recipe without sizes or shards, or with a stage that ends by the clock.
    """
    if recipe.config is None or not recipe.shards:
        raise ValueError(f"recipe {name} states no config or no shards: its cost cannot be reckoned")
    sensors = [SENSORS[modality] for modality in modalities_of(recipe.shards)]
    total, flops = 0, 0.0
    for stage in recipe.stages:
        count = steps_of(stage)
        one = sum(step_flops(recipe.config, stage, s, stage.batch, stage.patch) for s in sensors) / len(sensors)
        total, flops = total + count, flops + count * one
    distil = distil_steps * distil_flops(recipe.config)
    timed = time_step(recipe, assumed.gpus, device, max(sensors, key=lambda s: len(s.bands)), steps=steps)
    return Cost(name, total, distil_steps, flops / total, distil, flops + distil, timed, assumed)


def steps_of(stage: EOVAEStage) -> int:
    """The most optimiser steps that a stage takes. ValueError where only a clock or the data's length ends it."""
    found = [] if stage.steps is None else [stage.steps]
    if stage.epochs is not None and stage.epoch_limit is not None:
        found.append(math.ceil(stage.epochs * stage.epoch_limit))
    if not found:
        raise ValueError(f"stage {stage.name} has no number of steps: give --steps to reckon its cost")
    return min(found)


def step_flops(config: EOVAEConfig, stage: EOVAEStage, sensor: TrainedSensor, batch: int, patch: int) -> float:
    """FLOPs of one forward and backward pass with the stage's losses, nothing being computed."""
    with torch.device("meta"):
        vae = EOVAE(config)
        x, waves = torch.empty(batch, len(sensor.bands), patch, patch), torch.tensor(sensor.wavelengths)
    with FlopCounterMode(display=False) as counter:
        y = vae.decode(vae.encode(x, waves).mode(), waves)
        terms = [name for name in stage.loss if name != "ms_ssim" or patch - 2 * stage.margin >= MIN_SIDE]
        torch.stack([TERMS[name](y, x) for name in terms]).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def distil_flops(config: EOVAEConfig) -> float:
    """FLOPs of one step of stage 1: the generators, forward and backward."""
    with torch.device("meta"):
        vae = EOVAE(config)
    generators = Generators(vae.encoder.conv_in, vae.decoder.conv_out)
    with FlopCounterMode(display=False) as counter:
        torch.stack([tensor.sum() for tensor in generators()]).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


@dataclass(slots=True)
class _Stopwatch:
    """The same random batch again and again; notes when it is asked for one, which is when a step begins."""

    batch: Batch
    times: list[float] = field(default_factory=list)

    def draw(self, batch_size: int, patch: int) -> Batch:
        self.times.append(time.perf_counter())
        return self.batch

    def steps_per_epoch(self, batch_size: int) -> int | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def time_step(recipe: EOVAERecipe, gpus: int, device: torch.device, sensor: TrainedSensor, *, steps: int = 3) -> Timed:
    """Time optimiser steps of the recipe's last stage on the training loop itself, from a random start.

    On a GPU a step is what one of `gpus` computes of a batch, at the recipe's size; elsewhere one small patch, in
    bfloat16 where the recipe says float16, which is for GPUs. ValueError for a recipe without config.
    """
    if recipe.config is None:
        raise ValueError("a recipe without config has no step to time")
    stage = recipe.stages[-1]
    here = device.type == "cuda"
    batch, patch = (max(1, stage.batch // gpus), stage.patch) if here else (1, min(stage.patch, _SMALL))
    precision = "bf16" if recipe.precision == "fp16" and not here else recipe.precision
    terms = {name: w for name, w in stage.loss.items() if name != "ms_ssim" or patch - 2 * stage.margin >= MIN_SIDE}
    # one more than is timed: the last has no step after it
    short = replace(
        stage, steps=_WARM_UP + steps + 1, epochs=None, warmup=1, warmup_epochs=None, batch=batch, patch=patch,
        accumulate=1, loss=terms, ms_ssim_step=0 if "ms_ssim" in terms else None, minutes=None,
        rounding=0.0, rate=0.0,
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    pixels = torch.randn(batch, len(sensor.bands), patch, patch)
    watch = _Stopwatch(Batch(pixels, sensor))
    how = replace(recipe, stages=(short,), precision=precision, checkpoint_steps=None, division="streams")
    Loop(EOVAETask(EOVAE(recipe.config), how), how, watch, Team(device=device)).run()
    seconds = statistics.median([b - a for a, b in zip(watch.times, watch.times[1:], strict=False)][_WARM_UP:])
    name = torch.cuda.get_device_name(device) if here else f"CPU, threads: {torch.get_num_threads()}"
    flops = step_flops(recipe.config, short, sensor, batch, patch)
    return Timed(name, precision, batch, patch, steps, seconds, flops)
