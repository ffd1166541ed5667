"""Teaches the generators every subset of bands: kernels of trained sets as they are, of other subsets by completion.

Training the whole network on every subset would cost a body's forward pass for each; here only the generators run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.eo_vae import EOVAE
from model.hypernet import OUTPUT_SCALE, DynamicConv, DynamicConvIn
from model.sensors import S2L2A, TrainedSensor
from model.training.batch import COMMON_SUBSETS, random_subset
from model.training.eo_vae.distill import completion

log = logging.getLogger(__name__)
RIDGE = 1e-9
# of trained sets, common subsets and random ones in the closing fit: the first must come back to tenths of a percent
WEIGHTS = (1e5, 1e5, 1.0)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One set of wavelengths and the kernels and biases both layers should give for it."""

    wavelengths: Tensor
    encoder: tuple[Tensor, Tensor]
    decoder: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """A whole sensor whose subsets are taught: its lesson, samples (N, bands) of its z-scored spectra, and the band
    (if any) that every subset drawn here keeps, because without it the wavelengths are another family's."""

    whole: Lesson
    pixels: Tensor
    always: int | None = None

    def draw(self, rng: np.random.Generator) -> Lesson:
        """The lesson of a random subset."""
        if self.always is None:
            return subset_lesson(self.whole, random_subset(rng), self.pixels)
        others = [i for i in range(len(self.whole.wavelengths)) if i != self.always]
        present = sorted([self.always, *(others[i] for i in random_subset(rng))])
        return subset_lesson(self.whole, present, self.pixels)


@torch.no_grad()
def trained_lessons(vae: EOVAE, sensors: Sequence[TrainedSensor]) -> list[Lesson]:
    """What the network gives now for the sets of bands it was trained with."""
    lessons = []
    for sensor in sensors:
        waves = torch.tensor(sensor.wavelengths)
        encoder, decoder = vae.encoder.conv_in.kernel(waves), vae.decoder.conv_out.kernel(waves)
        lessons.append(
            Lesson(waves, (encoder[0].clone(), encoder[1].clone()), (decoder[0].clone(), decoder[1].clone()))
        )
    return lessons


def subset_lesson(whole: Lesson, present: Sequence[int], pixels: Tensor) -> Lesson:
    """Kernels for the bands at `present`, given those of all: missing bands are predicted on the way in and left out
    on the way out. `pixels` (N, bands) are z-scored spectra."""
    index = list(present)
    weight, bias = whole.encoder
    filled = torch.einsum("eckl,cn->enkl", weight, completion(index, pixels))
    return Lesson(whole.wavelengths[index], (filled, bias), (whole.decoder[0][index], whole.decoder[1][index]))


def common_positions() -> list[list[int]]:
    """Positions in S2L2A of the subsets that are worth being exact for."""
    return [S2L2A.index(bands) for bands in COMMON_SUBSETS]


def _loss(layer: DynamicConv, lesson: Lesson) -> Tensor:
    wanted, bias = lesson.encoder if isinstance(layer, DynamicConvIn) else lesson.decoder
    got, got_bias = layer.kernel(lesson.wavelengths)
    weight_error = F.mse_loss(got, wanted) / wanted.square().mean()
    return weight_error + F.mse_loss(got_bias, bias) / (bias.square().mean() + 1e-2)


def teach(
    vae: EOVAE, lessons: Sequence[Lesson], families: Sequence[Family], *, minutes: float, steps: int = 20_000,
    lr: float = 1e-3, seed: int = 0, share: float = 0.4, fresh: bool = True,
) -> float:  # fmt: skip
    """Train both generators on `lessons` and subsets of `families` (S2L2A first), `fresh`: from their initialisation.

    A subset that was trained as a sensor of its own (RGB, RGBN) keeps what it learned there. Stops after `minutes` or
    `steps`, and ends with a ridge step on the last linear layers, weighed towards `lessons`. Returns the mean relative
    error of the trained sets' encoder kernels.
    """
    rng = np.random.default_rng(seed)
    layers = (vae.encoder.conv_in, vae.decoder.conv_out)
    for layer in layers:
        if fresh:
            layer.reset_parameters()
        layer.requires_grad_(True)
    params = [p for layer in layers for p in layer.parameters()]
    optimiser = torch.optim.AdamW(params, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    taken = {tuple(sorted(lesson.wavelengths.tolist())) for lesson in lessons}

    def draw() -> Lesson:
        while True:
            lesson = families[int(rng.integers(len(families)))].draw(rng)
            if tuple(sorted(lesson.wavelengths.tolist())) not in taken:
                return lesson

    began, step, running = time.monotonic(), 0, 1.0
    while (progress := max(step / steps, (time.monotonic() - began) / (60 * minutes))) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        loss = torch.zeros(())
        for _ in range(4):
            lesson = lessons[int(rng.integers(len(lessons)))]
            if rng.random() > share:
                lesson = draw()
            loss = loss + sum(torch.sqrt(_loss(layer, lesson) + 1e-6) for layer in layers)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        step += 1
        running = 0.98 * running + 0.02 * float(loss.detach()) / 8
        if step % 200 == 0:
            log.info("subsets %d (%.0f%%): relative error %.4f", step, 100 * progress, running)
    subsets = [draw() for _ in range(400)]
    common = [subset_lesson(f.whole, p, f.pixels) for f in families[:1] for p in common_positions()]
    for layer in layers:
        _settle(layer, [(v, w) for group, w in zip((lessons, common, subsets), WEIGHTS, strict=True) for v in group])
    with torch.no_grad():
        return float(np.mean([math.sqrt(float(_loss(layers[0], lesson))) for lesson in lessons]))


@torch.no_grad()
def _settle(layer: DynamicConv, weighted: Sequence[tuple[Lesson, float]]) -> None:
    """Correct the last linear layers by a ridge fit, with these weights, of what is left."""
    encoder = isinstance(layer, DynamicConvIn)
    generator = layer.weight_generator
    inputs: dict[str, list[Tensor]] = {"weight": [], "bias": []}
    heads = {"weight": generator.fc_weight, "bias": generator.fc_bias}
    hooks = [
        head.register_forward_pre_hook(
            lambda _, args, store=inputs[key]: store.append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for key, head in heads.items()
    ]
    left: dict[str, list[Tensor]] = {"weight": [], "bias": []}
    weights: dict[str, list[Tensor]] = {"weight": [], "bias": []}
    for lesson, factor in weighted:
        wanted, wanted_bias = lesson.encoder if encoder else lesson.decoder
        kernel, bias = layer.kernel(lesson.wavelengths)
        error = (wanted - kernel) / OUTPUT_SCALE
        left["weight"].append((error.permute(1, 2, 3, 0) if encoder else error.permute(0, 2, 3, 1)).flatten(1))
        bias_error = (wanted_bias - bias) / (OUTPUT_SCALE if encoder else OUTPUT_SCALE**2)
        left["bias"].append(bias_error[None] if encoder else bias_error[:, None])
        for key in inputs:
            weights[key].append(torch.full((len(inputs[key][-1]), 1), factor**0.5))
    for hook in hooks:
        hook.remove()
    for key, head in heads.items():
        w = torch.cat(weights[key]).double()
        a = torch.cat([torch.cat(inputs[key]), torch.ones(len(w), 1)], dim=1).double() * w
        b = torch.cat(left[key]).double() * w
        gram = a.T @ a
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        delta = torch.linalg.solve(gram, a.T @ b).float()
        head.weight.add_(delta[:-1].T)
        head.bias.add_(delta[-1])
