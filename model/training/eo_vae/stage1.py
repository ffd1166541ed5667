"""Distils a FLUX.2 autoencoder's first and last convolution into the generators and saves the whole: stage 1.

Source: EO-VAE specification, sections 5 and 9. The sound version differs from the published script, which compared the
decoder's bias before its second scaling (ten times too small at inference), loaded no FLUX body, and wrote keys that
stage 2 did not read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.eo_vae import EOVAE, EOVAEConfig
from model.hypernet import DynamicConvIn, DynamicConvOut
from model.training.checkpoint import Keeper, Snapshot, read_snapshot
from model.training.distributed import Team
from model.training.loop import Loop
from model.training.readings import Figures
from model.training.recipe import Recipe, Stage
from model.training.task import Progress, Task
from model.training.tracking import Tracker
from model.weights import flux_ends, load_weights, save_weights
from model.weights_meta import DISTILLATION, SensorMeta, WeightsMeta

log = logging.getLogger(__name__)
WAVELENGTHS = (0.665, 0.560, 0.490)
"""Red, green, blue as published, micrometres."""
NAMES = ("encoder weight", "encoder bias", "decoder weight", "decoder bias")
LOSSES = ("relative", "published")
# FLUX.2 takes pictures in -1..1: what the distilled weights do to 8-bit counts before stage 2 has changed them.
_FLUX_CENTRE = 127.5


@dataclass(frozen=True, slots=True)
class Distillation:
    """How stage 1 trains. `loss` "published" is the sum of the four tensors' mean squared errors (with the published
    lr 1e-4 over 5000 steps); "relative" divides each by the tensor's own mean square, so that all four converge alike,
    and needs fewer steps. AdamW with the published decay; a cosine to `final_lr` after `warmup` steps."""

    steps: int = 300
    lr: float = 6e-4
    final_lr: float = 1e-6
    warmup: int = 30
    weight_decay: float = 1e-5
    loss: str = "relative"
    seed: int = 0
    checkpoint_steps: int = 100

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"no loss {self.loss!r} for distillation: there are {', '.join(LOSSES)}")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps of distillation: 1 or more")

    @property
    def recipe(self) -> Recipe[Stage]:
        """The same for the loop: float32, no average, no clipping."""
        stage = Stage(
            "distil", batch=1, steps=self.steps, optimiser="adamw", lr=self.lr, weight_decay=self.weight_decay,
            warmup=self.warmup, final=self.final_lr / self.lr,
        )  # fmt: skip
        return Recipe(
            (stage,), seed=self.seed, ema=0.0, clip=math.inf, precision="fp32", checkpoint_steps=self.checkpoint_steps
        )

    @classmethod
    def published(cls) -> Distillation:
        """Stage 1 to the number: at most 5000 steps at 1e-4."""
        return cls(steps=5000, lr=1e-4, warmup=0, loss="published", checkpoint_steps=500)


@dataclass(frozen=True, slots=True)
class Teacher:
    """FLUX.2's static convolutions: encoder (ch, 3, 3, 3) and (ch,), decoder (3, ch, 3, 3) and (3,)."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]

    def errors(self, vae: EOVAE) -> dict[str, float]:
        """Name -> norm of the difference over the norm of the teacher's tensor, at the scale that inference uses."""
        return self.apart(generated(vae))

    def apart(self, tensors: Sequence[Tensor]) -> dict[str, float]:
        """The same of four tensors."""
        return {name: float(distance) for name, distance in self.distances(tensors).items()}

    @torch.no_grad()
    def distances(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The same, scalars on the tensors' device."""
        pairs = zip(NAMES, tensors, self.tensors, strict=True)
        return {name: (got - want).norm() / want.norm().clamp_min(1e-12) for name, got, want in pairs}


def generated(vae: EOVAE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four tensors that the generators give for red, green, blue, as inference uses them: the decoder's bias is
    scaled twice (by 0.01 in all)."""
    return (*vae.encoder.conv_in.kernel(WAVELENGTHS), *vae.decoder.conv_out.kernel(WAVELENGTHS))


def read_teacher(path: str | Path, config: EOVAEConfig | None = None, seed: int = 0) -> tuple[EOVAE, Teacher]:
    """FLUX.2's `ae.safetensors`, in the original or the diffusers layout: the body with its batch-norm statistics in a
    network whose generators are as initialised (by `seed`), and the four tensors to teach them.

    WeightsError (one line) for another file, or one of other sizes than `config`.
    """
    ends = flux_ends(path)
    torch.manual_seed(seed)
    vae = load_weights(path, config=config)
    first, first_bias, last, last_bias = ends
    ch = vae.config.ch
    for tensor, shape in zip(ends, ((ch, 3, 3, 3), (ch,), (3, ch, 3, 3), (3,)), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{path}: a first or last convolution of shape {tuple(tensor.shape)}, expected {shape}")
    return vae, Teacher((first, first_bias, last, last_bias))


def loss_of(tensors: Sequence[Tensor], teacher: Teacher, kind: str) -> Tensor:
    """The sum over the four tensors of their squared errors, published or relative: scalar."""
    total = torch.zeros((), device=teacher.tensors[0].device)
    for got, want in zip(tensors, teacher.tensors, strict=True):
        error = F.mse_loss(got, want)
        total = total + (error if kind == "published" else error / want.square().mean().clamp_min(1e-12))
    return total


class Generators(nn.Module):
    """The two generators alone, so that nothing else is trained; gives the four tensors."""

    def __init__(self, first: DynamicConvIn, last: DynamicConvOut) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (*self.first.kernel(WAVELENGTHS), *self.last.kernel(WAVELENGTHS))


@dataclass(frozen=True, slots=True)
class Nothing:
    """A batch of no data: a teacher's tensors are all there is."""

    count: int

    def __len__(self) -> int:
        return self.count

    def pinned(self) -> Nothing:
        return self


class NoData:
    """A source of it."""

    def draw(self, batch_size: int, patch: int) -> Nothing:
        return Nothing(batch_size)

    def steps_per_epoch(self, batch_size: int) -> int | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class DistillationTask(Task[Nothing, Stage]):
    """The generators of `vae` towards the teacher's four tensors."""

    def __init__(self, vae: EOVAE, teacher: Teacher, kind: str) -> None:
        vae.requires_grad_(False)
        self.module = Generators(vae.encoder.conv_in, vae.decoder.conv_out).requires_grad_(True)
        self._config, self._teacher, self._kind = vae.config, teacher, kind

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config.to_dict()

    def loss(self, batch: Nothing, progress: Progress[Stage]) -> tuple[Tensor, Figures]:
        tensors = progress.forward()
        errors = {name.replace(" ", "_"): error for name, error in self._teacher.distances(tensors).items()}
        return loss_of(tensors, self._teacher, self._kind), errors

    def score(self, network: nn.Module, total: int) -> float | None:
        """Said, not compared: the last is the best."""
        teacher = Teacher(tuple(t.cpu() for t in self._teacher.tensors))  # type: ignore[arg-type]
        errors = teacher.apart(cast(Generators, network)())
        log.info("distil %d: %s", total, ", ".join(f"{k} {v:.5f}" for k, v in errors.items()))
        return None


def distil_teacher(
    vae: EOVAE, teacher: Teacher, how: Distillation, *, team: Team | None = None, keeper: Keeper | None = None,
    tracker: Tracker | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train the generators of `vae` alone, in float32, until they give the teacher's four tensors.

    There are no data, so several workers compute the same; they stay equal through DDP. Goes on from where `keeper` has
    a checkpoint. Returns the four relative errors.
    """
    team = team or Team()
    vae.to(team.device)
    teacher = Teacher(tuple(t.to(team.device) for t in teacher.tensors))  # type: ignore[arg-type]
    task = DistillationTask(vae, teacher, how.loss)
    team.same_start(task.module)
    loop = Loop(task, how.recipe, NoData(), team, keeper, tracker)
    if keeper is not None:
        with keeper.restore() as folder:
            if folder is not None:
                loop.resume(_completed(read_snapshot(folder, 0, sliced=True), loop))
    loop.run()
    return teacher.errors(vae)


def _completed(snapshot: Snapshot, loop: Loop[Nothing, Stage]) -> Snapshot:
    """A checkpoint with all that the loop keeps: those of before stage 1 ran on it hold no average and no generator."""
    now = loop.snapshot(None, torch.amp.GradScaler(loop.team.device.type, enabled=False))
    shared = dict(now.shared) | {"average": snapshot.shared["network"]} | dict(snapshot.shared)
    return Snapshot(shared, dict(now.own) | dict(snapshot.own))


def metadata(vae: EOVAE, errors: Mapping[str, float], name: str, licence: str) -> WeightsMeta:
    """What distilled weights say of themselves: 8-bit RGB at FLUX.2's own scaling, which is all they can do yet."""
    scale = (_FLUX_CENTRE,) * 3
    rgb = SensorMeta(("B04", "B03", "B02"), WAVELENGTHS, scale, scale, "dn8", False, "FLUX.2: pictures in -1..1")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return WeightsMeta(
        name, vae.config, {"S2RGB": rgb}, "none: distilled from a FLUX.2 autoencoder", licence, created,
        {DISTILLATION: dict(errors)},
    )  # fmt: skip


def save_distilled(vae: EOVAE, out: Path, errors: Mapping[str, float], name: str, licence: str) -> None:
    """The whole EO-VAE, FLUX.2's body and batch-norm statistics included, as the one file that stage 2 starts from."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(vae, out, metadata(vae, errors, name, licence))
