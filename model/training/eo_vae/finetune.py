"""Runs the nano recipe: closed-form start, stages with free kernels, generators taught, figures against the KLT."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from model.eo_vae import EOVAE
from model.sensors import S1RTC, S2L2A, SENSORS, TrainedSensor
from model.training.checkpoint import Keeper, read_snapshot
from model.training.distributed import Team
from model.training.eo_vae.batch_norm import calibrate
from model.training.eo_vae.distill import distil
from model.training.eo_vae.evaluate import MODEL, Evaluator, ratios, reconstruct
from model.training.eo_vae.kernels import KernelTable, free_kernels, restore_generators
from model.training.eo_vae.linear_start import linear_start
from model.training.eo_vae.measured import measure, steps_by_sensor
from model.training.eo_vae.recipe import EOVAERecipe, Job, limited, recipe_summary
from model.training.eo_vae.sampler import Sampler
from model.training.eo_vae.subsets import Family, Lesson, teach, trained_lessons
from model.training.eo_vae.task import EOVAETask
from model.training.loop import Loop
from model.training.sources.images import Image, completed, favoured, load_images
from model.training.tracking import Tracker, panel
from model.weights import load_weights, save_weights
from model.weights_meta import SensorMeta, WeightsMeta

log = logging.getLogger(__name__)
CODE_TILES = 3
"""Training places a sensor that steps are measured on between stages: a minute instead of the four of the last time."""


def metadata(vae: EOVAE, recipe: EOVAERecipe, name: str, metrics: Mapping[str, object]) -> WeightsMeta:
    """What the weights say of themselves: the sensors of the recipe's mix with true wavelengths."""
    used = {"S2L2A", *(n for n in recipe.mix if n in SENSORS)}
    sensors = {
        n: SensorMeta(
            s.bands,
            s.wavelengths,
            s.mean,
            s.std,
            s.unit,
            n in ("S2L2A", "S2L1C", "RGBN"),
            "TerraMesh (legacy table of EO-VAE); true band centres",
        )
        for n, s in SENSORS.items()
        if n in used
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return WeightsMeta(name, vae.config, sensors, recipe.training_data, recipe.licence, created, metrics)


def begin(recipe: EOVAERecipe, job: Job, sampler: Sampler, *, resumed: bool = False) -> EOVAE:
    """The network at the start: closed form, random, or loaded weights of the recipe's configuration.

    For a run that is `resumed` the closed form is not solved again: a checkpoint replaces it.
    """
    torch.manual_seed(recipe.seed)
    if recipe.config is None:
        raise ValueError("the recipe states no config: this way of training needs one")
    if job.init not in ("linear", "random"):
        vae = load_weights(job.init)
        if vae.config != recipe.config:
            raise ValueError(f"{job.init} has {vae.config}, the recipe wants {recipe.config}")
        return vae.requires_grad_(True)
    vae = EOVAE(recipe.config)
    if job.init == "linear" and not resumed:
        optical = sampler.draw_set(S2L2A, recipe.start_patches, recipe.start_patch).x
        radar = sampler.draw_set(S1RTC, recipe.start_patches // 2, recipe.start_patch).x
        kernels = linear_start(vae, optical, radar)
        pixels = optical.permute(0, 2, 3, 1).reshape(-1, optical.shape[1])[::50]
        if "S2L1C" in sampler.mix:
            level1 = sampler.draw_set(SENSORS["S2L1C"], recipe.start_patches // 4, recipe.start_patch).x
            kernels = replace(kernels, cirrus=_cirrus(level1))
        distil(vae, kernels, sampler, pixels, recipe.distil_steps)
    return vae


def _cirrus(x: Tensor) -> Tensor:
    """(12,) ridge prediction of B10 from the other bands of S2L1C z-scores (N, 13, H, W)."""
    bands = SENSORS["S2L1C"].bands
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2)[::20]
    others = pixels[:, [i for i, b in enumerate(bands) if b != "B10"]]
    gram = others.T @ others + 0.05 * len(others) * torch.eye(others.shape[1])
    return cast(Tensor, torch.linalg.solve(gram, others.T @ pixels[:, bands.index("B10")]))


def train(
    recipe: EOVAERecipe,
    job: Job,
    *,
    team: Team | None = None,
    keeper: Keeper | None = None,
    tracker: Tracker | None = None,
) -> EOVAE:
    """Run the recipe from where `keeper` has a checkpoint, or from its beginning.

    Returns the averaged weights, which rank 0 also writes to `job.out` as they improve. A run that is killed while the
    generators are taught goes on at the beginning of that lesson: the network itself is done by then.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    team = team or Team.here(job.parallel)
    recipe = limited(recipe, job)
    images: list[Image] = favoured(load_images(Path(recipe.listing), Path(job.data)), recipe.favour)
    extra = completed(images) if recipe.complete_bands else []
    sampler = Sampler([*images, *extra], recipe.seed, recipe.mix)
    evaluator = Evaluator.build(images)
    snapshot = None
    if keeper is not None:
        with keeper.restore() as folder:
            if folder is not None:
                snapshot = read_snapshot(folder, team.rank, sliced=recipe.division == "slices")
    vae = begin(recipe, job, sampler, resumed=snapshot is not None)
    team.same_start(vae)
    if torch.distributed.is_initialized() and recipe.division == "streams":
        sampler = Sampler([*images, *extra], recipe.seed + 1000 * (team.rank + 1), recipe.mix)
    generators = free_kernels(vae, recipe_sensors(recipe)) if recipe.free_kernels else None

    def judge(averaged: EOVAE, total: int) -> float | None:
        table = publish(averaged, recipe, job, evaluator, sampler, final=False)
        if tracker is not None:
            _pictures(averaged, evaluator, tracker, total)
        return float(np.mean([row[MODEL]["rmse"] for row in table.values()])) if table else None

    def export(averaged: EOVAE, folder: Path) -> None:
        # `judge` has written them at this very step
        partial = isinstance(averaged.encoder.conv_in, KernelTable)
        path = job.out.with_suffix(".partial.pt") if partial else job.out
        shutil.copyfile(path, folder / path.name)

    def measure_steps(live: EOVAE) -> dict[str, tuple[float, ...]]:
        frozen = copy.deepcopy(live).cpu().eval().requires_grad_(False)
        calibrate(frozen, Sampler(sampler.images, recipe.seed + 77, recipe.mix))
        steps = steps_by_sensor(frozen, recipe_sensors(recipe), images, seed=recipe.seed, most=CODE_TILES)
        return {name: found.steps for name, found in steps.items()}

    task = EOVAETask(vae, recipe, judge, export, None if team.strategy == "fsdp" else measure_steps)
    loop = Loop(task, recipe, sampler, team, keeper, tracker)
    if snapshot is not None:
        loop.resume(snapshot)
        log.info("going on from step %d", loop.at.total)
    else:
        start = cast(EOVAE, loop.averaged())
        if team.leads:
            publish(start, recipe, job, evaluator, sampler, final=False)
    averaged = cast(EOVAE, loop.run())
    if team.leads:
        lessons = trained_lessons(averaged, recipe_sensors(recipe))
        if generators is not None:
            restore_generators(averaged, generators)
        if recipe.teach_minutes > 0:
            teach_subsets(averaged, lessons, recipe, sampler, fresh=job.init in ("linear", "random"))
        publish(averaged, recipe, job, evaluator, sampler, final=True)
    return averaged


def _pictures(vae: EOVAE, evaluator: Evaluator, tracker: Tracker, total: int) -> None:
    """The first held-out place of each sensor."""
    shown: set[str] = set()
    entry = vae.encoder.conv_in
    for place in evaluator.places:
        if place.sensor.name in shown or (isinstance(entry, KernelTable) and not entry.knows(place.sensor.wavelengths)):
            continue
        shown.add(place.sensor.name)
        tile = place.tiles[0]
        shown_as = f"held_out/{place.name.replace(' ', '_')}"
        tracker.picture(total, shown_as, panel(tile, reconstruct(vae, tile, place.sensor), place.sensor))


def recipe_sensors(recipe: EOVAERecipe) -> list[TrainedSensor]:
    """The whole sensors of the mix, S2L2A first."""
    return [S2L2A, *(SENSORS[n] for n in recipe.mix if n in SENSORS and n != S2L2A.name)]


def teach_subsets(vae: EOVAE, lessons: list[Lesson], recipe: EOVAERecipe, sampler: Sampler, *, fresh: bool) -> None:
    """Generators for every subset of S2L2A's and S2L1C's bands, keeping what the sets of the mix were trained to.

    `lessons` are those of `recipe_sensors`; `fresh` starts the generators anew.
    """
    sensors = recipe_sensors(recipe)
    families = []
    for sensor, lesson in zip(sensors, lessons, strict=True):
        if sensor.name in ("S2L2A", "S2L1C"):
            x = sampler.draw_set(sensor, recipe.start_patches, recipe.start_patch).x
            pixels = x.permute(0, 2, 3, 1).flatten(0, 2)[::50]
            families.append(Family(lesson, pixels, sensor.bands.index("B10") if "B10" in sensor.bands else None))
    error = teach(vae, lessons, families, minutes=recipe.teach_minutes, seed=recipe.seed, fresh=fresh)
    vae.requires_grad_(False)
    log.info("generators taught: the trained sets' kernels come back to %.4f", error)


def publish(
    vae: EOVAE, recipe: EOVAERecipe, job: Job, evaluator: Evaluator, sampler: Sampler, *, final: bool
) -> Mapping[str, Any]:
    """Write the averaged weights with their held-out figures; the final call scores every place, on what is read back
    from the file, and measures the code steps."""
    job.out.parent.mkdir(parents=True, exist_ok=True)
    entry = vae.encoder.conv_in
    if final:  # what is published is what the file gives, rounded as it is
        write_weights(vae, job.out, recipe, job, sampler, {})
        found: Mapping[str, Any] = measure(job.out, job.out, evaluator, sampler.images, seed=recipe.seed)["held_out"]
        return found
    if isinstance(entry, KernelTable):
        table = evaluator.table(vae, only=lambda place: entry.knows(place.sensor.wavelengths))
    else:
        table = evaluator.table(vae, only=lambda place: "S2L2A 1" in place.name)
    log.info("held out, RMSE and SAM over the KLT's: %s", ratios(table))
    if isinstance(entry, KernelTable):
        torch.save(vae.state_dict(), job.out.with_suffix(".partial.pt"))
        return table
    write_weights(vae, job.out, recipe, job, sampler, table)
    return table


def write_weights(
    vae: EOVAE, out: Path, recipe: EOVAERecipe, job: Job, sampler: Sampler, table: Mapping[str, Any]
) -> None:
    """Weights with their metadata, their batch norm calibrated unless it was trained through."""
    frozen = copy.deepcopy(vae)
    if recipe.batch_norm == "measured":
        calibrate(frozen, Sampler(sampler.images, recipe.seed + 77, recipe.mix))
    described = {"held_out": table, "recipe": recipe_summary(recipe)}
    dtype = torch.float16 if recipe.dtype == "float16" else torch.float32
    save_weights(frozen, out, metadata(frozen, recipe, job.name, described), dtype)
