"""Builds a stage's optimiser: Muon for convolutions and matrices with Adam for the rest, or Adam alone.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the update's scale follows
Liu et al., arXiv:2502.16982, so that one learning rate serves both kinds of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.training.recipe import Stage

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MATCH = 0.2


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of `matrix` = U S V^T by a quintic Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    # bfloat16 as in the source: the iteration is a smoothing, half the bytes and the chip's fast products do
    x = (x / (x.norm() + 1e-12)).bfloat16()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.T if tall else x).to(matrix.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """One optimiser for all parameters: groups with `muon` True hold tensors of two or more dimensions.

    Group keys: lr, muon, momentum (Muon), betas and eps (Adam). No weight decay. Knows `found_inf` as torch's fused
    optimisers do: a scalar on the device that leaves the whole step out where it is 1, without anybody asking for it.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(groups, dict(lr=lr, muon=False, momentum=0.95, betas=(0.9, 0.99), eps=1e-10))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        keep = None if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adam
            for p in group["params"]:
                if p.grad is not None:
                    gradient = p.grad if keep is None else torch.where(keep > 0, p.grad, 0.0)
                    update(p, gradient, self.state[p], group, keep)
        return loss

    @staticmethod
    def _muon(p: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], keep: Tensor | None) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(gradient, _kept(1 - group["momentum"], keep))
        direction = torch.lerp(gradient, state["momentum"], group["momentum"]).flatten(1)
        scale = _MATCH * max(direction.shape) ** 0.5
        change = orthogonalise(direction).reshape(p.shape)
        p.add_(change if keep is None else change * keep, alpha=-group["lr"] * scale)

    @staticmethod
    def _adam(p: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], keep: Tensor | None) -> None:
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] = state["step"] + (1 if keep is None else keep)
        first, second = group["betas"]
        state["mean"].lerp_(gradient, _kept(1 - first, keep))
        state["square"].mul_(second if keep is None else 1 - (1 - second) * keep)
        state["square"].addcmul_(gradient, gradient, value=1 - second)
        mean = state["mean"] / (1 - first ** state["step"])
        square = state["square"] / (1 - second ** state["step"])
        p.addcdiv_(mean if keep is None else mean * keep, square.sqrt() + group["eps"], value=-group["lr"])


def _kept(share: float, keep: Tensor | None) -> float | Tensor:
    return share if keep is None else share * keep


def step_unless(optimiser: torch.optim.Optimizer, left_out: Tensor) -> None:
    """A step that changes nothing, state included, where the scalar `left_out` is 1; the device alone knows whether.

    The optimiser is one that `build_optimiser` made to be `apart`.
    """
    given: Any = optimiser
    given.grad_scale, given.found_inf = None, left_out
    try:
        optimiser.step()
    finally:
        del given.grad_scale, given.found_inf


def muon_groups(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Groups for `Muon`: its own (convolutions and matrices inside), and Adam's (vectors, tokens and heads)."""
    muon: list[nn.Parameter] = []
    adam: list[nn.Parameter] = []
    for name, p in named:
        matrix = p.ndim >= 2 and "token" not in name and ".fc_" not in name
        (muon if matrix else adam).append(p)
    return [g for g in ({"params": muon, "muon": True}, {"params": adam, "muon": False}) if g["params"]]


def build_optimiser(groups: Sequence[dict[str, Any]], stage: Stage, *, apart: bool = False) -> torch.optim.Optimizer:
    """The stage's optimiser over the groups; each keeps its full rate as `base`, the stage's `lr` where it has none.

    One to be `apart` leaves a step out by itself (`step_unless`, or torch's GradScaler), so that nobody waits for it.
    """
    based = [{"base": stage.lr} | group for group in groups]
    if stage.optimiser == "muon":
        muon: Any = Muon(based)
        muon._step_supports_amp_scaling = apart  # the GradScaler's question, whose answer else is read off the device
        return cast(torch.optim.Optimizer, muon)
    if stage.optimiser == "adamw":
        return torch.optim.AdamW(based, lr=stage.lr, weight_decay=stage.weight_decay, fused=True)
    return torch.optim.Adam(based, lr=stage.lr, fused=True if apart else None)
