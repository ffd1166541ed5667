"""Finetunes whole weights (stage 2): on TerraMesh as published or for a sensor of one's own, scored on other ground."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model import metrics
from model.eo_vae import EOVAE
from model.losses import charbonnier
from model.sensors import TrainedSensor, own_names
from model.training.batch import Batch
from model.training.checkpoint import Keeper, read_snapshot
from model.training.distributed import Team
from model.training.eo_vae.batch_norm import calibrate
from model.training.eo_vae.feeds import Data
from model.training.eo_vae.recipe import EOVAERecipe, Job, recipe_summary
from model.training.eo_vae.task import EOVAETask
from model.training.loop import Loop
from model.training.sources.prefetch import Prefetch
from model.training.tracking import Tracker, panel
from model.weights import load_weights, save_weights
from model.weights_meta import DISTILLATION, SensorMeta, WeightsMeta

log = logging.getLogger(__name__)
CALIBRATION = 16


@dataclass(slots=True)
class _Fixed:
    """The same batches again and again."""

    batches: Sequence[Batch]
    _next: int = field(init=False, default=0)

    def draw(self, batch_size: int, patch: int) -> Batch:
        """The next one, whatever is asked for."""
        self._next += 1
        return self.batches[(self._next - 1) % len(self.batches)]


def initial(recipe: EOVAERecipe, job: Job) -> EOVAE:
    """The network a run starts from. ValueError where its sizes are not the recipe's, naming both."""
    torch.manual_seed(recipe.seed)
    if job.init == "linear":
        raise ValueError(
            "finetuning starts from weights: --init with a name, a path, a URL or hf://owner/name, or random"
        )
    if job.init == "random":
        if recipe.config is None:
            raise ValueError("the recipe states no config, and a random start has none to take it from")
        return EOVAE(recipe.config)
    vae = load_weights(job.init)
    if recipe.config is not None and vae.config != recipe.config:
        raise ValueError(f"{job.init} has {vae.config}, the recipe wants {recipe.config}")
    return vae


def known_sensors(meta: WeightsMeta | None) -> dict[str, TrainedSensor]:
    """The sensors of weights as training takes them; without their native sampling, which weights do not say."""
    return {
        name: TrainedSensor(name, s.unit, own_names(s.bands), s.wavelengths, s.mean, s.std, (1,) * len(s.bands))
        for name, s in (meta.sensors if meta is not None else {}).items()
    }


def trained_sensors(meta: WeightsMeta | None) -> dict[str, TrainedSensor]:
    """Those of them that the weights were trained for: none where stage 1 alone has made them. Its one scaling is
    FLUX.2's own (pictures in -1..1); stage 2 is published with TerraMesh's statistics of S2RGB."""
    return {} if meta is None or DISTILLATION in meta.metrics else known_sensors(meta)


def metadata(vae: EOVAE, recipe: EOVAERecipe, job: Job, data: Data, figures: Mapping[str, object]) -> WeightsMeta:
    """What the weights say of themselves: the sensors of this run alone, for others may have drifted."""
    sensors = {
        name: SensorMeta(s.bands, s.wavelengths, s.mean, s.std, s.unit, False, "as given, or of the training data")
        for name, s in data.sensors.items()
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"held_out": dict(figures), "recipe": recipe_summary(recipe), "started_from": Path(job.init).name}
    return WeightsMeta(job.name, vae.config, sensors, recipe.training_data, recipe.licence, created, about)


@torch.no_grad()
def score(vae: EOVAE, batches: Sequence[Batch]) -> dict[str, dict[str, float]]:
    """Sensor -> mean over its held-out batches: Charbonnier loss, RMSE and spectral angle of z-scores, RMSE in the
    sensor's physical unit. Reconstructions are of the posterior's mode, without the batch norm's round trip."""
    found: dict[str, list[dict[str, float]]] = {}
    for batch in batches:
        y = _decoded(vae, batch.x, batch)
        a, b = (np.moveaxis(v.numpy(), 1, 0) for v in (y, batch.x))
        row = {
            "charbonnier": float(charbonnier(y, batch.x)),
            "rmse": metrics.rmse(a, b),
            "rmse_physical": metrics.rmse(batch.sensor.physical(a), batch.sensor.physical(b)),
        }
        if len(a) > 1:
            row["sam"] = metrics.sam(a, b)
        found.setdefault(batch.sensor.name, []).append(row)
    return {name: {k: float(np.mean([r[k] for r in rows])) for k in rows[0]} for name, rows in found.items()}


def _decoded(vae: EOVAE, x: Tensor, batch: Batch) -> Tensor:
    """Pixels encoded and decoded on the network's device, back on the CPU."""
    waves = batch.wavelengths
    decoded: Tensor = vae.decode(vae.encode(x.to(next(vae.parameters()).device), waves).mode(), waves)
    return decoded.cpu()


def adapt(
    recipe: EOVAERecipe, job: Job, vae: EOVAE, data: Data, *, team: Team | None = None, keeper: Keeper | None = None,
    tracker: Tracker | None = None,
) -> EOVAE:  # fmt: skip
    """Run the recipe on `vae` from where `keeper` has a checkpoint, or from its beginning.

    Returns the averaged network, which rank 0 has also written to `job.out`, with its held-out figures in its metadata
    and in a JSON beside it.
    """
    team = team or Team.here(job.parallel)
    if job.threads:
        torch.set_num_threads(job.threads)
    team.same_start(vae.to(team.device))
    began = data.source.state_dict()
    fixed = _Fixed([data.source.draw(4, recipe.stages[-1].patch) for _ in range(CALIBRATION)])
    data.source.load_state_dict(began)

    written: dict[int, tuple[EOVAE, dict[str, dict[str, float]]]] = {}

    def finished(averaged: EOVAE) -> tuple[EOVAE, dict[str, dict[str, float]]]:
        """The weights of this step as they are published, in `job.out`: measured and written once, whoever asks."""
        if loop.at.total not in written:
            frozen = copy.deepcopy(averaged).requires_grad_(False).eval().to(team.device)
            if recipe.batch_norm == "measured":
                calibrate(frozen, fixed, batches=len(fixed.batches))
            figures = score(frozen, data.held_out)
            _write(frozen, job.out, recipe, job, data, figures)
            written.clear()
            written[loop.at.total] = frozen, figures
        return written[loop.at.total]

    def judge(averaged: EOVAE, total: int) -> float | None:
        frozen, figures = finished(averaged)
        if not figures:
            return None
        log.info("held out at step %d: %s", total, json.dumps({k: _rounded(v) for k, v in figures.items()}))
        if tracker is not None:
            _pictures(frozen, data.held_out, tracker, total)
        return float(np.mean([row["charbonnier"] for row in figures.values()]))

    def export(averaged: EOVAE, folder: Path) -> None:
        finished(averaged)
        for path in (job.out, job.out.with_suffix(".json")):
            shutil.copyfile(path, folder / path.name)

    # made ahead on a thread: a checkpoint holds the state after the batches trained on, whatever lies ready
    with closing(Prefetch(data.source, pin=team.device.type == "cuda")) as source:
        loop = Loop(EOVAETask(vae, recipe, judge, export), recipe, source, team, keeper, tracker)
        if keeper is not None:
            with keeper.restore() as folder:
                if folder is not None:
                    loop.resume(read_snapshot(folder, team.rank, sliced=recipe.division == "slices"))
                    log.info("going on from step %d", loop.at.total)
        averaged = cast(EOVAE, loop.run())
    if team.leads:
        return finished(averaged)[0]
    return averaged


def _write(vae: EOVAE, out: Path, recipe: EOVAERecipe, job: Job, data: Data, figures: Mapping[str, object]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    meta = metadata(vae, recipe, job, data, figures)
    save_weights(vae, out, meta, torch.float16 if recipe.dtype == "float16" else torch.float32)
    out.with_suffix(".json").write_text(json.dumps(dict(meta.metrics), indent=1) + "\n")


@torch.no_grad()
def _pictures(vae: EOVAE, batches: Sequence[Batch], tracker: Tracker, total: int) -> None:
    shown: set[str] = set()
    for batch in batches:
        if batch.sensor.name in shown:
            continue
        shown.add(batch.sensor.name)
        x = batch.x[:1]
        y = _decoded(vae, x, batch)
        tracker.picture(total, f"held_out/{batch.sensor.name}", panel(x[0].numpy(), y[0].numpy(), batch.sensor))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 5) for key, value in values.items()}


def with_job(recipe: EOVAERecipe, *, freeze_body: bool | None = None, precision: str | None = None) -> EOVAERecipe:
    """The recipe with what the job's own options change."""
    if freeze_body is not None:
        recipe = replace(recipe, stages=tuple(replace(s, freeze_body=freeze_body) for s in recipe.stages))
    return recipe if precision is None else replace(recipe, precision=precision)
