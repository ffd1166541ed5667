"""Stage 1: a FLUX.2 autoencoder's first and last convolution distilled into the generators, and the whole saved as one.

Source: EO-VAE specification, sections 5 and 9. The sound version differs from the published script, which compared the
decoder's bias before its second scaling (ten times too small at inference), loaded no FLUX body, and wrote keys that
stage 2 did not read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.eo_vae import EOVAE, EOVAEConfig
from model.training.checkpoint import Keeper, Position, Snapshot, read_snapshot, write_snapshot
from model.training.distributed import Team, load_whole_state, whole_state
from model.training.schedule import cosine
from model.training.tracking import Tracker
from model.weights import flux_ends, load_weights, save_weights
from model.weights_meta import SensorMeta, WeightsMeta

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
        with torch.no_grad():
            pairs = zip(NAMES, generated(vae), self.tensors, strict=True)
            return {name: float((got - want).norm() / want.norm().clamp_min(1e-12)) for name, got, want in pairs}


def generated(vae: EOVAE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four tensors that the generators give for red, green, blue, as inference uses them: the decoder's bias is
    scaled twice (by 0.01 in all)."""
    return (*vae.encoder.conv_in.kernel(WAVELENGTHS), *vae.decoder.conv_out.kernel(WAVELENGTHS))


def read_teacher(path: Path, config: EOVAEConfig | None = None, seed: int = 0) -> tuple[EOVAE, Teacher]:
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


def loss_of(vae: EOVAE, teacher: Teacher, kind: str) -> Tensor:
    """The sum over the four tensors of their squared errors, published or relative: scalar."""
    total = torch.zeros((), device=teacher.tensors[0].device)
    for got, want in zip(generated(vae), teacher.tensors, strict=True):
        error = F.mse_loss(got, want)
        total = total + (error if kind == "published" else error / want.square().mean().clamp_min(1e-12))
    return total


class _Generators(nn.Module):
    """The loss as a module, for DDP to wrap; it holds the generators alone, so that nothing else is trained."""

    def __init__(self, vae: EOVAE, teacher: Teacher, kind: str) -> None:
        super().__init__()
        self.first, self.last = vae.encoder.conv_in, vae.decoder.conv_out
        self._vae, self._teacher, self._kind = [vae], teacher, kind

    def forward(self) -> Tensor:
        return loss_of(self._vae[0], self._teacher, self._kind)


def distil_teacher(
    vae: EOVAE, teacher: Teacher, how: Distillation, *, team: Team | None = None, keeper: Keeper | None = None,
    tracker: Tracker | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train the generators of `vae` alone, in float32, until they give the teacher's four tensors.

    There are no data, so several workers compute the same; they stay equal through DDP. Goes on from where `keeper` has
    a checkpoint. Returns the four relative errors.
    """
    team = team or Team()
    vae.to(team.device).requires_grad_(False)
    teacher = Teacher(tuple(t.to(team.device) for t in teacher.tensors))  # type: ignore[arg-type]
    module = _Generators(vae, teacher, how.loss).requires_grad_(True)
    team.same_start(module)
    optimiser = torch.optim.AdamW(module.parameters(), lr=how.lr, weight_decay=how.weight_decay, fused=True)
    at = Position()
    if keeper is not None:
        with keeper.restore() as folder:
            if folder is not None:
                at = _resume(folder, vae, module, optimiser)
    if tracker is not None:
        tracker.open(at.total)
    wrapped = team.wrap(module)
    while at.total < how.steps:
        rate = how.final_lr + (how.lr - how.final_lr) * cosine(at.total / how.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (at.total + 1) / max(1, how.warmup))
        loss = wrapped()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        at.total += 1
        at.step = at.total
        if tracker is not None:
            tracker.scalars(at.total, "distil", {"loss": float(loss.detach()), "rate": rate})
        if at.total % how.checkpoint_steps == 0 or at.total == how.steps:
            errors = teacher.errors(vae)
            log.info("distil %d: %s", at.total, ", ".join(f"{k} {v:.5f}" for k, v in errors.items()))
            if tracker is not None:
                tracker.scalars(at.total, "distil", errors)
                tracker.sync()
            if keeper is not None:
                write = partial(write_snapshot, snapshot=_snapshot(at, vae, module, optimiser), rank=team.rank)
                keeper.save(write, at.total, {"loss": float(loss.detach()), "step": float(at.total)})
    return teacher.errors(vae)


def _snapshot(at: Position, vae: EOVAE, module: nn.Module, optimiser: torch.optim.Optimizer) -> Snapshot:
    shared = {"config": vae.config.to_dict(), "position": at.to_dict(), "network": whole_state(module),
              "optimiser": optimiser.state_dict()}  # fmt: skip
    return Snapshot(shared, {})


def _resume(folder: Path, vae: EOVAE, module: nn.Module, optimiser: torch.optim.Optimizer) -> Position:
    shared = read_snapshot(folder, 0, sliced=True).shared
    if shared["config"] != vae.config.to_dict():
        raise ValueError(f"the checkpoint holds {shared['config']}, this run distils {vae.config.to_dict()}")
    load_whole_state(module, shared["network"])
    optimiser.load_state_dict(shared["optimiser"])
    return Position.from_dict(shared["position"])


def metadata(vae: EOVAE, errors: Mapping[str, float], name: str, licence: str) -> WeightsMeta:
    """What distilled weights say of themselves: 8-bit RGB at FLUX.2's own scaling, which is all they can do yet."""
    scale = (_FLUX_CENTRE,) * 3
    rgb = SensorMeta(("B04", "B03", "B02"), WAVELENGTHS, scale, scale, "dn8", False, "FLUX.2: pictures in -1..1")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return WeightsMeta(
        name, vae.config, {"S2RGB": rgb}, "none: distilled from a FLUX.2 autoencoder", licence, created,
        {"distillation": dict(errors)},
    )  # fmt: skip


def save_distilled(vae: EOVAE, out: Path, errors: Mapping[str, float], name: str, licence: str) -> None:
    """The whole EO-VAE, FLUX.2's body and batch-norm statistics included, as the one file that stage 2 starts from."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(vae, out, metadata(vae, errors, name, licence))
