"""The training loop that every recipe runs: stages, accumulation, mixed precision, averaging, checkpoints, resuming."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from model.eo_vae import EOVAE
from model.training.batch import Batch
from model.training.checkpoint import Keeper, Position, Snapshot, write_snapshot
from model.training.distributed import (
    Team,
    gathered_late,
    load_optimiser_state,
    load_whole_state,
    norm_of,
    optimiser_state,
    plain,
    whole_state,
)
from model.training.ema import Average
from model.training.eo_vae.objective import Reconstruction, draw_disturbance, loss_of
from model.training.eo_vae.skeleton import skeleton_only
from model.training.optimiser import build_optimiser
from model.training.recipe import Recipe, Stage
from model.training.schedule import epoch_steps, warmed_cosine, warmup_cosine
from model.training.sources.patch import BatchSource
from model.training.tracking import Tracker

log = logging.getLogger(__name__)
SAY_SECONDS = 30.0
_SMOOTH = 0.97

Judge = Callable[[EOVAE, int], float | None]
"""Scores (and publishes) the averaged weights on rank 0 at an optimiser step: the lower the better, None: no score."""
Export = Callable[[EOVAE, Path], None]
"""Writes the averaged weights, as a user would load them, into a folder: what is kept as the best."""


def _no_judge(vae: EOVAE, total: int) -> float | None:
    """For runs that nobody scores."""
    return None


@dataclass(frozen=True, slots=True)
class Clock:
    """When a stage ends and how its rates go: by optimiser steps, by seconds, or by whichever is further."""

    began: float
    steps: int | None
    seconds: float | None
    warmup: int

    @classmethod
    def of(cls, stage: Stage, source: BatchSource, share: int, team: Team, spent: float = 0.0) -> Clock:
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


@dataclass(slots=True)
class Loop:
    """One run. `vae` is trained in place and lives on the team's device; `average` follows it.

    `source` yields this worker's batches (or, where the recipe divides by slices, those of all workers).
    """

    vae: EOVAE
    recipe: Recipe
    source: BatchSource
    team: Team = field(default_factory=Team)
    keeper: Keeper | None = None
    judge: Judge = _no_judge
    export: Export | None = None
    tracker: Tracker | None = None
    at: Position = field(default_factory=Position)
    average: Average = field(init=False)
    module: Reconstruction = field(init=False)
    generator: torch.Generator = field(init=False)
    _resumed: Mapping[str, Any] | None = field(init=False, default=None)
    _judged: float = field(init=False, default=0.0)
    _saved: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        for stage in self.recipe.stages:
            self._check(stage)
        self.vae.to(self.team.device)
        if self.team.strategy != "fsdp":  # which shards contiguous parameters only
            self.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = Reconstruction(self.vae, self.recipe.precision)
        twin = Reconstruction(copy.deepcopy(self.vae).requires_grad_(False).eval(), self.recipe.precision)
        self.team.shard(self.module, self.vae)
        self.team.shard(twin, twin.vae)
        self.average = Average(twin.vae, self.recipe.ema)
        self.generator = torch.Generator().manual_seed(
            self.recipe.seed + (0 if self.recipe.division == "slices" else self.team.rank)
        )

    def _check(self, stage: Stage) -> None:
        parts = stage.accumulate * (1 if self.recipe.division == "streams" else self.team.world)
        if stage.batch % parts:
            raise ValueError(
                f"stage {stage.name}: batch {stage.batch} cannot be shared by {self.team.world} workers in "
                f"{stage.accumulate} parts: make it a multiple of {parts}"
            )
        if self.team.strategy == "fsdp" and (stage.optimiser == "muon" or self.recipe.free_kernels):
            raise ValueError(f"stage {stage.name}: Muon and free kernels need whole matrices: use ddp, not fsdp")

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot: the next step is the one that would have followed it. ValueError where it is of
        another network or recipe."""
        shared, own = snapshot.shared, snapshot.own
        if shared["config"] != self.vae.config.to_dict():
            raise ValueError(f"the checkpoint holds {shared['config']}, this run trains {self.vae.config.to_dict()}")
        self.at = Position.from_dict(shared["position"])
        if self.at.stage > len(self.recipe.stages):
            raise ValueError(
                f"the checkpoint is in stage {self.at.stage + 1}, the recipe has {len(self.recipe.stages)}"
            )
        load_whole_state(self.vae, shared["network"])
        load_whole_state(self.average.vae, shared["average"])
        self.average.seen = shared["seen"]
        self.source.load_state_dict(own["source"])
        self.generator.set_state(own["generator"])
        torch.set_rng_state(own["torch"])
        self._resumed = None if shared["optimiser"] is None else shared
        self._saved = self.at.total

    def run(self) -> EOVAE:
        """All stages that are left; returns the averaged network, whole and on the CPU where it was sharded."""
        if self.tracker is not None:
            self.tracker.open(self.at.total)
        for number in range(self.at.stage, len(self.recipe.stages)):
            self._stage(number)
        return plain(self.averaged)

    @property
    def averaged(self) -> EOVAE:
        """The averaged network, as it is held: perhaps in shards."""
        return cast(EOVAE, self.average.vae)

    # one stage

    def _stage(self, number: int) -> None:
        stage = self.recipe.stages[number]
        optimiser = build_optimiser(self.vae, stage)
        scaler = torch.amp.GradScaler(self.team.device.type, enabled=self.recipe.precision == "fp16")
        if self._resumed is not None:
            load_optimiser_state(self.module, optimiser, self._resumed["optimiser"])
            scaler.load_state_dict(self._resumed["scaler"])
            self._resumed = None
        else:
            self.at = Position(number, total=self.at.total, best=self.at.best)
            self.average.seen = 0
        clock = Clock.of(stage, self.source, self._share(stage) * stage.accumulate, self.team, self.at.spent)
        module = self.team.wrap(self.module, unused=stage.skeleton or self.recipe.free_kernels)
        self._judged = said = time.monotonic()
        self.vae.train()
        with skeleton_only(self.vae) if stage.skeleton else nullcontext():
            while True:
                now = time.monotonic()
                progress, due = self._agree(clock, stage, now)
                if progress >= 1:
                    break
                factor = clock.factor(stage, self.at.step, progress)
                for group in optimiser.param_groups:
                    group["lr"] = group["base"] * factor
                values, norm = self._step(module, optimiser, scaler, stage, progress)
                self.at.step, self.at.total = self.at.step + 1, self.at.total + 1
                self.at.spent = clock.elapsed(time.monotonic())
                self._note(stage, values, norm, factor, scaler)
                if self.team.leads and (now - said > SAY_SECONDS or self.at.step == 1):
                    said = now
                    shown = ", ".join(f"{k} {v:.4f}" for k, v in self.at.running.items())
                    log.info(
                        "%s %d (%.0f%%, %.0f s): %s", stage.name, self.at.step, 100 * progress, self.at.spent, shown
                    )
                if due or self._saves_now():
                    self._evaluate_and_save(optimiser, scaler, judged=due)
        self.at = Position(number + 1, total=self.at.total, best=self.at.best, running=self.at.running)
        self._evaluate_and_save(None, scaler, judged=True)

    def _agree(self, clock: Clock, stage: Stage, now: float) -> tuple[float, bool]:
        """Progress in 0..1 and whether an evaluation is due; by rank 0's clock where a clock decides."""
        due = now - self._judged > 60 * self.recipe.evaluate_minutes
        progress, agreed = self.team.agree(clock.progress(self.at.step, now), float(due))
        return progress, bool(agreed)

    def _saves_now(self) -> bool:
        every = self.recipe.checkpoint_steps
        return every is not None and self.at.total % every == 0

    def _step(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, stage: Stage,
        progress: float,
    ) -> tuple[dict[str, float], float]:  # fmt: skip
        """One optimiser step; the mean of its losses and the norm of its gradient before clipping."""
        optimiser.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for part in range(stage.accumulate):
            batch, rows = self._draw(stage)
            device = self.team.device
            x, waves = batch.x[rows].to(device), batch.wavelengths.to(device)
            config = self.vae.config
            side = stage.patch // config.scale_factor
            shape = (len(batch.x), config.z_channels, side, side)
            how = draw_disturbance(stage, shape, rows, self.generator, device)
            with gathered_late(module, part == stage.accumulate - 1):
                prediction = module(x, waves, how)
                target = x if how.turn is None else how.turn(x, config.scale_factor)
                loss, values = loss_of(prediction, target, stage, progress, self.at.step)
                scaler.scale(loss / stage.accumulate).backward()  # type: ignore[no-untyped-call]
            for key, value in (values | {"loss": float(loss.detach())}).items():
                totals[key] = totals.get(key, 0.0) + value / stage.accumulate
        params = [p for group in optimiser.param_groups for p in group["params"]]
        if self.team.world > 1:
            for p in params:  # one that no worker used counts as zero, as on the workers that did not use it
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        scaler.unscale_(optimiser)
        norm = norm_of(nn.utils.clip_grad_norm_(params, self.recipe.clip))
        if scaler.is_enabled():
            scaler.step(optimiser)
            scaler.update()
        elif math.isfinite(norm):
            optimiser.step()
        if math.isfinite(norm):
            self.average.update(self.vae)
        else:
            log.warning("step %d: gradient not finite, step left out", self.at.total)
        return totals, norm

    def _draw(self, stage: Stage) -> tuple[Batch, slice]:
        """A batch and which of its rows are this worker's."""
        batch = self.source.draw(self._share(stage), stage.patch)
        if self.recipe.division != "slices":
            return batch, slice(0, len(batch.x))
        rows = len(batch.x) // self.team.world
        return batch, slice(self.team.rank * rows, (self.team.rank + 1) * rows)

    def _share(self, stage: Stage) -> int:
        """Patches of one draw from this worker's source."""
        size = stage.batch // stage.accumulate
        return size // self.team.world if self.recipe.division == "shares" else size

    def _note(
        self, stage: Stage, values: dict[str, float], norm: float, factor: float, scaler: torch.amp.GradScaler
    ) -> None:
        if self.recipe.division == "slices":  # all workers have the same terms, so the batch's own means can be had
            values = self.team.means(values)
        for key, value in ({k: v for k, v in values.items() if k != "loss"} | {"norm": norm}).items():
            running = self.at.running
            running[key] = value if key not in running else _SMOOTH * running[key] + (1 - _SMOOTH) * value
        if self.tracker is not None:
            shown = values | {"norm": norm, "rate": factor}
            self.tracker.scalars(self.at.total, stage.name, shown | _scale(scaler))

    # evaluation and checkpoints

    def _evaluate_and_save(
        self, optimiser: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler, *, judged: bool
    ) -> None:
        if judged:
            averaged = plain(self.averaged)
            score = self.judge(averaged, self.at.total) if self.team.leads else None
            if score is not None and self.tracker is not None:
                self.tracker.scalars(self.at.total, "held out", {"score": score})
            (shared,) = self.team.agree(math.nan if score is None else score)
            if not math.isnan(shared) and (self.at.best is None or shared < self.at.best):
                self.at.best = shared
                if self.team.leads and self.keeper is not None and self.export is not None:
                    export = self.export
                    self.keeper.save_best(lambda folder: export(averaged, folder))
            self._judged = time.monotonic()
        ended = optimiser is None
        if self.keeper is None or (self._saved == self.at.total and not ended):
            return
        snapshot = self.snapshot(optimiser, scaler)
        if self.tracker is not None:
            self.tracker.sync()
        metrics = dict(self.at.running) | {"step": float(self.at.total)}
        self.keeper.save(lambda folder: write_snapshot(folder, snapshot, self.team.rank), self.at.total, metrics)
        self._saved = self.at.total

    def snapshot(self, optimiser: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler) -> Snapshot:
        """All that the next step depends on; every worker must call it. Without an optimiser: at a stage's end."""
        shared = {
            "config": self.vae.config.to_dict(),
            "position": self.at.to_dict(),
            "network": whole_state(self.vae),
            "average": whole_state(self.average.vae),
            "seen": self.average.seen,
            "optimiser": None if optimiser is None else optimiser_state(self.module, optimiser),
            "scaler": scaler.state_dict(),
        }
        own = {
            "source": self.source.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
        }
        return Snapshot(shared, own)


def _scale(scaler: torch.amp.GradScaler) -> dict[str, float]:
    return {"loss_scale": float(scaler.get_scale())} if scaler.is_enabled() else {}
