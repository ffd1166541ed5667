"""Gives the learning rate of each step and says when a stage ends, from the real length of the data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from model.training.distributed import Team
from model.training.recipe import Stage
from model.training.task import BatchLike, Source

log = logging.getLogger(__name__)


def cosine(progress: float, final: float = 0.0) -> float:
    """Factor on the base rate: 1 at `progress` 0, `final` at 1, half a cosine between."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def warmed_cosine(step: int, progress: float, *, warmup: int, final: float = 0.0) -> float:
    """The nano recipe's factor: a cosine over the whole stage times a ramp that is 1 from step `warmup` - 1 on."""
    return cosine(progress, final) * min(1.0, (step + 1) / max(1, warmup))


def warmup_cosine(step: int, *, warmup: int, total: int, final: float = 0.0) -> float:
    """The published factor at optimiser step `step` (from 0): linear from 0 over `warmup`, then a cosine to `final`.

    Source: EO-VAE specification, section 9; there `total` is 200 000 fixed in code, here it is the data's real length.
    """
    if step < warmup:
        return step / warmup
    return cosine((step - warmup) / max(1, total - warmup), final)


def epoch_steps(steps_per_epoch: Callable[[int], int | None], batch: int, accumulate: int = 1) -> int | None:
    """Optimiser steps in one pass over the data: whole batches drawn in `accumulate` parts; None without a length."""
    draws = steps_per_epoch(batch // accumulate)
    return None if draws is None else max(1, draws // accumulate)


@dataclass(frozen=True, slots=True)
class Clock:
    """When a stage ends and how its rates go: by optimiser steps, by seconds, or by whichever is further."""

    began: float
    steps: int | None
    seconds: float | None
    warmup: int

    @classmethod
    def of(cls, stage: Stage, source: Source[BatchLike], share: int, team: Team, spent: float = 0.0) -> Clock:
        """The clock of a stage in which `spent` seconds have passed already; `share` patches a step are drawn from
        this worker's `source`. ValueError for epochs of endless data."""
        per_epoch = None
        if stage.epochs is not None or stage.warmup_epochs is not None:
            per_epoch = epoch_steps(source.steps_per_epoch, share, stage.accumulate)
            if per_epoch is None and stage.epoch_limit is None:
                raise ValueError(
                    f"stage {stage.name} counts epochs, but its data have no length: give steps, or an epoch_limit"
                )
            if per_epoch is None:
                log.warning("stage %s: data of unknown length, an epoch is %d steps", stage.name, stage.epoch_limit)
                per_epoch = cast(int, stage.epoch_limit)
            # shares of the data differ by a patch or so: one length for all
            per_epoch = min(int(team.agree(per_epoch)[0]), stage.epoch_limit or per_epoch)
        limits = [] if stage.steps is None else [stage.steps]
        if stage.epochs is not None and per_epoch is not None:
            limits.append(max(1, round(stage.epochs * per_epoch)))
        warmup = stage.warmup
        if stage.warmup_epochs is not None and per_epoch is not None:
            warmup = round(stage.warmup_epochs * per_epoch)
        seconds = None if stage.minutes is None else 60 * stage.minutes
        return cls(time.monotonic() - spent, min(limits) if limits else None, seconds, warmup)

    def elapsed(self, now: float) -> float:
        """Seconds spent in the stage at `now`, those before a resumption included."""
        return now - self.began

    def progress(self, step: int, now: float) -> float:
        """0 at the start of the stage, 1 or more at its end."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.seconds is None else self.elapsed(now) / self.seconds
        return max(by_steps, by_time)

    def factor(self, stage: Stage, step: int, progress: float) -> float:
        """The factor on every group's base rate at optimiser step `step` of the stage, from 0."""
        if stage.schedule == "warmup_cosine" and self.steps is not None:
            return warmup_cosine(step, warmup=self.warmup, total=self.steps, final=stage.final)
        return warmed_cosine(step, progress, warmup=self.warmup, final=stage.final)
