"""Runs the training of any network: stages, accumulation, mixed precision, averaging, checkpoints, resuming."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor, nn

from model.training.checkpoint import Keeper, Position, Snapshot, write_snapshot
from model.training.distributed import (
    Team,
    gathered_late,
    load_optimiser_state,
    load_whole_state,
    optimiser_state,
    plain,
    whole,
    whole_state,
)
from model.training.optimiser import build_optimiser, step_unless
from model.training.readings import READ_EVERY, Figures, Reading, Readings
from model.training.recipe import Recipe, Stage
from model.training.schedule import Clock
from model.training.task import B, Progress, S, Source, Task
from model.training.tracking import Tracker

log = logging.getLogger(__name__)
SAY_SECONDS = 30.0
_SMOOTH = 0.97


@dataclass(slots=True)
class Average:
    """Exponential moving average of a network's parameters, bias-corrected by a decay that grows with the steps seen.

    `decay` 0 keeps the live parameters themselves; buffers are the live one's in any case. The network must have the
    live one's parameters and buffers in the same order.
    """

    network: nn.Module
    decay: float
    seen: int = 0

    @torch.no_grad()
    def update(self, live: nn.Module, left_out: Tensor | None = None) -> None:
        """Take in the live network after one optimiser step.

        Where `left_out` (a scalar on the device, 1 for a step that was left out, else 0) is given, nobody asks the
        device what it is: the average stays if it is 1, and `seen` is the caller's to put right later.
        """
        self.seen += 1
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        if left_out is None:
            for mean, value in zip(self.network.parameters(), live.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        else:  # a few kernels for all parameters, where one each would take longer to launch than to run
            means: list[Tensor] = list(self.network.parameters())
            values: list[Tensor] = list(live.parameters())
            ways = list(torch._foreach_sub(values, means))
            torch._foreach_mul_(ways, (1 - decay) * (1 - left_out))
            torch._foreach_add_(means, ways)
        for kept, running in zip(self.network.buffers(), live.buffers(), strict=True):
            kept.copy_(running)


@dataclass(slots=True)
class Loop(Generic[B, S]):
    """One run. The task's network is trained in place and lives on the team's device; `average` follows it.

    `source` yields this worker's batches (or, where the recipe divides by slices, those of all workers).

    `read_every` steps' figures are read off the device together: each on a CPU, `READ_EVERY` on a GPU, where to ask is
    to wait for all that was launched. Then a step whose gradient is not finite is left out by the device itself.
    """

    task: Task[B, S]
    recipe: Recipe[S]
    source: Source[B]
    team: Team = field(default_factory=Team)
    keeper: Keeper | None = None
    tracker: Tracker | None = None
    read_every: int | None = None
    at: Position = field(default_factory=Position)
    average: Average = field(init=False)
    network: nn.Module = field(init=False)
    generator: torch.Generator = field(init=False)
    _blank: nn.Module | None = field(init=False, default=None)
    _resumed: Mapping[str, Any] | None = field(init=False, default=None)
    _judged: float = field(init=False, default=0.0)
    _saved: int = field(init=False, default=-1)
    _readings: Readings = field(init=False)

    def __post_init__(self) -> None:
        for stage in self.recipe.stages:
            self._check(stage)
        every = self.read_every or (1 if self.team.device.type == "cpu" else READ_EVERY)
        self._readings = Readings(every)
        task, module = self.task, self.task.module
        sharded = self.team.strategy == "fsdp"
        self.network = task.network(module)
        if sharded:  # a whole network on the CPU, for `averaged` to be put together in
            self._blank = copy.deepcopy(self.network).cpu()
        module.to(self.team.device)
        if task.memory_format is not None and not sharded:  # which shards contiguous parameters only
            module.to(memory_format=task.memory_format)  # type: ignore[call-overload]
        twin = copy.deepcopy(module).requires_grad_(False).eval()
        self.team.shard(module, task.shard_units(module))
        self.team.shard(twin, task.shard_units(twin))
        self.average = Average(task.network(twin), self.recipe.ema)
        self.generator = torch.Generator().manual_seed(
            self.recipe.seed + (0 if self.recipe.division == "slices" else self.team.rank)
        )

    def _check(self, stage: S) -> None:
        parts = stage.accumulate * (1 if self.recipe.division == "streams" else self.team.world)
        if stage.batch % parts:
            raise ValueError(
                f"stage {stage.name}: batch {stage.batch} cannot be shared by {self.team.world} workers in "
                f"{stage.accumulate} parts: make it a multiple of {parts}"
            )
        if self.team.strategy == "fsdp" and (stage.optimiser == "muon" or self.task.whole_matrices):
            raise ValueError(f"stage {stage.name}: Muon and free kernels need whole matrices: use ddp, not fsdp")

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot: the next step is the one that would have followed it. ValueError where it is of
        another network or recipe."""
        shared, own = snapshot.shared, snapshot.own
        config = dict(self.task.config)
        if shared["config"] != config:
            raise ValueError(f"the checkpoint holds {shared['config']}, this run trains {config}")
        self.at = Position.from_dict(shared["position"])
        if self.at.stage > len(self.recipe.stages):
            raise ValueError(
                f"the checkpoint is in stage {self.at.stage + 1}, the recipe has {len(self.recipe.stages)}"
            )
        load_whole_state(self.network, shared["network"])
        load_whole_state(self.average.network, shared["average"])
        self.average.seen = shared["seen"]
        self.task.load_state_dict(shared.get("task", {}))
        self.source.load_state_dict(own["source"])
        self.generator.set_state(own["generator"])
        torch.set_rng_state(own["torch"])
        self._resumed = None if shared["optimiser"] is None else shared
        self._saved = self.at.total

    def run(self) -> nn.Module:
        """All stages that are left; returns the averaged network, whole and on the CPU where it was sharded."""
        if self.tracker is not None:
            self.tracker.open(self.at.total)
        for number in range(self.at.stage, len(self.recipe.stages)):
            self._stage(number)
        return self.averaged()

    def averaged(self) -> nn.Module:
        """The averaged network, whole and on the CPU; every worker must call it."""
        return plain(self.average.network, self._blank)

    # one stage

    def _stage(self, number: int) -> None:
        stage = self.recipe.stages[number]
        optimiser = build_optimiser(self.task.parameter_groups(stage), stage, apart=self._apart)
        scaler = torch.amp.GradScaler(self.team.device.type, enabled=self.recipe.precision == "fp16")
        if self._resumed is not None:
            rates = [group["base"] for group in optimiser.param_groups]
            load_optimiser_state(self.task.module, optimiser, self._resumed["optimiser"])
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group.setdefault("base", rate)
            scaler.load_state_dict(self._resumed["scaler"])
            self._resumed = None
        else:
            self.at = Position(number, total=self.at.total, best=self.at.best)
            self.average.seen = 0
        clock = Clock.of(stage, self.source, self._share(stage) * stage.accumulate, self.team, self.at.spent)
        module = self.team.wrap(self.task.module, unused=self.task.unused(stage))
        self._judged = said = time.monotonic()
        self.task.module.train()
        with self.task.during(stage):
            while True:
                now = time.monotonic()
                progress, due = self._agree(clock, now)
                if progress >= 1:
                    break
                factor = clock.factor(stage, self.at.step, progress)
                for group in optimiser.param_groups:
                    group["lr"] = group["base"] * factor
                parts, norm = self._step(module, optimiser, scaler, stage, progress)
                self.at.step, self.at.total = self.at.step + 1, self.at.total + 1
                self.at.spent = clock.elapsed(time.monotonic())
                self._readings.add(Reading(self.at.total, stage.name, parts, norm, factor))
                if self._readings.due or self.at.step == 1:
                    self._note(scaler)
                if self.team.leads and (now - said > SAY_SECONDS or self.at.step == 1):
                    said = now
                    shown = ", ".join(f"{k} {v:.4f}" for k, v in self.at.running.items())
                    log.info(
                        "%s %d (%.0f%%, %.0f s): %s", stage.name, self.at.step, 100 * progress, self.at.spent, shown
                    )
                if due or self._saves_now():
                    self._evaluate_and_save(optimiser, scaler, judged=due)
        self._note(scaler)
        self.at = Position(number + 1, total=self.at.total, best=self.at.best, running=self.at.running)
        self._evaluate_and_save(None, scaler, judged=True)

    def _agree(self, clock: Clock, now: float) -> tuple[float, bool]:
        """Progress in 0..1 and whether an evaluation is due; by rank 0's clock where a clock decides."""
        due = now - self._judged > 60 * self.recipe.evaluate_minutes
        progress, agreed = self.team.agree(clock.progress(self.at.step, now), float(due))
        return progress, bool(agreed)

    def _saves_now(self) -> bool:
        every = self.recipe.checkpoint_steps
        return every is not None and self.at.total % every == 0

    def _step(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, stage: S, share: float
    ) -> tuple[tuple[Figures, ...], Tensor]:
        """One optimiser step; the losses of its parts and the norm of its gradient before clipping, where they are."""
        optimiser.zero_grad(set_to_none=True)
        parts: list[Figures] = []
        for part in range(stage.accumulate):
            batch, rows = self._draw(stage)
            progress = Progress(stage, self.at.step, share, rows, self.generator, self.team.device, module)
            with gathered_late(module, part == stage.accumulate - 1):
                loss, values = self.task.loss(batch, progress)
                scaler.scale(loss / stage.accumulate).backward()  # type: ignore[no-untyped-call]
            parts.append({**values, "loss": loss.detach()})
        params = [p for group in optimiser.param_groups for p in group["params"]]
        if self.team.world > 1:
            for p in params:  # one that no worker used counts as zero, as on the workers that did not use it
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        scaler.unscale_(optimiser)
        norm = whole(nn.utils.clip_grad_norm_(params, self.recipe.clip))
        left_out = (~torch.isfinite(norm)).float() if self._apart else None
        finite = left_out is not None or math.isfinite(float(norm))
        if scaler.is_enabled():
            scaler.step(optimiser)
            scaler.update()
        elif left_out is not None:
            step_unless(optimiser, left_out)
        elif finite:
            optimiser.step()
        if finite:
            self.average.update(self.network, left_out)
        return tuple(parts), norm

    @property
    def _apart(self) -> bool:
        """Whether the device decides by itself to leave a step out: else every step waits for its gradient's norm. Not
        in shards, whose optimisers know no such thing."""
        return self._readings.every > 1 and self.team.strategy != "fsdp"

    def _draw(self, stage: S) -> tuple[B, slice]:
        """A batch and which of its rows are this worker's."""
        batch = self.source.draw(self._share(stage), stage.patch)
        if self.recipe.division != "slices":
            return batch, slice(0, len(batch))
        rows = len(batch) // self.team.world
        return batch, slice(self.team.rank * rows, (self.team.rank + 1) * rows)

    def _share(self, stage: Stage) -> int:
        """Examples of one draw from this worker's source."""
        size = stage.batch // stage.accumulate
        return size // self.team.world if self.recipe.division == "shares" else size

    def _note(self, scaler: torch.amp.GradScaler) -> None:
        """Read and tell the figures of all steps since the last time; every worker must call it."""
        read = self._readings.take()
        scale = _scale(scaler) if read and self.tracker is not None else {}
        if self.recipe.division == "slices":  # all workers have the same terms, so the batch's own means can be had
            means = self.team.means({(k, name): v for k, step in enumerate(read) for name, v in step.values.items()})
            for (k, name), value in means.items():
                read[k].values[name] = value
        for step in read:
            if not math.isfinite(step.norm):
                log.warning("step %d: gradient not finite, step left out", step.total - 1)
                self.average.seen -= 1 if self._apart else 0
            running = self.at.running
            for key, value in ({k: v for k, v in step.values.items() if k != "loss"} | {"norm": step.norm}).items():
                running[key] = value if key not in running else _SMOOTH * running[key] + (1 - _SMOOTH) * value
            if self.tracker is not None:
                shown = step.values | {"norm": step.norm, "rate": step.factor}
                self.tracker.scalars(step.total, step.stage, shown | scale)

    # evaluation and checkpoints

    def _evaluate_and_save(
        self, optimiser: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler, *, judged: bool
    ) -> None:
        self._note(scaler)
        if judged:
            averaged = self.averaged()
            score = self.task.score(averaged, self.at.total) if self.team.leads else None
            if score is not None and self.tracker is not None:
                self.tracker.scalars(self.at.total, "held out", {"score": score})
            (shared,) = self.team.agree(math.nan if score is None else score)
            if not math.isnan(shared) and (self.at.best is None or shared < self.at.best):
                self.at.best = shared
                if self.team.leads and self.keeper is not None:
                    self.keeper.save_best(lambda folder: self.task.export(averaged, folder))
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
        network = whole_state(self.network)
        shared = {
            "config": dict(self.task.config),
            "position": self.at.to_dict(),
            "network": network,
            # An average that forgets at once is the network: the same tensors, which a checkpoint holds once.
            "average": network if self.average.decay == 0 else whole_state(self.average.network),
            "seen": self.average.seen,
            "task": self.task.state_dict(),
            "optimiser": None if optimiser is None else optimiser_state(self.task.module, optimiser),
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
