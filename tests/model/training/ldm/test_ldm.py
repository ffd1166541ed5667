"""The closed-form start, the losses, the source and the figures of super-resolution, on data made by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.diffusion import preconditioning
from model.super_resolution import SRConfig, SRMeta, SuperResolver, load_sr
from model.training.ldm.flux2 import Flux2
from model.training.ldm.pairs import HeldRows, PairBatch, PairSource, row_weights
from model.training.ldm.recipe import SRRecipe, SRStage
from model.training.ldm.start import batches, solve
from model.training.ldm.task import Losses, SRTask
from model.training.ldm.train import SRData, settle, train_sr
from model.training.ldm.validation import HeldOut, Judge, with_margin
from model.training.loop import Loop
from model.unet import UNetConfig
from model.wald import degrade

MTF = (0.3, 0.3)


def recipe(**changes: object) -> SRRecipe:
    unet = UNetConfig(2, 2, (8,), (1,), condition=2)
    network = SRConfig(unet, channels=2, scale=2, space="pixel", trunk=8, trunk_blocks=1, features=2, amplitude=False)
    stage = SRStage("all", batch=8, steps=40, optimiser="adamw", lr=3e-3, warmup=5)
    values = {"network": network, "stages": (stage,), "precision": "fp32", "ema": 0.9, "ridge": 1e-6,
              "whiten": "channels", "evaluate_minutes": 60.0}  # fmt: skip
    return SRRecipe(**(values | changes))  # type: ignore[arg-type]


def pairs(count: int, seed: int, side: int = 8) -> PairBatch:
    """Fine images whose means over 2x2 are the coarse ones, with a detail that follows from the coarse in part."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(count, 2, side, side, generator=generator)
    high = F.interpolate(low, scale_factor=2, mode="nearest")
    pattern = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(side, side)
    coupled = 0.5 * high.roll(1, 1) * pattern
    return PairBatch(low, high + coupled + 0.1 * torch.randn(high.shape, generator=generator))


def rows(*sizes: tuple[str, int, PairBatch]) -> HeldRows:
    groups = {side: batch for _, side, batch in sizes}
    places = tuple(place for place, _, batch in sizes for _ in range(len(batch)))
    return HeldRows(places, tuple(side for _, side, batch in sizes for _ in range(len(batch))), groups)


def test_the_start_is_the_regression_that_made_the_data() -> None:
    data = pairs(64, 0)
    net = SuperResolver(recipe().network)
    solve(net, rows(("a", 16, data)), recipe(), None, ())
    left = net.linear(net.normalised(data.condition))
    assert left is not None
    error = (data.target - left).square().mean()
    assert float(error) == pytest.approx(0.01, rel=0.1)  # the noise, which nothing explains
    white = net.white.into(data.target - left)
    assert torch.allclose(white.mean((0, 2, 3)), torch.zeros(2), atol=1e-3)
    assert torch.allclose(white.var((0, 2, 3)), torch.ones(2), rtol=1e-2)
    assert torch.allclose(net.normalised(data.condition).std((0, 2, 3)), torch.ones(2), rtol=1e-2)


def test_the_amplitude_follows_the_contrast() -> None:
    """Ground of a tenth of the contrast leaves a tenth of the residual; measured by it both are alike."""
    loud = pairs(32, 0)
    quiet = PairBatch(0.1 * loud.condition, 0.1 * loud.target)
    made = recipe(network=replace(recipe().network, amplitude=True))
    net = SuperResolver(made.network)
    held = rows(("loud", 16, loud), ("quiet", 17, quiet))
    solve(net, held, made, None, ())
    assert net.amplitude is not None
    found = {}
    for name, batch in (("loud", loud), ("quiet", quiet)):
        given = net.normalised(batch.condition)
        linear, spread = net.linear(given), net.spread(given)
        assert linear is not None and spread is not None
        found[name] = float((net.white.into(batch.target - linear) / spread).square().mean())
    assert found["loud"] == pytest.approx(1, abs=0.4) and found["quiet"] == pytest.approx(1, abs=0.4)
    (one, energy), (other, less) = (net.amplitude.relative(net.normalised(b.condition)) for b in (loud, quiet))
    assert torch.allclose(one, other, atol=0.2)
    assert torch.allclose(energy - less, torch.full_like(energy, 2 * math.log(10)), atol=0.1)


def test_statistics_of_the_target_as_published() -> None:
    data = pairs(16, 0)
    net = SuperResolver(recipe().network)
    solve(net, rows(("a", 16, data)), recipe(hr_statistics=True), None, ())
    assert torch.allclose(net.condition_std, data.target.permute(1, 0, 2, 3).flatten(1).std(1), rtol=1e-2)


def test_losses_by_hand() -> None:
    made = recipe(weight_cap=3.0)
    data = pairs(4, 1)
    net = SuperResolver(made.network)
    solve(net, rows(("a", 16, data)), made, None, ())
    net.white.cost.copy_(torch.tensor([1.5, 0.5]))
    losses = Losses(net, replace(made, cost_power=0.0))
    t, noise = torch.tensor([0.2, 0.5, 0.8, 1.0]), torch.randn(data.target.shape)
    with torch.no_grad():
        mean, diffusion = losses(data.condition, data.target, t, noise)
        base = net.linear(net.normalised(data.condition))
        assert base is not None
        x0 = net.white.into(data.target - base)
        # fresh: the trunk says 0, the U-Net 0, so the denoiser answers c_skip x
        c = preconditioning(net.schedule.alpha(t), net.schedule.sigma(t))
        x = net.schedule.alpha(t)[:, None, None, None] * x0 + net.schedule.sigma(t)[:, None, None, None] * noise
        wanted = c.weight.clamp(max=3.0) * (c.c_skip[:, None, None, None] * x - x0).square().mean((1, 2, 3))
        assert torch.allclose(diffusion, wanted, rtol=1e-4)
        costs = (x0.square().mean((2, 3)) * torch.tensor([1.5, 0.5])).mean(1)
        assert torch.allclose(mean, costs, rtol=1e-4)
        assert torch.equal(losses(data.condition, data.target, None, None)[1], torch.zeros(4))


def test_stages_train_what_they_name() -> None:
    made = recipe()
    data = pairs(16, 2)
    net = SuperResolver(made.network)
    solve(net, rows(("a", 16, data)), made, None, ())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    stage = replace(made.stages[0], steps=3, diffusion=0.0)
    Loop(SRTask(net, made), replace(made, stages=(stage,)), PairSource(rows(("a", 16, data)))).run()
    moved = {key.split(".")[0] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"trunk"}


def test_it_learns_and_judges_itself(tmp_path: Path) -> None:
    train, held = pairs(64, 3), pairs(8, 4)
    train, held = (  # beyond a linear base
        PairBatch(b.condition, b.target + F.interpolate(b.condition.abs(), scale_factor=2, mode="nearest"))
        for b in (train, held)
    )
    out = HeldOut("ground", held.condition, held.target, held.condition, held.target)
    judge = Judge([out], None, ("B04", "B03"), MTF, 2, steps=2, samples=2)
    made = recipe(stages=(replace(recipe().stages[0], steps=120, lr=1e-2),))
    data = SRData(rows(("a", 16, train)), judge, SRMeta("tiny", ("B04", "B03")))
    fresh = SuperResolver(made.network)
    solve(fresh, data.rows, made, None, ())
    net = train_sr(made, data, tmp_path / "tiny.safetensors")
    assert judge.score(net) < judge.score(fresh) - 0.5  # dB
    assert load_sr(tmp_path / "tiny.safetensors").meta is not None
    figures = judge.figures(net)["ground"]
    assert figures["one_step"]["psnr"] == pytest.approx(-judge.score(net))
    assert figures["one_step+"]["consistency"] < 1e-4
    assert judge.picture(net, out).shape == (16, 6 * 16, 3)


def test_the_mean_is_settled_by_what_is_held_out() -> None:
    held = pairs(8, 4)
    net = SuperResolver(recipe().network).eval().requires_grad_(False)
    solve(net, rows(("a", 16, pairs(32, 3))), recipe(), None, ())
    assert net.trunk is not None
    net.trunk.mean.weight.normal_(generator=torch.Generator().manual_seed(0))
    mean = net.mean(held.condition)
    linear = net.linear(net.normalised(held.condition))
    assert linear is not None
    part = mean - linear - net.white.out(torch.zeros_like(mean))
    # held out, the truth lies at 0.4 of what the trunk says, or against it
    for share, expected in ((0.4, 0.4), (-1.0, 0.0), (3.0, 1.0)):
        fresh = copy.deepcopy(net)
        truth = linear + net.white.out(torch.zeros_like(mean)) + share * part
        found = settle(fresh, [HeldOut("ground", held.condition, truth, held.condition, truth)])
        assert found == pytest.approx(expected, abs=1e-3)
        wanted = linear + net.white.out(torch.zeros_like(mean)) + expected * part
        assert torch.allclose(fresh.mean(held.condition), wanted, atol=1e-3)


def test_consistency_is_against_the_low_resolution() -> None:
    high = torch.rand(2, 2, 16, 16)
    low = degrade(high, MTF, 2)
    net = SuperResolver(recipe().network).eval()
    out = HeldOut("ground", low, high, low, high)
    judge = Judge([out], None, ("B04", "B03"), MTF, 2, steps=1, samples=2)
    table = judge.figures(net)["ground"]
    assert table["ceiling"]["consistency"] < 1e-6 and table["ceiling"]["psnr"] == float("inf")
    assert table["ceiling"]["sharpness"] == pytest.approx(1.0) and table["bicubic"]["sharpness"] < 0.5


def test_a_decoder_is_shown_mirrored_borders() -> None:
    seen: list[Tensor] = []

    def decode(z: Tensor) -> Tensor:
        seen.append(z)
        return F.interpolate(z, scale_factor=8, mode="nearest")

    z = torch.randn(1, 2, 3, 3)
    assert torch.equal(with_margin(decode)(z), F.interpolate(z, scale_factor=8, mode="nearest"))
    assert seen[0].shape == (1, 2, 7, 7)  # 2 cells are all that 3 can mirror


def test_batches_are_of_one_side_and_places_weigh_evenly() -> None:
    held = rows(("many", 16, pairs(90, 5)), ("few", 8, pairs(10, 6, side=4)))
    source = PairSource(held, seed=1, balance=1.0)
    sides = [source.draw(4, 1).target.shape[-1] for _ in range(200)]
    assert set(sides) == {16, 8} and 70 < sides.count(8) < 130
    coarse = HeldRows(held.places, held.sides, held.groups, tuple(10.0 if k % 2 else 40.0 for k in range(len(held))))
    halved = row_weights(coarse, 0.0, 0.25)
    assert halved[0] == 0.25 and halved[1] == 1 and (row_weights(coarse, 0.0) == 1).all()
    counted = [x for batch, _ in batches(coarse, recipe(coarser=0.0)) for x in batch.target]
    assert len(counted) == len(coarse) // 2
    plain = PairSource(held, seed=1, balance=0.0)
    assert [plain.draw(4, 1).target.shape[-1] for _ in range(200)].count(8) < 40


def test_the_source_resumes_to_the_pair() -> None:
    held = rows(("a", 16, pairs(12, 5)))
    one, other = PairSource(held, seed=1), PairSource(held, seed=1)
    for _ in range(3):
        one.draw(4, 1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.draw(4, 1).target, other.draw(4, 1).target)
    with pytest.raises(ValueError, match="trained on 12 pairs, this store has 5"):
        PairSource(rows(("a", 16, pairs(5, 5)))).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="no training pairs"):
        PairSource(HeldRows((), (), {}))
    shares = [PairSource(held, seed=1, share=(k, 2)).draw(4, 1).target for k in range(2)]
    assert not torch.equal(*shares)


def test_recipes() -> None:
    for name, count in (("sr_published", 10_999_776), ("sr_nano", None), ("sr_native", None), ("sr_pixel", None)):
        made = SRRecipe.load(name)
        with torch.device("meta"):
            found = sum(p.numel() for p in SuperResolver(made.network).parameters())
        assert count is None or found == count
        assert made.limited(steps=10).stages[-1].steps is not None
    nano = SRRecipe.load("sr_nano")
    assert sum(s.steps or 0 for s in nano.limited(steps=50).stages) == 50
    with pytest.raises(ValueError, match="one at least above 0"):
        SRStage("none", batch=1, steps=1, mean=0.0, diffusion=0.0)
    with pytest.raises(ValueError, match="choose cost or channels"):
        recipe(whiten="white")


def test_a_recipe_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: sr\nstages: []\n")
    with pytest.raises(ValueError, match="key 'network' is missing"):
        SRRecipe.load(tmp_path / "bad.yaml")


def test_flux2_says_what_it_needs(tmp_path: Path) -> None:
    try:
        import diffusers  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"eocube\[flux2\]"):
            Flux2.load(tmp_path)


class _Fake:
    """An autoencoder that folds 8x8 pixels and adds nothing."""

    class _Latent:
        def __init__(self, z: Tensor) -> None:
            self.latent_dist = self
            self.z = z

        def mode(self) -> Tensor:
            return self.z

    def encode(self, x: Tensor) -> _Latent:
        return self._Latent(F.avg_pool2d(x, 8))


def test_flux2_sees_pictures() -> None:
    encode = Flux2(_Fake()).encoder([0, 1, 2])
    x = torch.full((1, 4, 16, 16), 0.1)
    x[:, 1] = 0.9
    z = encode(x)
    assert z.shape == (1, 3, 2, 2)
    assert np.allclose(z[0, :, 0, 0], [-0.5, 1.0, -0.5])
