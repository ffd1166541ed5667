"""A training step on a device that computes nothing and checks everything; a script, for what it registers stays.

Torch's fake tensors of a made-up accelerator raise where tensors of two devices meet, and where somebody asks for a
number. The backward pass alone is left out, for which torch wants a true device.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration

from model.eo_vae import EOVAE
from model.training.batch import Batch
from model.training.eo_vae import objective
from model.training.eo_vae.evaluate import reconstruct
from model.training.eo_vae.kernels import free_kernels
from model.training.eo_vae.task import EOVAETask
from model.training.loop import Average
from model.training.optimiser import build_optimiser, step_unless
from model.training.task import Progress
from tests.model.training.batches import RGB, TINY, recipe

DEVICE = torch.device("privateuseone:0")
LOSSES = {"charbonnier": 1.0, "relative_error": 1.0, "relative_angle": 1.0, "ms_ssim": 1.0}
STAGE = {"batch": 2, "patch": 96, "sample": True, "latent_noise": 0.1, "loss": LOSSES}


def moved(network: EOVAE) -> EOVAE:
    """The network with tensors of its sizes on the device; `to` would need a true one."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
                    tensors[name] = nn.Parameter(there) if isinstance(tensor, nn.Parameter) else there
    return network


def step(optimiser: str, free: bool) -> None:
    """One optimiser step, all but its backward pass."""
    live, twin = EOVAE(TINY), EOVAE(TINY)
    if free:
        for network in (live, twin):
            free_kernels(network, [RGB])
    how = recipe({**STAGE, "optimiser": optimiser})
    with FakeTensorMode():
        moved(live), moved(twin)
        task, stage = EOVAETask(live, how), how.stages[0]
        made = build_optimiser(task.parameter_groups(stage), stage, apart=True)
        generator = torch.Generator().manual_seed(0)
        progress = Progress(stage, 0, 1.0, slice(0, 2), generator, DEVICE, task.module)
        loss, figures = task.loss(Batch(torch.randn(2, 3, 96, 96), RGB), progress)
        assert set(figures) == set(LOSSES)
        assert {f.device for f in (loss, *figures.values()) if isinstance(f, torch.Tensor)} == {DEVICE}
        params = [p for group in made.param_groups for p in group["params"]]
        for p in params:
            p.grad = torch.empty_like(p)
        norm = nn.utils.clip_grad_norm_(params, 1.0)
        left_out = (~torch.isfinite(norm)).float()
        step_unless(made, left_out)
        Average(twin, 0.9).update(live, left_out)
        try:
            float(norm)
        except DataDependentOutputException:
            pass
        else:
            raise AssertionError("asking for a number went unnoticed")
        try:
            reconstruct(live, torch.randn(3, 64, 64).numpy(), RGB)
        except (RuntimeError, TypeError):
            pass
        else:
            raise AssertionError("tiles of the CPU met a network of the device unnoticed")


if __name__ == "__main__":
    backend_registration._setup_privateuseone_for_python_backend()
    objective.mixed = lambda *given: contextlib.nullcontext()  # type: ignore[assignment,misc]
    for name in ("adam", "adamw", "muon"):
        step(name, free=name == "muon")
    print("whole steps on the device")
