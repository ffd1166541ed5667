"""Training that asks the device for nothing between its readings: the same run, and steps left out unasked."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import backend_registration

from model.eo_vae import EOVAE
from model.training.distributed import Team, plain
from model.training.eo_vae.kernels import free_kernels
from model.training.optimiser import build_optimiser, step_unless
from model.training.ray_train import Run, RunError
from model.training.readings import Reading, Readings
from model.training.recipe import Stage
from tests.model.training.batches import RGB, TINY, Fixed, looped, recipe
from tests.model.training.test_loop import Notes
from tests.model.training.waits import Waits


def trained(read_every: int | None, stage: dict[str, Any], **more: Any) -> tuple[EOVAE, list[dict[str, float]], int]:
    torch.manual_seed(0)
    vae, notes = EOVAE(TINY), Notes()
    how = recipe(stage, **more)
    if how.free_kernels:
        free_kernels(vae, [RGB])
    batch = Fixed(how.stages[0].batch, how.stages[0].patch)
    loop = looped(vae, how, batch, tracker=notes, read_every=read_every)
    with Waits() as waits:
        loop.run()
    return vae, notes.lines, waits.count


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "muon"])
def test_between_readings_nobody_asks_and_the_run_is_the_same(optimiser: str) -> None:
    stage = {"optimiser": optimiser, "steps": 5, "accumulate": 2, "sample": True}
    how: dict[str, Any] = {"ema": 0.9, "free_kernels": optimiser == "muon"}  # as the nano recipe has it
    vae, lines, waits = trained(4, stage, **how)
    each, told, asked = trained(None, stage, **how)
    assert waits == 0 < asked
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for a, b in zip(lines, told, strict=True):
        assert a.keys() == b.keys() and a == pytest.approx(b, rel=1e-3)
    for a, b in zip(vae.parameters(), each.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)  # a fifth of the way that five steps go


def test_in_fp16_the_scale_alone_is_asked_for() -> None:
    stage = {"steps": 3, "optimiser": "muon", "batch": 1, "patch": 16}
    _, lines, waits = trained(100, stage, precision="fp16")
    assert len(lines) == 3 and waits == 2  # at the first reading and the last: GradScaler gives it as a number


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "muon"])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(optimiser: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": [m.weight for m in module], "muon": True}, {"params": [m.bias for m in module]}]
    if optimiser != "muon":
        groups = [{"params": list(module.parameters())}]
    made = build_optimiser(groups, Stage("s", batch=1, optimiser=optimiser, lr=0.1, steps=1), apart=True)

    def step(factor: float) -> dict[str, Any]:
        made.zero_grad()
        (module(torch.ones(1, 3)).square().sum() * factor).backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        step_unless(made, (~torch.isfinite(norm)).float())
        return {f"{k}.{name}": torch.as_tensor(v).clone() for k, s in made.state_dict()["state"].items()
                for name, v in s.items()} | {k: v.clone() for k, v in module.state_dict().items()}  # fmt: skip

    before, after, on = step(1.0), step(math.nan), step(1.0)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert all(not torch.equal(on[k], after[k]) for k in module.state_dict())


def test_the_average_stays_where_a_step_is_left_out() -> None:
    torch.manual_seed(0)
    vae = EOVAE(TINY)
    source = Fixed(4, 32)
    source.whole = replace(source.whole, x=source.whole.x * math.nan)
    loop = looped(vae, recipe({"steps": 3}, ema=0.9), source, read_every=10)
    start = [p.detach().clone() for p in vae.parameters()]
    averaged = loop.run()
    assert loop.average.seen == 0
    for network in (vae, averaged):
        assert all(torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))


def test_what_waits_is_read_in_its_order() -> None:
    readings = Readings(2)
    for total in (1, 2):
        assert not readings.due
        parts = ({"loss": torch.tensor(float(total)), "share": 0.5}, {"loss": torch.tensor(3.0), "share": 0.5})
        readings.add(Reading(total, "s", parts, torch.tensor(10.0 * total), 0.1))
    assert readings.due
    assert [(r.total, r.values, r.norm) for r in readings.take()] == [
        (1, {"loss": 2.0, "share": 0.5}, 10.0), (2, {"loss": 2.5, "share": 0.5}, 20.0),
    ]  # fmt: skip
    assert readings.take() == []


class Elsewhere(nn.Linear):
    """A layer that says that it lies on a GPU until it was moved."""

    moved = False

    def parameters(self, recurse: bool = True) -> Any:
        device = torch.device("cpu" if self.moved else "cuda")
        return iter([SimpleNamespace(device=device)])

    def cpu(self) -> Elsewhere:
        self.moved = True
        return self


def test_what_is_scored_lies_on_the_cpu_with_the_tiles() -> None:
    live = Elsewhere(2, 2)
    scored = plain(live)
    assert isinstance(scored, Elsewhere) and scored.moved and not live.moved and scored is not live
    assert plain(scored) is scored


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch knows none",
)
def test_whole_steps_stay_on_the_device() -> None:
    """In a process of its own: what torch is told of a made-up device stays."""
    script = Path(__file__).with_name("on_a_device.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu_steps_do_not_wait_and_the_average_comes_back(precision: str) -> None:
    torch.manual_seed(0)
    team, scored = Team(device=torch.device("cuda")), []
    how = recipe({"steps": 30, "optimiser": "muon", "sample": True}, precision=precision, ema=0.9)

    def judge(averaged: EOVAE, total: int) -> float:
        scored.append({p.device.type for p in averaged.parameters()})
        return 1.0

    notes = Notes()
    loop = looped(EOVAE(TINY), how, Fixed(4, 32), team, tracker=notes, judge=judge)
    averaged = loop.run()
    assert scored == [{"cpu"}] and all(bool(p.isfinite().all()) for p in averaged.parameters())
    losses = [line["loss"] for line in notes.lines if "loss" in line]
    assert len(losses) == 30 and losses[-1] < losses[0]
    module, stage = loop.task.module, how.stages[0]
    optimiser = build_optimiser(loop.task.parameter_groups(stage), stage, apart=True)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    loop._step(module, optimiser, scaler, stage, 0.5)  # what the optimiser keeps is made here
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop._step(module, optimiser, scaler, stage, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_gpu_without_ray_is_taken_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("a", str(tmp_path), workers=0, gpu=True)
    assert run.team() == Team(device=torch.device("cuda"))
    assert Run("a", str(tmp_path), workers=0).team() == Team()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="torch sees no GPU"):
        run.claim({})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run.claim({})
