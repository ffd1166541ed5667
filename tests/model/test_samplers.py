"""The three samplers: an oracle, Gaussian data of known mean and covariance, single steps by hand, projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model.diffusion import (
    METHODS,
    Denoiser,
    Karras,
    Schedule,
    VariancePreserving,
    even_times,
    precondition,
    sample,
    schedule_named,
)

NAMES = ("vp", "edm")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bent(x: Tensor, level: Tensor) -> Tensor:
    """A raw network of noise level and input."""
    return torch.tanh(x) + level[:, None, None, None] / 9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_oracle_recovers_the_data_along_a_straight_path(name: str, method: str, steps: int) -> None:
    """Knowing x0, every sampler keeps the noise of the start, only less and less of it, and ends at x0."""
    schedule = schedule_named(name)
    x0, start = noise(2, 3, 4, 4, dtype=torch.float64), noise(2, 3, 4, 4, seed=1, dtype=torch.float64)
    path: list[tuple[Tensor, Tensor]] = []

    def oracle(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (2,)
        path.append((x, t))
        return x0

    assert torch.equal(sample(oracle, start, schedule, steps=steps, method=method), x0)
    assert len(path) == (2 * steps - 1 if method == "heun" else steps)
    first, t = path[0]
    assert t.tolist() == [1, 1]
    eps = (first - schedule.alpha(t[0]) * x0) / schedule.sigma(t[0])
    for x, t in path:
        torch.testing.assert_close(x, schedule.alpha(t[0]) * x0 + schedule.sigma(t[0]) * eps, rtol=1e-9, atol=1e-9)
    assert torch.equal(sample(lambda x, t: x0.float(), start.float(), schedule, steps=steps, method=method), x0.float())


@pytest.mark.parametrize("name", NAMES)
def test_start_has_the_spread_of_the_noisiest_time(name: str) -> None:
    schedule, start, seen = schedule_named(name), noise(1, 2, 3, 3), []

    def watch(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return x

    sample(watch, start, schedule, steps=1)
    torch.testing.assert_close(seen[0], start * {"vp": math.sqrt(1 + 1e-6), "edm": math.sqrt(6401)}[name])


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, covariance) of n correlated channels; its ideal denoiser and the flow's exact end."""

    mean: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    def drawn(cls) -> Gaussian:
        directions = torch.linalg.qr(noise(4, 4, seed=3, dtype=torch.float64)).Q
        return cls(torch.tensor([0.5, -1, 0.2, 1.5]).double(), directions, torch.tensor([0.25, 0.6, 1.0, 2.0]).double())

    def matrix(self, values: Tensor) -> Tensor:
        return self.directions @ torch.diag(values) @ self.directions.T

    @property
    def covariance(self) -> Tensor:
        return self.matrix(self.variances)

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """E[x0 | x] = mean + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha mean)."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = schedule.alpha(t[0]).to(x), schedule.sigma(t[0]).to(x)
            share = self.matrix(alpha.double() * self.variances / (alpha**2 * self.variances + sigma**2)).to(x)
            mean = self.mean.to(x)[:, None, None]
            return mean + torch.einsum("ij,bjhw->bihw", share, x - alpha * mean)

        return denoise

    def end(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Mean and covariance that infinitely many steps give. Along a direction of variance v the probability flow is
        (x / alpha - mean) proportional to sqrt(v + r^2); it starts at sqrt(1 + r1^2) times standard normal noise."""
        one = torch.ones((), dtype=torch.float64)
        squared = (schedule.sigma(one) / schedule.alpha(one)) ** 2
        shrunk = self.variances / (self.variances + squared)
        return self.mean - self.matrix(shrunk.sqrt()) @ self.mean, self.matrix(shrunk * (1 + squared))

    def sampled(
        self, schedule: Schedule, method: str, steps: int, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Exact mean and covariance of a sampler's output: it is affine in the noise, so five noises tell all."""
        start = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double().reshape(5, 4, 1, 1)
        ends = sample(self.denoiser(schedule), start, schedule, steps=steps, method=method, times=times).flatten(1)
        linear = (ends[1:] - ends[0]).T
        return ends[0], linear @ linear.T

    def misses(self, schedule: Schedule, method: str, steps: int) -> tuple[float, float]:
        """Largest errors of mean and covariance against the exact end."""
        pairs = zip(self.sampled(schedule, method, steps), self.end(schedule), strict=True)
        mean, covariance = ((found - exact).abs().max().item() for found, exact in pairs)
        return mean, covariance


@pytest.mark.parametrize(("name", "mean", "covariance"), [("vp", 2e-3, 1e-5), ("edm", 2e-2, 3e-4)])
def test_flow_ends_at_the_data(name: str, mean: float, covariance: float) -> None:
    """The start knows nothing of the data's mean: it misses it by about mean sqrt(variance) / r1, r1 1000 or 80."""
    data = Gaussian.drawn()
    ends = data.end(schedule_named(name))
    torch.testing.assert_close(ends[0], data.mean, rtol=0, atol=mean)
    torch.testing.assert_close(ends[1], data.covariance, rtol=0, atol=covariance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2), ("dpmpp", 2)])
def test_gaussian_mean_and_covariance_are_met_as_steps_grow(name: str, method: str, order: int) -> None:
    """Twice the steps halve the error of a first-order method and quarter that of a second-order one."""
    data, schedule = Gaussian.drawn(), schedule_named(name)
    coarse, fine, finest = (data.misses(schedule, method, steps) for steps in (128, 256, 512))
    # 512 steps: variances of 0.25 to 2 within 0.02 by ddim, 0.001 by the others; means within 2e-4.
    assert finest[0] < 2e-4 and finest[1] < (0.02 if order == 1 else 1e-3)
    for before, after in ((coarse, fine), (fine, finest)):
        assert before[0] > after[0] and before[1] > after[1] * 2**order * 0.75


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [16, 32, 64])
def test_second_order_beats_ddim_at_equal_steps(name: str, steps: int) -> None:
    data, schedule = Gaussian.drawn(), schedule_named(name)
    plain, heun, dpmpp = (data.misses(schedule, method, steps)[1] for method in METHODS)
    assert heun < plain / 2 and dpmpp < plain / 2


@pytest.mark.parametrize("name", NAMES)
def test_few_even_times_beat_the_schedules_own(name: str) -> None:
    data, schedule = Gaussian.drawn(), schedule_named(name)
    for steps in (4, 8):
        _, even = data.sampled(schedule, "dpmpp", steps, even_times(schedule, steps))
        own = data.misses(schedule, "dpmpp", steps)[1]
        assert (even - data.covariance).abs().max() < 0.7 * own


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_many_noises_have_the_mean_and_covariance_of_the_data(name: str, method: str) -> None:
    """100 000 draws of four channels in single precision: 64 steps, entries within 0.03 (ddim 0.15)."""
    data, schedule = Gaussian.drawn(), schedule_named(name)
    start = noise(1000, 4, 10, 10, seed=5)
    drawn = sample(data.denoiser(schedule), start, schedule, steps=64, method=method)
    flat = drawn.movedim(1, 0).flatten(1).double()
    torch.testing.assert_close(flat.mean(1), data.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(flat), data.covariance, rtol=0, atol=0.15 if method == "ddim" else 0.03)


def test_exact_step_of_each_method_by_hand() -> None:
    """EDM, alpha 1, three times: r = 80, 4, 1 and none; a denoiser that halves."""
    schedule = Karras()
    ratio = torch.tensor([80.0, 4.0, 1.0], dtype=torch.float64)
    times = torch.cat([schedule.time_of(ratio), torch.zeros(1, dtype=torch.float64)])
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def run(method: str) -> float:
        return sample(lambda x, t: x / 2, start, schedule, steps=3, method=method, times=times).item()

    x0 = math.sqrt(6401)
    # DDIM: x + (r' - r) (x - D) / r, so each step keeps 1/2 + r' / 2r.
    x1 = x0 * (0.5 + 4 / 160)
    assert math.isclose(run("ddim"), x1 * (0.5 + 1 / 8) / 2, rel_tol=1e-9)
    # DPM-Solver++(2M): D = (1 + s) x1 / 2 - s x0 / 2 with s = log(4) / (2 log(20)).
    s = math.log(4) / (2 * math.log(20))
    assert math.isclose(run("dpmpp"), (x1 / 4 + 0.75 * ((1 + s) * x1 / 2 - s * x0 / 2)) / 2, rel_tol=1e-9)
    # Heun: x + (r' - r) / 2 ((x - D) / r + (x' - D') / r'), x' the DDIM step.
    y1 = x0 - 76 / 2 * (x0 / 160 + x1 / 8)
    y2 = y1 - 3 / 2 * (y1 / 8 + y1 * (0.5 + 1 / 8) / 2)
    assert math.isclose(run("heun"), y2 / 2, rel_tol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_the_noise_decides_all(name: str, method: str) -> None:
    schedule = schedule_named(name)
    denoiser = precondition(bent, schedule)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed + 100)  # the global generator has no say
        return sample(denoiser, noise(2, 2, 6, 6, seed=seed), schedule, steps=6, method=method)

    torch.manual_seed(0)
    again = sample(denoiser, noise(2, 2, 6, 6, seed=1), schedule, steps=6, method=method)
    assert torch.equal(run(1), again) and not torch.equal(run(2), again)


@pytest.mark.parametrize("method", METHODS)
def test_projection_is_asked_at_every_estimate_and_its_answer_is_used(method: str) -> None:
    schedule, calls = VariancePreserving(), []

    def project(estimate: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.full_like(estimate, 0.25)

    asked: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked.append(x)
        return 7 * x

    start = noise(2, 1, 3, 3, dtype=torch.float64)
    end = sample(denoise, start, schedule, steps=5, method=method, project=project)
    assert torch.equal(end, torch.full_like(end, 0.25))
    assert len(calls) == len(asked) == (9 if method == "heun" else 5)
    # As the oracle of 0.25 would have walked.
    plain: list[Tensor] = []

    def oracle(x: Tensor, t: Tensor) -> Tensor:
        plain.append(x)
        return torch.full_like(x, 0.25)

    sample(oracle, start, schedule, steps=5, method=method)
    for projected, expected in zip(asked, plain, strict=True):
        torch.testing.assert_close(projected, expected)


def test_a_linear_constraint_holds_exactly_at_the_end() -> None:
    """A projection onto images of mean 0.5 ends there, whatever the denoiser says."""
    schedule = VariancePreserving()

    def project(estimate: Tensor, t: Tensor) -> Tensor:
        return estimate - estimate.mean((2, 3), keepdim=True) + 0.5

    end = sample(precondition(bent, schedule), noise(2, 2, 4, 4), schedule, steps=8, method="dpmpp", project=project)
    torch.testing.assert_close(end.mean((2, 3)), torch.full((2, 2), 0.5))


def test_sampling_leaves_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    assert not sample(lambda x, t: weight * x, noise(1, 1, 2, 2), Karras(), steps=2).requires_grad
