"""Runs the training of a super-resolver: closed-form start, stages on the house's loop, weights with their figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import matplotlib.image
import torch
from torch import Tensor

from model.diffusion import even_times
from model.eo_vae import EOVAE
from model.super_resolution import SRMeta, SuperResolver, save_sr
from model.training.checkpoint import Keeper, read_snapshot
from model.training.distributed import Team
from model.training.ldm.pairs import PairBatch, PairSource, Rows
from model.training.ldm.recipe import SRRecipe
from model.training.ldm.start import solve
from model.training.ldm.task import Losses, SRTask
from model.training.ldm.validation import HeldOut, Judge, table_text
from model.training.loop import Loop
from model.training.sources.prefetch import Prefetch
from model.training.task import Source
from model.training.tracking import Tracker

log = logging.getLogger(__name__)
WEIGHTS = "weights.safetensors"
TIMES = 6
"""Times at which the denoiser is scored on held-out pairs."""


@dataclass(frozen=True, slots=True)
class SRData:
    """What is trained on and what is scored. `meta` is what the weights are to say of their data; `judge` is None where
    nothing is held out. `vae` and its `wavelengths` made the latents, None in pixel space."""

    rows: Rows
    judge: Judge | None
    meta: SRMeta
    vae: EOVAE | None = None
    wavelengths: Sequence[float] = ()
    source: Source[PairBatch] | None = None
    """Where batches come from; None draws from `rows`."""

    def close(self) -> None:
        """Let go of what is open."""
        windows = getattr(self.rows, "windows", None)
        if windows is not None:
            windows.close()


def train_sr(
    recipe: SRRecipe, data: SRData, out: Path, *, team: Team | None = None, keeper: Keeper | None = None,
    tracker: Tracker | None = None,
) -> SuperResolver:  # fmt: skip
    """Train from where `keeper` has a checkpoint, or from the closed-form start.

    Rank 0 writes `out` (fp16 safetensors), a JSON of the held-out figures beside it, and a picture of each held-out
    place into the folder `out` stem + "-pictures". Returns the averaged network as it was written, but in fp32.
    """
    team = team or Team.here()
    torch.manual_seed(recipe.seed)
    net = SuperResolver(recipe.network)
    snapshot = None
    if keeper is not None:
        with keeper.restore() as folder:
            if folder is not None:
                snapshot = read_snapshot(folder, team.rank, sliced=recipe.division == "slices")
    if snapshot is None:
        solve(net, data.rows, recipe, data.vae, data.wavelengths)
    team.same_start(net)

    def score(averaged: SuperResolver, total: int) -> float | None:
        if data.judge is None:
            return None
        averaged.eval()
        if tracker is not None:
            tracker.picture(total, "held_out", data.judge.picture(averaged, data.judge.held[0]))
        found = data.judge.score(averaged)
        log.info("step %d: the mean has %.2f dB, averaged over held-out places", total, -found)
        if all(stage.diffusion == 0 for stage in recipe.stages):
            return found
        losses = held_losses(averaged, recipe, data.judge.held)
        said = ", ".join(f"{place} {loss:.4f}" for place, loss in losses.items())
        log.info("step %d: the denoiser's loss on held-out places: %s", total, said)
        return sum(losses.values()) / len(losses)

    def export(averaged: SuperResolver, folder: Path) -> None:
        save_sr(averaged, folder / WEIGHTS, described(data.meta, recipe, {}))

    share = (0, 1) if recipe.division == "slices" else (team.rank, team.world)
    drawn = data.source or PairSource(data.rows, recipe.seed, recipe.balance, share)
    source = Prefetch(drawn, pin=team.device.type == "cuda")
    task = SRTask(net, recipe, score, export)
    loop = Loop(task, recipe, source, team, keeper, tracker)
    if snapshot is not None:
        loop.resume(snapshot)
        log.info("going on from step %d", loop.at.total)
    try:
        averaged = cast(SuperResolver, loop.run()).cpu().eval()
    finally:
        source.close()
    if team.leads:
        publish(averaged, data, recipe, out)
    return averaged


@torch.no_grad()
def held_losses(net: SuperResolver, recipe: SRRecipe, held: Sequence[HeldOut]) -> dict[str, float]:
    """The denoiser's loss on held-out pairs by place, at `TIMES` even times and with noise that are always the same."""
    losses, schedule = Losses(net, recipe), net.schedule
    times = even_times(schedule, TIMES)[:-1]
    sums: dict[str, list[Tensor]] = {}
    for number, h in enumerate(held):
        generator = torch.Generator().manual_seed(number)
        for t in times:
            noise = torch.randn(h.target.shape, generator=generator)
            found = losses(h.condition, h.target, t.expand(len(h.target)).float(), noise)[1]
            sums.setdefault(h.place, []).append(found)
    return {place: float(torch.cat(of).mean()) for place, of in sums.items()}


@torch.no_grad()
def settle(net: SuperResolver, held: Sequence[HeldOut]) -> float:
    """Scale the trunk's part of the mean to what held-out pairs bear out, and return the factor, 0 to 1.

    It is the least-squares one, the mean over places, errors weighed by their cost in pixels: a trunk that learned its
    training places by heart is scaled to nothing, and the mean is the closed form's.
    """
    assert net.trunk is not None
    explained: dict[str, list[float]] = {}
    for h in held:
        given = net.normalised(h.condition)
        mean, _ = net.regression(given)
        linear, spread = net.linear(given), net.spread(given)
        assert mean is not None
        left = net.white.into(h.target.float() if linear is None else h.target.float() - linear)
        part = mean if spread is None else mean * spread
        cost = net.white.cost[:, None, None]
        sums = explained.setdefault(h.place, [0.0, 0.0, 0.0])
        for k, product in enumerate((part * left, part * part, left * left)):
            sums[k] += float((product * cost).sum())
    gain = sum(a / max(c, 1e-30) for a, _, c in explained.values())
    size = sum(b / max(c, 1e-30) for _, b, c in explained.values())
    factor = min(1.0, max(0.0, gain / size)) if size > 0 else 0.0
    for p in net.trunk.mean.parameters():
        p.mul_(factor)
    return factor


def described(meta: SRMeta, recipe: SRRecipe, metrics: dict[str, Any]) -> SRMeta:
    """What weights of this recipe say of themselves."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(
        meta, created=created, metrics=metrics, licence=recipe.licence or meta.licence,
        training_data=recipe.training_data or meta.training_data,
    )  # fmt: skip


def publish(net: SuperResolver, data: SRData, recipe: SRRecipe, out: Path) -> None:
    """Write weights, figures and pictures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    if data.judge is not None:
        if net.trunk is not None:
            metrics["mean_factor"] = round(settle(net, data.judge.held), 4)
            log.info("of the trunk's mean held-out places bear out %.2f", metrics["mean_factor"])
        table = data.judge.figures(net)
        log.info("held-out places, PSNR / SAM / consistency / sharpness:\n%s", table_text(table))
        metrics["held_out"] = {
            place: {name: {k: round(v, 4) for k, v in f.items()} for name, f in methods.items() if name != "spread"}
            for place, methods in table.items()
        }
        metrics["steps"], metrics["samples"] = data.judge.steps, data.judge.samples
        pictures = out.with_name(f"{out.stem}-pictures")
        pictures.mkdir(exist_ok=True)
        for place in data.judge.places:
            first = next(h for h in data.judge.held if h.place == place)
            matplotlib.image.imsave(pictures / f"{place}.png", data.judge.picture(net, first))
    save_sr(net, out, described(data.meta, recipe, metrics))
    out.with_suffix(".json").write_text(json.dumps(metrics, indent=1) + "\n")
