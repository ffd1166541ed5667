"""The training loop: skeleton, then the whole network; EMA, exports on the way, held-out figures against the KLT."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.eo_vae import EOVAE
from model.losses import MIN_SIDE, charbonnier, ms_ssim_loss, relative_angle, relative_error
from model.training.data import Image, complete, load_images
from model.training.distill import distil
from model.training.evaluate import Evaluator, ratios
from model.training.kernels import KernelTable, free_kernels, restore_generators
from model.training.linear_start import linear_start
from model.training.optimiser import Muon, parameter_groups
from model.training.recipe import Job, Recipe, Stage, limited, recipe_summary
from model.training.sampler import Batch, Sampler
from model.training.sensors import S1RTC, S2L2A, SENSORS, TrainedSensor
from model.training.skeleton import skeleton_only
from model.training.subsets import Family, Lesson, teach, trained_lessons
from model.weights import load_weights, save_weights
from model.weights_meta import SensorMeta, WeightsMeta

log = logging.getLogger(__name__)
LAST_CONVOLUTION = 0.1
Report = Callable[[dict[str, float], EOVAE], None]


def branch_parameters(vae: EOVAE) -> set[str]:
    """Names of what the skeleton leaves out: residual branches and attention, but not the shortcuts."""
    return {
        name
        for name, _ in vae.named_parameters()
        if (".block" in name or ".attn_1" in name) and "nin_shortcut" not in name
    }


def _optimiser(vae: EOVAE, stage: Stage) -> Muon:
    branches = branch_parameters(vae)
    skeleton, branch, generator = [], [], []
    for name, p in vae.named_parameters():
        if ".fc_" in name or ".conv_in.weights." in name or ".conv_out.weights." in name or ".biases." in name:
            generator.append(p)
        elif "weight_generator" in name or "fclayer" in name:
            # the solved heads read tiny differences of these features: a moving body would throw the kernels off
            p.requires_grad_(False)
        elif name not in branches:
            skeleton.append(p)
        elif not stage.skeleton:
            branch.append((name, p))
    groups: list[dict[str, Any]] = [
        {"params": skeleton, "base": stage.lr_skeleton},
        {"params": generator, "base": stage.lr_generators},
    ]
    # a branch's last convolution adds to a stream that is nearly right: its steps alone disturb, so they are small
    last = [(n, p) for n, p in branch if ".conv2." in n or ".proj_out." in n]
    inner = [(n, p) for n, p in branch if ".conv2." not in n and ".proj_out." not in n]
    groups += [group | {"base": stage.lr_branches} for group in parameter_groups(inner)]
    groups += [group | {"base": stage.lr_branches * LAST_CONVOLUTION} for group in parameter_groups(last)]
    return Muon(groups)


def reconstruct(vae: EOVAE, batch: Batch, bfloat16: bool) -> Tensor:
    """Training's forward pass, mode of the posterior.

    The generators and the last convolution run in float32: rounded kernels would shift every level they carry.
    """
    x = batch.x.contiguous(memory_format=torch.channels_last)
    waves = batch.wavelengths.to(x.device)
    weight, bias = vae.encoder.conv_in.kernel(waves)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        moments = vae.encoder.body(F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2))
        h = vae.decoder.body(moments.chunk(2, dim=1)[0])
    return cast(Tensor, vae.decoder.conv_out(h.float(), waves))


def loss_of(prediction: Tensor, target: Tensor, stage: Stage, progress: float) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the stage's losses inside its margin, and each loss's own value."""
    m = stage.margin
    if m:
        prediction, target = prediction[..., m:-m, m:-m], target[..., m:-m, m:-m]
    terms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "relative_error": relative_error,
        "relative_angle": relative_angle,
        "charbonnier": charbonnier,
        "ms_ssim": ms_ssim_loss,
    }
    total, values = prediction.new_zeros(()), {}
    for name, weight in stage.loss.items():
        if name == "relative_angle" and target.shape[1] == 1:
            continue
        if name == "ms_ssim" and (progress < stage.ms_ssim_from or min(target.shape[-2:]) < MIN_SIDE):
            continue
        value = terms[name](prediction, target)
        values[name] = float(value.detach())
        total = total + weight * value
    return total, values


def _share_gradients(params: list[nn.Parameter]) -> None:
    """Average gradients over the workers, absent ones (a sensor's unused weights) as zero."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


@dataclass(slots=True)
class Average:
    """Exponential moving average of parameters, bias-corrected by a decay that grows with the steps seen."""

    vae: EOVAE
    decay: float
    seen: int = 0

    @torch.no_grad()
    def update(self, live: EOVAE) -> None:
        self.seen += 1
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        for mean, value in zip(self.vae.parameters(), live.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


@torch.no_grad()
def calibrate(vae: EOVAE, sampler: Sampler, batches: int = 24) -> None:
    """Set the batch norm's statistics to those of the posterior means over a mix of training batches."""
    total = square = None
    count = 0
    for _ in range(batches):
        batch = sampler.draw(4, 128)
        packed = vae.pack(vae.encode(batch.x, batch.wavelengths).mode()[..., 2:-2, 2:-2]).double()
        count += packed.numel() // packed.shape[1]
        sums, squares = packed.sum((0, 2, 3)), packed.square().sum((0, 2, 3))
        total = sums if total is None else total + sums
        square = squares if square is None else square + squares
    if total is None or square is None or vae.bn.running_mean is None or vae.bn.running_var is None:
        raise ValueError("calibrate: needs at least one batch and a batch norm with running statistics")
    mean = total / count
    vae.bn.running_mean.copy_(mean)
    vae.bn.running_var.copy_((square / count - mean.square()).clamp_min(1e-6))


def metadata(vae: EOVAE, recipe: Recipe, name: str, metrics: Mapping[str, object]) -> WeightsMeta:
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


def begin(recipe: Recipe, job: Job, sampler: Sampler) -> EOVAE:
    """The network at the start: closed form, random, or loaded weights of the recipe's configuration."""
    torch.manual_seed(recipe.seed)
    if job.init not in ("linear", "random"):
        vae = load_weights(job.init)
        if vae.config != recipe.config:
            raise ValueError(f"{job.init} has {vae.config}, the recipe wants {recipe.config}")
        return vae.requires_grad_(True)
    vae = EOVAE(recipe.config)
    if job.init == "linear":
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


@contextmanager
def _mode(vae: EOVAE, stage: Stage) -> Iterator[None]:
    with skeleton_only(vae) if stage.skeleton else nullcontext():
        yield


def _unreported(losses: dict[str, float], averaged: EOVAE) -> None:
    """What a run without Ray does with its reports."""


def train(recipe: Recipe, job: Job, report: Report = _unreported) -> EOVAE:
    """Run the recipe; returns the averaged weights, which are also written to `job.out` as they improve.

    `report` is called on every worker with the running losses and the averaged network after each evaluation and
    stage: Ray Train's checkpoints.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    rank = dist.get_rank() if dist.is_initialized() else 0
    recipe = limited(recipe, job)
    images: list[Image] = load_images(Path(recipe.listing), job.data)
    extra = []
    if recipe.complete_bands:
        level1 = [i for i in images if i.sensor == "S2L1C"]
        extra = [*complete(images), *complete(level1, "S2L1C")]
    sampler = Sampler([*images, *extra], recipe.seed, recipe.mix)
    evaluator = Evaluator.build(images)
    vae = begin(recipe, job, sampler)
    if dist.is_initialized():
        for tensor in vae.state_dict().values():
            dist.broadcast(tensor, 0)
        sampler = Sampler([*images, *extra], recipe.seed + 1000 * (rank + 1), recipe.mix)
    generators = free_kernels(vae, recipe_sensors(recipe)) if recipe.free_kernels else None
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(copy.deepcopy(vae).requires_grad_(False).eval(), recipe.ema)
    if rank == 0:
        publish(average.vae, recipe, job, evaluator, sampler, final=False)
    for stage in recipe.stages:
        average.seen = 0
        _run_stage(vae, average, stage, recipe, job, sampler, evaluator, report, rank)
        if rank == 0:
            publish(average.vae, recipe, job, evaluator, sampler, final=False)
    if rank == 0:
        lessons = trained_lessons(average.vae, recipe_sensors(recipe))
        if generators is not None:
            restore_generators(average.vae, generators)
        if recipe.teach_minutes > 0:
            teach_subsets(average.vae, lessons, recipe, sampler, fresh=job.init in ("linear", "random"))
        publish(average.vae, recipe, job, evaluator, sampler, final=True)
    return average.vae


def recipe_sensors(recipe: Recipe) -> list[TrainedSensor]:
    """The whole sensors of the mix, S2L2A first."""
    return [S2L2A, *(SENSORS[n] for n in recipe.mix if n in SENSORS and n != S2L2A.name)]


def teach_subsets(vae: EOVAE, lessons: list[Lesson], recipe: Recipe, sampler: Sampler, *, fresh: bool) -> None:
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


def _run_stage(
    vae: EOVAE,
    average: Average,
    stage: Stage,
    recipe: Recipe,
    job: Job,
    sampler: Sampler,
    evaluator: Evaluator,
    report: Report,
    rank: int,
) -> None:
    optimiser = _optimiser(vae, stage)
    params = [p for group in optimiser.param_groups for p in group["params"]]
    began = said = judged = time.monotonic()
    running: dict[str, float] = {}
    vae.train()
    with _mode(vae, stage):
        for step in range(stage.steps):
            now = time.monotonic()
            progress, due = _agree(
                max(step / stage.steps, (now - began) / (60 * stage.minutes)),
                now - judged > 60 * recipe.evaluate_minutes,
            )
            if progress >= 1:
                break
            factor = stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * factor * min(1.0, (step + 1) / stage.warmup)
            batch = sampler.draw(stage.batch, stage.patch)
            loss, values = loss_of(reconstruct(vae, batch, recipe.bfloat16), batch.x, stage, progress)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            _share_gradients(params)
            norm = float(nn.utils.clip_grad_norm_(params, recipe.clip))
            if math.isfinite(norm):
                optimiser.step()
                average.update(vae)
            else:
                log.warning("step %d: gradient not finite, step left out", step)
            for key, value in (values | {"norm": norm}).items():
                running[key] = value if key not in running else 0.97 * running[key] + 0.03 * value
            if rank == 0 and (now - said > 30 or step == 0):
                said = now
                shown = ", ".join(f"{k} {v:.4f}" for k, v in running.items())
                log.info("%s %d (%.0f%%, %.0f s): %s", stage.name, step + 1, 100 * progress, now - began, shown)
            if due:
                if rank == 0:
                    publish(average.vae, recipe, job, evaluator, sampler, final=False)
                report(running, average.vae)
                judged = time.monotonic()
    report(running, average.vae)


def _agree(progress: float, due: bool) -> tuple[float, bool]:
    """Rank 0's view of the clock, on every worker: all end a stage and report at the same step."""
    if not dist.is_initialized():
        return progress, due
    shared = torch.tensor([progress, float(due)])
    dist.broadcast(shared, 0)
    return float(shared[0]), bool(shared[1])


def publish(
    vae: EOVAE, recipe: Recipe, job: Job, evaluator: Evaluator, sampler: Sampler, *, final: bool
) -> Mapping[str, Any]:
    """Write the averaged weights with their held-out figures; the final call scores every place, into a JSON too."""
    job.out.parent.mkdir(parents=True, exist_ok=True)
    entry = vae.encoder.conv_in
    if isinstance(entry, KernelTable):
        table = evaluator.table(vae, only=lambda place: entry.knows(place.sensor.wavelengths))
    else:
        table = evaluator.table(vae, only=lambda place: final or "S2L2A 1" in place.name)
    log.info("held out, RMSE and SAM over the KLT's: %s", ratios(table))
    if isinstance(entry, KernelTable):
        torch.save(vae.state_dict(), job.out.with_suffix(".partial.pt"))
        return table
    frozen = copy.deepcopy(vae)
    calibrate(frozen, Sampler(sampler.images, recipe.seed + 77, recipe.mix))
    described = {"held_out": table, "recipe": recipe_summary(recipe)}
    dtype = torch.float16 if recipe.dtype == "float16" else torch.float32
    save_weights(frozen, job.out, metadata(frozen, recipe, job.name, described), dtype)
    if final:
        job.out.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")
    return table
