"""What a recipe costs: FLOPs as torch counts them of a real step, arithmetic by hand, and where each figure is from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.eo_vae import EOVAE
from model.losses import charbonnier
from model.sensors import S2L2A
from model.training.eo_vae.cost import Assumptions, Cost, Timed, cost_of, distil_flops, step_flops, steps_of
from model.training.eo_vae.recipe import EOVAERecipe, EOVAEStage
from tests.model.training.batches import TINY

STAGE = EOVAEStage("s", steps=5, batch=4, patch=64, margin=0, loss={"charbonnier": 1.0})
RECIPE = EOVAERecipe((STAGE,), config=TINY, shards="train/[S2L2A]/x.tar", ema=0, precision="fp32")


def test_flops_are_those_of_a_real_step() -> None:
    vae, x = EOVAE(TINY), torch.randn(1, 12, 32, 32)
    with FlopCounterMode(display=False) as counter:
        charbonnier(vae.decode(vae.encode(x, S2L2A.wavelengths).mode(), S2L2A.wavelengths), x).backward()
    # attention without values is counted by its products, a CPU's fused one in part
    assert step_flops(TINY, STAGE, S2L2A, 1, 32) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_the_body_costs_by_the_patch_and_the_generators_once() -> None:
    one, two, three = (step_flops(TINY, STAGE, S2L2A, batch, 32) for batch in (1, 2, 3))
    assert three - two == two - one and 0 < distil_flops(TINY) < one
    structural = replace(STAGE, batch=1, patch=128, loss={"charbonnier": 1.0, "ms_ssim": 1.0})
    assert step_flops(TINY, structural, S2L2A, 1, 128) > step_flops(TINY, STAGE, S2L2A, 1, 128)


def test_money_by_hand() -> None:
    timed = Timed("a CPU", "bf16", 1, 64, 3, seconds=2.0, flops=4e11)
    cost = Cost("r", 1000, 10, 3.6e15, 0.0, 3.6e18, timed, Assumptions(8, 50.0, 2.0))
    assert timed.tflops == pytest.approx(0.2)
    assert cost.hours == pytest.approx(2.5) and cost.hours_here == pytest.approx(625)
    found = cost.to_dict()["derived"]
    assert found["gpu_hours"] == pytest.approx(20) and found["dollars"] == pytest.approx(40)
    assert "40 $" in cost.table() and "625 h" in cost.table()
    origins = {what: origin for what, _, origin in cost.rows()}
    assert origins["a step of 1 x 64 px"].startswith("measured here") and origins["money"].startswith("derived")
    assert origins["a GPU sustains"].startswith("assumed") and origins["FLOPs of a step"].startswith("counted")


def test_a_recipe_is_counted_at_its_own_size_and_timed_at_a_small_one() -> None:
    cost = cost_of("tiny", replace(RECIPE, precision="fp16"), 10, Assumptions(), torch.device("cpu"), steps=2)
    assert cost.steps == 5 and cost.step_flops == step_flops(TINY, STAGE, S2L2A, 4, 64)
    assert cost.flops == pytest.approx(5 * cost.step_flops + 10 * distil_flops(TINY))
    assert (cost.timed.batch, cost.timed.patch, cost.timed.precision) == (1, 64, "bf16") and cost.timed.seconds > 0


def test_steps_of_the_published_recipe() -> None:
    assert steps_of(EOVAERecipe.load("published").stages[0]) == 200_000
    with pytest.raises(ValueError, match="stage s has no number of steps: give --steps"):
        steps_of(EOVAEStage("s", minutes=5, batch=1))


def test_what_cannot_be_reckoned_is_said() -> None:
    with pytest.raises(ValueError, match="states no config or no shards"):
        cost_of("adapt", EOVAERecipe.load("adapt"), 1, Assumptions(), torch.device("cpu"))
    with pytest.raises(ValueError, match="tflops 0 must be above 0"):
        Assumptions(tflops=0)
