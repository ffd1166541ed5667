"""Diffusion: schedules, preconditioning, loss and guidance against hand calculations; what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.diffusion import (
    Karras,
    VariancePreserving,
    diffusion_loss,
    draw_times,
    even_times,
    guided,
    precondition,
    preconditioning,
    sample,
    schedule_named,
)

NAMES = ("vp", "edm")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def zeros(x: Tensor, level: Tensor) -> Tensor:
    """A raw network that answers nothing."""
    return torch.zeros_like(x)


# Schedules


def test_published_schedule_keeps_the_variance() -> None:
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    schedule = VariancePreserving()
    total = schedule.alpha(t).square() + schedule.sigma(t).square()
    torch.testing.assert_close(total, torch.full_like(t, 1 + 1e-6), rtol=0, atol=1e-14)


def test_published_schedule_by_hand() -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    schedule = VariancePreserving()
    # exp(log(1e-3) / 4) = 1000^(-1/4), its square 1000^(-1/2).
    alpha = torch.tensor([1.0, 1000**-0.25, 1e-3], dtype=torch.float64)
    sigma = torch.tensor([1e-3, math.sqrt(1 - 1000**-0.5 + 1e-6), 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t), alpha)
    torch.testing.assert_close(schedule.sigma(t), sigma)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_keeps_its_digits_at_small_times(name: str) -> None:
    schedule = schedule_named(name)
    t = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 200)])
    for scale in (schedule.alpha, schedule.sigma):
        assert scale(t).dtype == torch.float32
        torch.testing.assert_close(scale(t).double(), scale(t.double()), rtol=2e-6, atol=0)


def test_edm_schedule_by_hand() -> None:
    schedule = Karras()
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    torch.testing.assert_close(schedule.sigma(t), torch.tensor([0.002, middle, 80.0], dtype=torch.float64))
    assert schedule.alpha(t).tolist() == [1, 1, 1]


def test_edm_walks_the_papers_steps() -> None:
    """Equation 5 at N = 5: sigma_i for i < N, then no noise."""
    sigma = Karras().sigma(Karras().times(5))[:-1]
    paper = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    torch.testing.assert_close(sigma, torch.tensor(paper, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_times_fall_from_one_to_zero(name: str, steps: int) -> None:
    times = schedule_named(name).times(steps)
    assert times.shape == (steps + 1,) and times[0] == 1 and times[-1] == 0
    assert bool((times[:-1].diff() < 0).all())


def test_published_times_are_even() -> None:
    torch.testing.assert_close(VariancePreserving().times(50).diff(), torch.full((50,), -0.02, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_time_of_undoes_the_ratio_and_stops_at_the_ends(name: str) -> None:
    schedule = schedule_named(name)
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    torch.testing.assert_close(schedule.time_of(schedule.sigma(t) / schedule.alpha(t)), t, rtol=1e-9, atol=1e-9)
    assert schedule.time_of(torch.tensor([1e-9, 1e9], dtype=torch.float64)).tolist() == [0, 1]


@pytest.mark.parametrize("name", NAMES)
def test_even_times_give_the_ratios_asked_for(name: str) -> None:
    schedule = schedule_named(name)
    times = even_times(schedule, 6, high=40, low=0.05)
    ratio = (schedule.sigma(times) / schedule.alpha(times))[:-1]
    torch.testing.assert_close(ratio[[0, -1]], torch.tensor([40, 0.05], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close((ratio ** (1 / 7)).diff().diff(), torch.zeros(4, dtype=torch.float64), atol=1e-7, rtol=0)
    assert times.shape == (7,) and times[-1] == 0


def test_drawn_times_follow_their_laws() -> None:
    n = 100_000
    uniform = draw_times(VariancePreserving(), n, torch.Generator().manual_seed(0)).sort().values
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed once in a thousand.
    assert (uniform - torch.linspace(0, 1, n)).abs().max() < 1.95 / math.sqrt(n)
    edm = Karras()
    logs = edm.sigma(draw_times(edm, n, torch.Generator().manual_seed(0))).log()
    # Clipped at 0.002 and 80, which are four spreads away.
    assert abs(logs.mean().item() + 1.2) < 0.02 and abs(logs.std().item() - 1.2) < 0.02


# Preconditioning and loss


def test_coefficients_by_hand() -> None:
    """alpha 0.6, sigma 0.8: the root of the sum of squares is 1. alpha 1, sigma 2: it is sqrt 5."""
    c = preconditioning(torch.tensor([0.6, 1.0]), torch.tensor([0.8, 2.0]))
    root = math.sqrt(5)
    torch.testing.assert_close(c.c_in, torch.tensor([1.0, 1 / root]))
    torch.testing.assert_close(c.c_out, torch.tensor([0.8, 2 / root]))
    torch.testing.assert_close(c.c_skip, torch.tensor([0.6, 1 / 5]))
    torch.testing.assert_close(c.c_noise, torch.tensor([math.log(4 / 3), math.log(2)]))
    torch.testing.assert_close(c.weight, torch.tensor([0.5625 + 1, 1.25]))


def test_edm_coefficients_are_the_papers() -> None:
    """Table 1 at sigma_data = 1."""
    sigma = torch.logspace(-2.5, 1.9, 50, dtype=torch.float64)
    c = preconditioning(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(c.c_skip, 1 / (sigma**2 + 1))
    torch.testing.assert_close(c.c_out, sigma / (1 + sigma**2).sqrt())
    torch.testing.assert_close(c.c_in, 1 / (sigma**2 + 1).sqrt())
    torch.testing.assert_close(c.c_noise / 4, sigma.log() / 4)
    torch.testing.assert_close(c.weight, (sigma**2 + 1) / sigma**2)


@pytest.mark.parametrize("name", NAMES)
def test_weight_makes_the_networks_own_error_count_one(name: str) -> None:
    schedule = schedule_named(name)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c = preconditioning(alpha, sigma)
    torch.testing.assert_close(c.weight * c.c_out.square(), torch.ones_like(t))
    torch.testing.assert_close(c.weight, (alpha.square() + sigma.square()) / sigma.square())
    # Input and target of the network have unit spread for data of unit spread.
    torch.testing.assert_close(c.c_in.square() * (alpha.square() + sigma.square()), torch.ones_like(t))
    target = ((1 - c.c_skip * alpha).square() + (c.c_skip * sigma).square()) / c.c_out.square()
    torch.testing.assert_close(target, torch.ones_like(t), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_precondition_wires_the_network(name: str) -> None:
    schedule, seen = schedule_named(name), []

    def net(x: Tensor, level: Tensor) -> Tensor:
        seen.append((x, level))
        return (2 * x).bfloat16()

    x, t = noise(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    answer = precondition(net, schedule)(x, t)
    c = preconditioning(schedule.alpha(t), schedule.sigma(t))
    ((scaled, level),) = seen
    torch.testing.assert_close(scaled, c.c_in[:, None, None, None] * x)
    torch.testing.assert_close(level, c.c_noise)
    raw = (2 * scaled).bfloat16().float()
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, c.c_skip[:, None, None, None] * x + c.c_out[:, None, None, None] * raw)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_that_of_the_network_on_its_own_target(name: str) -> None:
    """weight |D - x0|^2 = |F - (x0 - c_skip x) / c_out|^2."""
    schedule, x0, t = schedule_named(name), noise(4, 3, 5, 5, dtype=torch.float64), torch.tensor([0.05, 0.3, 0.6, 1.0])
    t = t.double()
    loss = diffusion_loss(precondition(bent, schedule), schedule, x0, torch.Generator().manual_seed(7), t)
    alpha, sigma = (scale(t)[:, None, None, None] for scale in (schedule.alpha, schedule.sigma))
    c = preconditioning(alpha, sigma)
    x = alpha * x0 + sigma * noise(4, 3, 5, 5, seed=7, dtype=torch.float64)
    error = bent(c.c_in * x, c.c_noise.flatten()) - (x0 - c.c_skip * x) / c.c_out
    torch.testing.assert_close(loss, error.square().mean((1, 2, 3)))


def bent(x: Tensor, level: Tensor) -> Tensor:
    """A raw network of noise level and input."""
    return torch.tanh(x) + level[:, None, None, None] / 9


@pytest.mark.parametrize("name", NAMES)
def test_fresh_network_on_unit_data_loses_one_at_every_time(name: str) -> None:
    schedule = schedule_named(name)
    t = torch.linspace(0, 1, 9)
    loss = diffusion_loss(precondition(zeros, schedule), schedule, noise(9, 4, 64, 64), torch.Generator(), t)
    torch.testing.assert_close(loss, torch.ones(9), rtol=0.05, atol=0)


def test_weight_cap_holds_the_loss_where_the_weight_is_more() -> None:
    schedule, x0 = VariancePreserving(), noise(2, 2, 4, 4)
    t = torch.tensor([0.0, 1.0])

    def loss(cap: float | None) -> Tensor:
        return diffusion_loss(lambda x, t: x + 1, schedule, x0, torch.Generator().manual_seed(0), t, cap)

    free, capped = loss(None), loss(1e4)
    torch.testing.assert_close(capped, torch.stack([free[0] * 1e4 / (1e6 + 1), free[1]]))


@pytest.mark.parametrize("name", NAMES)
def test_loss_follows_its_generator(name: str) -> None:
    schedule, x0 = schedule_named(name), noise(3, 2, 8, 8)
    losses = [
        diffusion_loss(precondition(bent, schedule), schedule, x0, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("name", NAMES)
def test_time_zero_is_finite_in_single_precision(name: str) -> None:
    schedule, t = schedule_named(name), torch.zeros(2)
    smallest = {"vp": 1e-3, "edm": 2e-3}[name]
    torch.testing.assert_close(schedule.sigma(t), torch.full((2,), smallest))
    x = noise(2, 3, 4, 4).requires_grad_()
    estimate = precondition(bent, schedule)(x, t)
    (slope,) = torch.autograd.grad(estimate.sum(), x)
    loss = diffusion_loss(precondition(bent, schedule), schedule, x.detach(), torch.Generator(), t)
    assert all(bool(v.isfinite().all()) for v in (estimate, slope, loss))
    assert (estimate - x).abs().max() < 5 * smallest


# Guidance


def test_guidance_scales() -> None:
    def seen(x: Tensor, t: Tensor) -> Tensor:
        return 3 * x

    def blind(x: Tensor, t: Tensor) -> Tensor:
        return x - t[:, None, None, None]

    x, t = noise(2, 1, 4, 4), torch.tensor([0.2, 0.7])
    assert torch.equal(guided(seen, blind, 0)(x, t), blind(x, t))
    assert torch.equal(guided(seen, blind, 1)(x, t), seen(x, t))
    torch.testing.assert_close(guided(seen, blind, 2.5)(x, t), 2.5 * seen(x, t) - 1.5 * blind(x, t))
    # Two denoisers that agree are not changed.
    torch.testing.assert_close(guided(seen, seen, 7)(x, t), seen(x, t))


@pytest.mark.parametrize("scale", [0, 1])
def test_guidance_asks_one_network_where_one_is_enough(scale: int) -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("asked")

    def one(x: Tensor, t: Tensor) -> Tensor:
        return x

    pair = (one, never) if scale else (never, one)
    assert torch.equal(guided(*pair, scale)(torch.ones(1), torch.zeros(1)), torch.ones(1))


# What is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: schedule_named("cosine"), "choose vp or edm"),
        (lambda: VariancePreserving().times(0), "choose 1 or more"),
        (lambda: even_times(Karras(), 0), "choose 1 or more"),
        (lambda: even_times(Karras(), 4, high=0.1, low=0.2), "0 < low < high"),
        (lambda: sample(zeros, torch.ones(1, 1, 1, 1), Karras(), steps=4, method="euler"), "ddim, heun, dpmpp"),
        (lambda: sample(zeros, torch.ones(1, 1, 1, 1), Karras(), steps=0), "choose 1 or more"),
        (
            lambda: sample(zeros, torch.ones(1, 1, 1, 1), Karras(), steps=2, times=torch.tensor([0.5, 0.5, 0.0])),
            "must fall",
        ),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
