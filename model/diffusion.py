"""Turns noise into data by a denoiser: noise schedules, Karras preconditioning, its loss, three deterministic samplers.

A noisy x_t = alpha(t) x0 + sigma(t) eps, t in [0, 1]. Sources: Karras et al. 2022 (EDM, arXiv 2206.00364), Song et al.
2020 (DDIM, 2010.02502), Lu et al. 2022 (DPM-Solver++, 2211.01095), Ho and Salimans 2022 (guidance, 2207.12598); the
variance-preserving constants are those of the published EO-VAE super-resolution (its specification, section 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), t (B,)) -> estimate of x0, (B, C, H, W)."""
Project = Callable[[Tensor, Tensor], Tensor]
"""(estimate of x0, t (B,)) -> estimate of x0: what blends tiles or makes the estimate agree with a measurement."""
METHODS = ("ddim", "heun", "dpmpp")


class Schedule(Protocol):
    """How much signal and noise there is at time t in [0, 1]; 0 is clean. float32 or float64 in, the same out."""

    @property
    def name(self) -> str: ...

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Spread of the noise, never 0."""
        ...

    def time_of(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha is `ratio`; beyond the schedule's ends, the end."""
        ...

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float64 from 1 to 0. Samplers take the last as no noise at all, whatever sigma(0) is."""
        ...

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) float32 times to train at, on the generator's device."""
        ...


@dataclass(frozen=True, slots=True)
class VariancePreserving:
    """alpha = exp(log(alpha_min) t^2), sigma = sqrt(1 - alpha^2 + sigma_min^2), t ~ U(0, 1): as published."""

    alpha_min: float = 1e-3
    sigma_min: float = 1e-3

    @property
    def name(self) -> str:
        return "vp"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(math.log(self.alpha_min) * t.square())

    def sigma(self, t: Tensor) -> Tensor:
        # expm1: near t = 0 the difference 1 - alpha^2 has no digits left in fp32.
        return torch.sqrt(-torch.expm1(2 * math.log(self.alpha_min) * t.square()) + self.sigma_min**2)

    def time_of(self, ratio: Tensor) -> Tensor:
        # alpha^2 (1 + ratio^2) = 1 + sigma_min^2.
        twice_log_alpha = math.log1p(self.sigma_min**2) - torch.log1p(ratio.square())
        return torch.sqrt((twice_log_alpha / (2 * math.log(self.alpha_min))).clamp(0, 1))

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, _checked(steps) + 1, dtype=torch.float64)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator, device=generator.device)


@dataclass(frozen=True, slots=True)
class Karras:
    """EDM: alpha = 1, sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho (equation 5).

    Trained at log sigma ~ N(log_mean, log_spread^2) (table 1). Data are taken to have unit spread.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    log_mean: float = -1.2
    log_spread: float = 1.2

    @property
    def name(self) -> str:
        return "edm"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        low, high = self._ends()
        return (low + t * (high - low)).pow(self.rho)

    def time_of(self, ratio: Tensor) -> Tensor:
        low, high = self._ends()
        return ((ratio.pow(1 / self.rho) - low) / (high - low)).clamp(0, 1)

    def times(self, steps: int) -> Tensor:
        # As in the paper: `steps` values down to sigma_min, then no noise (whose time, like sigma_min's, is 0).
        zero = torch.zeros(1, dtype=torch.float64)
        return torch.cat([torch.linspace(1, 0, _checked(steps), dtype=torch.float64), zero])

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(n, generator=generator, device=generator.device)
        return self.time_of(torch.exp(self.log_mean + self.log_spread * normal))

    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


def schedule_named(name: str) -> Schedule:
    """The schedule called "vp" (as published) or "edm"; ValueError for any other name."""
    if name == "vp":
        return VariancePreserving()
    if name == "edm":
        return Karras()
    raise ValueError(f"no noise schedule is called {name!r}: choose vp or edm")


def even_times(schedule: Schedule, steps: int, *, high: float = 20.0, low: float = 0.1, rho: float = 7.0) -> Tensor:
    """(steps + 1,) float64 times at which sigma / alpha goes from `high` to `low` as in EDM (equation 5), then 0.

    For `sample(times=)` at few steps, where the even times of "vp" leave too much to the last one: "dpmpp" on Gaussian
    data of variances 0.25 to 2 misses their covariance by 0.15 rather than 0.28 in 8 steps, 0.15 rather than 0.97 in 4.
    `high` misses the data's mean by mean / high: 20 is for data whose mean is near 0. ValueError unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"noise ratios from {high} down to {low}: give 0 < low < high")
    ramp = torch.linspace(1, 0, _checked(steps), dtype=torch.float64)
    ratio = (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    return torch.cat([schedule.time_of(ratio), torch.zeros(1, dtype=torch.float64)])


def _checked(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"{steps} diffusion steps: choose 1 or more")
    return steps


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What a raw network is scaled by, each of the shape of alpha and sigma."""

    c_in: Tensor
    c_out: Tensor
    c_skip: Tensor
    c_noise: Tensor
    weight: Tensor


def preconditioning(alpha: Tensor, sigma: Tensor) -> Coefficients:
    """Karras et al. table 1 for data of unit spread, generalised to a scaled signal, as published (section 13).

    c_in = 1 / sqrt(alpha^2 + sigma^2), c_out = sigma c_in, c_skip = alpha c_in^2, c_noise = log(sigma / alpha),
    weight = (alpha / sigma)^2 + 1 = 1 / c_out^2. At alpha = 1 all but c_noise (there log(sigma) / 4) are EDM's own.
    """
    c_in = torch.rsqrt(alpha.square() + sigma.square())
    return Coefficients(
        c_in=c_in, c_out=sigma * c_in, c_skip=alpha * c_in.square(), c_noise=torch.log(sigma / alpha),
        weight=(alpha / sigma).square() + 1,
    )  # fmt: skip


def precondition(net: Callable[[Tensor, Tensor], Tensor], schedule: Schedule) -> Denoiser:
    """D(x, t) = c_skip x + c_out F(c_in x, c_noise) of a raw network F(x (B, C, H, W), noise level (B,)).

    The sums are done in x's dtype, whatever dtype the network answers in (autocast).
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        c = preconditioning(schedule.alpha(t), schedule.sigma(t))
        raw = net(_over(c.c_in, x) * x, c.c_noise.to(x.dtype)).to(x.dtype)
        return _over(c.c_skip, x) * x + _over(c.c_out, x) * raw

    return denoise


def _over(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) of x's dtype, to be multiplied with x."""
    return values.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def draw_times(schedule: Schedule, n: int, generator: torch.Generator) -> Tensor:
    """(n,) float32 times to train at, on the generator's device: vp uniform, edm log-normal in sigma."""
    return schedule.draw(n, generator)


def diffusion_loss(
    denoiser: Denoiser, schedule: Schedule, x0: Tensor, generator: torch.Generator, t: Tensor | None = None,
    weight_cap: float | None = None,
) -> Tensor:  # fmt: skip
    """(B,): mean over channels and pixels of weight * |D(alpha x0 + sigma eps, t) - x0|^2.

    Args:
        denoiser: as `precondition` makes it.
        schedule: the one that the denoiser knows.
        x0: clean data (B, C, H, W), unit spread.
        generator: draws the times, then the noise, on its own device.
        t: times (B,) to use in place of drawn ones.
        weight_cap: upper bound of the weight (1e6 at t = 0); None as published.
    """
    if t is None:
        t = draw_times(schedule, len(x0), generator)
    t = t.to(x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype).to(x0.device)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    weight = preconditioning(alpha, sigma).weight
    if weight_cap is not None:
        weight = weight.clamp(max=weight_cap)
    error = denoiser(_over(alpha, x0) * x0 + _over(sigma, x0) * noise, t) - x0
    return weight * error.square().flatten(1).mean(1)


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional).

    Scale 0 is the unconditional denoiser itself, 1 the conditional one; the other is then never asked.
    """
    if scale == 0:
        return unconditional
    if scale == 1:
        return conditional

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        plain = unconditional(x, t)
        return plain + scale * (conditional(x, t) - plain)

    return denoise


@torch.no_grad()
def sample(
    denoiser: Denoiser, start_noise: Tensor, schedule: Schedule, *, steps: int, method: str = "ddim",
    project: Project | None = None, times: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Data (B, C, H, W) from standard normal noise of that shape; nothing else is random.

    All three walk the probability flow of x / alpha against r = sigma / alpha: "ddim" by Euler steps (DDIM at eta 0),
    "heun" by trapezoids (EDM algorithm 1 without churn; 2 * steps - 1 evaluations), "dpmpp" by DPM-Solver++(2M)
    (algorithm 2). The last step lands on the (projected) estimate itself; the published sampler leaves a thousandth of
    the noise in it.

    Args:
        denoiser: estimates x0.
        start_noise: standard normal; scaled here by sqrt(alpha^2 + sigma^2) at the first time, as published.
        schedule: the one that the denoiser knows.
        steps: how many steps; ignored for `times`.
        method: one of METHODS.
        project: applied to every estimate before it is used.
        times: (steps + 1,) falling times to walk instead of `schedule.times(steps)`; the last stands for no noise.

    Raises:
        ValueError: an unknown method, no step, or times that do not fall.
    """
    if method not in METHODS:
        raise ValueError(f"no sampler is called {method!r}: choose one of {', '.join(METHODS)}")
    walk = (schedule.times(steps) if times is None else times).double()
    if len(walk) < 2 or not bool((walk[:-1].diff() < 0).all()):
        raise ValueError("times of a sampler must fall from noisy to clean, two or more of them")
    alphas, ratios = schedule.alpha(walk), schedule.sigma(walk) / schedule.alpha(walk)
    alpha, ratio = alphas.tolist(), ratios.tolist()
    calls = walk.to(start_noise)

    def estimate(scaled: Tensor, i: int) -> Tensor:
        t = calls[i].expand(len(scaled))
        clean = denoiser(alpha[i] * scaled, t)
        return clean if project is None else project(clean, t)

    # x / alpha of the start: sqrt(alpha^2 + sigma^2) / alpha = sqrt(1 + r^2).
    x = start_noise * math.sqrt(1 + ratio[0] ** 2)
    before: Tensor | None = None
    for i in range(len(walk) - 2):
        keep = ratio[i + 1] / ratio[i]
        clean = estimate(x, i)
        if method == "heun":
            ahead = torch.lerp(clean, x, keep)
            slope, then = (x - clean) / ratio[i], (ahead - estimate(ahead, i + 1)) / ratio[i + 1]
            x = ahead + (ratio[i + 1] - ratio[i]) / 2 * (then - slope)
        elif method == "dpmpp" and before is not None:
            # With h = log(r_i / r_(i+1)): D = (1 + h / 2 h') D_i - h / 2 h' D_(i-1), h' the step before.
            share = math.log(keep) / (2 * math.log(ratio[i] / ratio[i - 1]))
            x = torch.lerp(clean + share * (clean - before), x, keep)
        else:
            x = torch.lerp(clean, x, keep)
        before = clean
    return estimate(x, len(walk) - 2)
