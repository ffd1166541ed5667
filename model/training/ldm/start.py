"""Solves in closed form what super-resolution starts from: statistics, a ridge, the residual's coordinates."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.eo_vae import EOVAE
from model.super_resolution import SuperResolver
from model.super_resolution_parts import around
from model.training.ldm.pairs import PairBatch, Rows, row_weights
from model.training.ldm.recipe import SRRecipe

log = logging.getLogger(__name__)
_BATCH = 32
_PROBED = 4
_DAMPING = 1e-2


@dataclass(slots=True)
class _Moments:
    """Weighted sums of vectors and of their products, float64."""

    total: float = 0.0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    _shape: tuple[int, ...] = field(default=())

    def add(self, x: Tensor, weight: float) -> None:
        """x (N, C)."""
        x = x.double()
        self.total += weight * len(x)
        self.first = self.first + weight * x.sum(0)
        self.second = self.second + weight * (x.T @ x)

    @property
    def mean(self) -> Tensor:
        return cast(Tensor, self.first) / self.total

    @property
    def covariance(self) -> Tensor:
        return cast(Tensor, self.second) / self.total - self.mean[:, None] * self.mean


def batches(rows: Rows, recipe: SRRecipe) -> Iterator[tuple[PairBatch, float]]:
    """All pairs that count once, by side and place, each batch with its pairs' weight."""
    weights = row_weights(rows, recipe.balance, recipe.coarser)
    alike: dict[tuple[int, str, float], list[int]] = {}
    for k, (side, place, weight) in enumerate(zip(rows.sides, rows.places, weights.tolist(), strict=True)):
        if weight > 0:
            alike.setdefault((side, place, weight), []).append(k)
    for (_, _, weight), chosen in sorted(alike.items()):
        for k in range(0, len(chosen), _BATCH):
            yield rows.read(chosen[k : k + _BATCH]), weight


@torch.no_grad()
def solve(net: SuperResolver, rows: Rows, recipe: SRRecipe, vae: EOVAE | None, wavelengths: Sequence[float]) -> None:
    """Give a fresh network its statistics, base and coordinates, of training pairs alone.

    Args:
        net: the network, on the CPU.
        rows: the training split.
        recipe: ridge, coordinates, balance.
        vae: the autoencoder whose decoder says what an error costs, for `whiten: cost`; None in pixel space.
        wavelengths: of its bands, micrometres.
    """
    condition, target = _Moments(), _Moments()
    for batch, weight in batches(rows, recipe):
        condition.add(_vectors(batch.condition), weight)
        target.add(_vectors(batch.target), weight)
    of = target if recipe.hr_statistics else condition
    net.condition_mean.copy_(of.mean)
    net.condition_std.copy_(of.covariance.diagonal().clamp_min(1e-12).sqrt())
    if net.base is not None:
        _ridge(net, rows, recipe)
    residual = target
    if net.base is not None:
        residual = _Moments()
        for batch, weight in batches(rows, recipe):
            base = cast(Tensor, net.linear(net.normalised(batch.condition)))
            residual.add(_vectors(batch.target.float() - base), weight)
        left = (residual.covariance.diagonal() / target.covariance.diagonal()).mean()
        log.info("the closed-form regression leaves %.0f %% of the target's variance", 100 * float(left))
    gram = None
    if recipe.whiten == "cost" and vae is not None:
        gram = decoder_gram(vae, wavelengths, rows, recipe)
    net.white.fit(residual.mean, residual.covariance, gram)
    if net.amplitude is not None:
        _amplitude(net, rows, recipe)


def _vectors(x: Tensor) -> Tensor:
    return x.float().permute(0, 2, 3, 1).flatten(0, 2)


def _ridge(net: SuperResolver, rows: Rows, recipe: SRRecipe) -> None:
    """Least squares from the neighbourhood of each coarse cell to its fine ones, damped; borders repeated.

    Damping draws it to what is the best guess without statistics: a condition on the fine grid to itself, a coarse one
    to a constant.
    """
    base = net.base
    assert base is not None
    side, finer = net.config.base, net.config.finer
    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for batch, weight in batches(rows, recipe):
        x = F.pad(net.normalised(batch.condition), (side // 2,) * 4, mode="replicate")
        seen = F.unfold(x, side).transpose(1, 2).flatten(0, 1)
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1)
        target = batch.target.float() - batch.condition.float() if finer == 1 else batch.target.float()
        wanted = F.pixel_unshuffle(target, finer).flatten(2).transpose(1, 2).flatten(0, 1)
        gram = gram + weight * (seen.T @ seen).double()
        cross = cross + weight * (seen.T @ wanted).double()
    gram, cross = cast(Tensor, gram), cast(Tensor, cross)
    damped = gram + recipe.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    found = torch.linalg.solve(damped, cross).float()
    base.weight.copy_(found[:-1].T.reshape(base.weight.shape))
    bias = cast(Tensor, base.bias)
    bias.copy_(found[-1])
    if finer == 1:
        base.weight[:, :, side // 2, side // 2] += torch.diag(net.condition_std)
        bias.add_(net.condition_mean)


def _amplitude(net: SuperResolver, rows: Rows, recipe: SRRecipe) -> None:
    """Damped least squares of the local residual's log energy on the logarithms of the condition's, then one factor a
    coordinate, so that the residual over it has unit energy."""
    amplitude = net.amplitude
    assert amplitude is not None
    seen, wanted, weights = [], [], []
    for batch, weight in batches(rows, recipe):
        white, given = _white(net, batch)
        seen.append(_vectors(amplitude.local(given)[1].log()))
        wanted.append(_vectors(around(F.avg_pool2d(white.square(), net.config.scale)).clamp_min(1e-12).log()))
        weights.append(torch.full((len(seen[-1]),), weight))
    x, y, w = torch.cat(seen).double(), torch.cat(wanted).double(), torch.cat(weights).double()
    w = (w / w.sum())[:, None]
    centre, level = (w * x).sum(0), (w * y).sum(0)
    covariance = (w * (x - centre)).T @ (x - centre)
    damped = covariance + _DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    slope = torch.linalg.solve(damped, (w * (x - centre)).T @ (y - level)).T
    amplitude.slope.copy_(slope)
    amplitude.offset.copy_(level - slope @ centre)
    few = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(recipe.seed))[:100_000]]
    amplitude.range.copy_(torch.quantile(few, torch.tensor([0.005, 0.995], dtype=torch.float64), dim=0))
    energy: Tensor | float = 0.0
    total = 0.0
    for batch, weight in batches(rows, recipe):
        white, given = _white(net, batch)
        energy = energy + weight * (white / amplitude(given)).square().sum((0, 2, 3)).double()
        total += weight * white[:, 0].numel()
    amplitude.offset.add_((cast(Tensor, energy) / total).log())


def _white(net: SuperResolver, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """The residual in white coordinates, and the normalised condition."""
    given = net.normalised(batch.condition)
    linear = net.linear(given)
    target = batch.target.float()
    return net.white.into(target if linear is None else target - linear), given


def decoder_gram(vae: EOVAE, wavelengths: Sequence[float], rows: Rows, recipe: SRRecipe) -> Tensor:
    """(C, C) float64: mean over cells of J^T J of the decoder in its own z-scores, by random probes of its output.

    With v of independent unit entries E[(J^T v)(J^T v)^T] = J^T J: one backward pass a batch gives every cell a probe.
    Cells are taken one by one, what neighbours do together is left out.
    """
    sides = max(set(rows.sides), key=list(rows.sides).count)
    of_side = [k for k, side in enumerate(rows.sides) if side == sides]
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(of_side), generator=generator)[: recipe.gram_pairs].tolist()
    found: Tensor | float = 0.0
    trained = [p.requires_grad for p in vae.parameters()]
    vae.requires_grad_(False)
    for k in range(0, len(order), _PROBED):
        with torch.enable_grad():
            z = rows.read([of_side[i] for i in order[k : k + _PROBED]]).target.float().requires_grad_()
            y = vae.decode(z, wavelengths)
            (g,) = torch.autograd.grad(y, z, torch.randn(y.shape, generator=generator))
        vectors = _vectors(g).double()
        found = found + vectors.T @ vectors
    for parameter, before in zip(vae.parameters(), trained, strict=True):
        parameter.requires_grad_(before)
    gram = cast(Tensor, found)
    return gram / gram.diagonal().mean()
