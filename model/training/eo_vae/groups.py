"""Sorts EO-VAE's parameters into groups of different rates: skeleton, branches, last convolutions, generators."""

from __future__ import annotations

from typing import Any

from model.eo_vae import EOVAE
from model.layouts import is_dynamic
from model.training.eo_vae.recipe import EOVAEStage
from model.training.optimiser import muon_groups

LAST_CONVOLUTION = 0.1


def branch_parameters(vae: EOVAE) -> set[str]:
    """Names of what the skeleton leaves out: residual branches and attention, but not the shortcuts."""
    return {
        name
        for name, _ in vae.named_parameters()
        if (".block" in name or ".attn_1" in name) and "nin_shortcut" not in name
    }


def trained_groups(vae: EOVAE, stage: EOVAEStage) -> list[dict[str, Any]]:
    """What the stage trains, as an optimiser's groups; frozen parameters need no gradient afterwards."""
    vae.requires_grad_(True)
    if stage.freeze_body:
        for name, p in vae.named_parameters():
            p.requires_grad_(is_dynamic(name))
    if stage.optimiser == "muon":
        return _muon(vae, stage)
    params = [p for p in vae.parameters() if p.requires_grad]
    return [{"params": params, "base": stage.lr}]


def _muon(vae: EOVAE, stage: EOVAEStage) -> list[dict[str, Any]]:
    branches = branch_parameters(vae)
    skeleton, branch, generator = [], [], []
    for name, p in vae.named_parameters():
        if ".fc_" in name or ".conv_in.weights." in name or ".conv_out.weights." in name or ".biases." in name:
            generator.append(p)
        elif "weight_generator" in name or "fclayer" in name:
            # the solved heads read tiny differences of these features: a moving body would throw the kernels off
            p.requires_grad_(False)
        elif stage.freeze_body:
            continue
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
    groups += [group | {"base": stage.lr_branches} for group in muon_groups(inner)]
    groups += [group | {"base": stage.lr_branches * LAST_CONVOLUTION} for group in muon_groups(last)]
    return [group for group in groups if group["params"]]
