"""Teaches the two hypernetworks the static kernels that a start or a teacher prescribes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.eo_vae import EOVAE
from model.hypernet import OUTPUT_SCALE
from model.sensors import S2L2A, TrainedSensor, own_names
from model.training.eo_vae.linear_start import OPTICAL, StaticKernels
from model.training.eo_vae.sampler import Sampler

log = logging.getLogger(__name__)
COMPLETION_RIDGE = 0.05
HEAD_RIDGE = 1e-5


def completion(present: Sequence[int], pixels: Tensor) -> Tensor:
    """(bands, n) map from n present z-scored bands to all: present ones pass, ridge regression predicts the others.

    `pixels` (N, bands) are samples of complete spectra.
    """
    a = pixels[:, list(present)]
    gram = a.T @ a + COMPLETION_RIDGE * len(a) * torch.eye(len(present))
    full: Tensor = torch.linalg.solve(gram, a.T @ pixels).T
    full[list(present)] = torch.eye(len(present))
    return full


def targets(sensor: TrainedSensor, kernels: StaticKernels, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder (ch, C, 3, 3) and decoder (C, ch, 3, 3) kernels for any trained set of bands.

    Missing bands are predicted from present ones on the way in and left out on the way out. B10, which S2L2A has not,
    is not read at first and comes back as `kernels.cirrus` times the other bands.
    """
    if sensor.unit == "dB":
        return kernels.radar_in, kernels.radar_out
    names = own_names(sensor.bands)
    known = [i for i, b in enumerate(names) if b in S2L2A.bands]
    index = [S2L2A.bands.index(names[i]) for i in known]
    filled = kernels.optical_in
    if len(index) < OPTICAL:
        filled = torch.einsum("eckl,cn->enkl", kernels.optical_in, completion(index, pixels))
        order = filled
    else:
        order = kernels.optical_in[:, index]
    encoder = torch.zeros(kernels.optical_in.shape[0], len(names), 3, 3)
    decoder = torch.zeros(len(names), kernels.optical_out.shape[1], 3, 3)
    encoder[:, known] = order
    decoder[known] = kernels.optical_out[index]
    for i in set(range(len(names))) - set(known):
        decoder[i] = torch.einsum("c,cekl->ekl", kernels.cirrus, kernels.optical_out)
    return encoder, decoder


@torch.no_grad()
def solve_heads(vae: EOVAE, kernels: StaticKernels, sampler: Sampler, pixels: Tensor, draws: int = 300) -> None:
    """Set the generators' last linear layers by ridge regression on what their untrained transformers give.

    Random features already tell the bands apart, so this lands close to the targets before any step of Adam.
    """
    sensors = [sampler.choose() for _ in range(draws)]
    for which, layer in enumerate((vae.encoder.conv_in, vae.decoder.conv_out)):
        head = layer.weight_generator.fc_weight
        features: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args, store=features: store.append(args[0]))
        wanted = []
        for sensor in sensors:
            layer.kernel(torch.tensor(sensor.wavelengths))
            kernel = targets(sensor, kernels, pixels)[which]
            rows = kernel.permute(1, 2, 3, 0) if which == 0 else kernel.permute(0, 2, 3, 1)
            wanted.append(rows.flatten(1) / OUTPUT_SCALE)
        hook.remove()
        a = torch.cat([torch.cat(features), torch.ones(sum(len(f) for f in features), 1)], dim=1).double()
        b = torch.cat(wanted).double()
        gram = a.T @ a
        gram += HEAD_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        solution = torch.linalg.solve(gram, a.T @ b).float()
        head.weight.copy_(solution[:-1].T)
        head.bias.copy_(solution[-1])
        layer.weight_generator.fc_bias.weight.zero_()
        layer.weight_generator.fc_bias.bias.zero_()


def distil(vae: EOVAE, kernels: StaticKernels, sampler: Sampler, pixels: Tensor, steps: int, lr: float = 1e-3) -> float:
    """Solve the generators' heads, then train them alone with Adam, a random set of bands a step.

    Returns the running relative error of the kernels, 0 where `steps` is 0 (heads solved only).
    """
    solve_heads(vae, kernels, sampler, pixels)
    if steps < 1:
        return 0.0
    layers = (vae.encoder.conv_in, vae.decoder.conv_out)
    params = [p for layer in layers for p in layer.parameters()]
    optimiser = torch.optim.Adam(params, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.05)
    began, relative = time.monotonic(), 1.0
    for step in range(steps):
        sensor = sampler.choose()
        loss = torch.zeros(())
        for layer, wanted in zip(layers, targets(sensor, kernels, pixels), strict=True):
            weight, bias = layer.kernel(torch.tensor(sensor.wavelengths))
            loss = loss + torch.sqrt(F.mse_loss(weight, wanted) / wanted.square().mean() + 1e-5) + bias.square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        relative = 0.98 * relative + 0.02 * float(loss.detach())
        if step % 200 == 0:
            log.info("distil %d: relative error %.3f, %.0f s", step, relative, time.monotonic() - began)
    return relative
