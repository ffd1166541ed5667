"""Two workers over gloo give the run of one worker with the same batch: DDP, FSDP2, and a resumption across both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model.eo_vae import EOVAE
from model.training.checkpoint import Store, read_snapshot, write_snapshot
from model.training.distributed import Team
from model.training.tracking import Tracker, read_history
from tests.model.training.batches import TINY, Random, looped, recipe

EXTRA: dict[str, Any] = {"steps": 5, "sample": True, "latent_noise": 0.1, "lr": 1e-4}


def _run(url: str, strategy: str, *, resume: str = "") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    team = Team.here(strategy)
    how = recipe(EXTRA, division="slices", ema=0.9)
    tracker = Tracker(url, "run") if team.leads else None
    loop = looped(EOVAE(TINY), how, Random(3, mixed=True), team, tracker=tracker)
    if resume:
        with Store(resume).restore() as folder:
            assert folder is not None
            loop.resume(read_snapshot(folder, team.rank, sliced=True))
    averaged = loop.run()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    snapshot = loop.snapshot(None, scaler)
    if team.leads:
        torch.save(averaged.state_dict(), f"{url}.pt")
        Store(url).save(lambda folder: write_snapshot(folder, snapshot, 0), loop.at.total, {})
    if tracker is not None:
        tracker.close()


def _worker(rank: int, meeting: str, url: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for strategy in ("ddp", "fsdp"):
        _run(f"{url}-{strategy}", strategy)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_equal_one(tmp_path: Path) -> None:
    """Float32. The order of sums differs, and Adam makes whole steps of gradients that are only rounding: losses and
    gradient norms agree to 1e-4, averaged weights to 2 % of the rate's five steps."""
    url = str(tmp_path / "run")
    _run(f"{url}-one", "ddp")
    mp.spawn(_worker, (str(tmp_path / "meeting"), url), nprocs=2)
    one = read_history(f"{url}-one")
    weights = torch.load(f"{url}-one.pt", weights_only=True)
    for strategy in ("ddp", "fsdp"):
        two = read_history(f"{url}-{strategy}")
        assert [line["step"] for line in two] == [1, 2, 3, 4, 5]
        for a, b in zip(one, two, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4), strategy
            assert b["norm"] == pytest.approx(a["norm"], rel=1e-3), strategy
        shared = torch.load(f"{url}-{strategy}.pt", weights_only=True)
        assert list(shared) == list(weights)
        apart = torch.cat([(shared[k] - v).flatten() for k, v in weights.items() if v.is_floating_point()])
        assert float(apart.square().mean().sqrt()) < 0.02 * 5 * 1e-4, strategy
    # what two wrote, one goes on from: the number of workers is no part of a run in slices
    torch.manual_seed(1)
    loop = looped(EOVAE(TINY), recipe(EXTRA, division="slices", ema=0.9), Random(3, mixed=True))
    with Store(f"{url}-ddp").restore() as folder:
        assert folder is not None
        loop.resume(read_snapshot(folder, 0, sliced=True))
    assert loop.at.total == 5


def test_shares_of_workers_make_one_batch() -> None:
    how = recipe({"batch": 8, "accumulate": 2}, division="shares")
    loop = looped(EOVAE(TINY), how, Random(), Team(1, 2))
    batch, rows = loop._draw(how.stages[0])
    assert len(batch.x) == 2 and rows == slice(0, 2)
    loop = looped(EOVAE(TINY), replace(how, division="slices"), Random(), Team(1, 2))
    batch, rows = loop._draw(how.stages[0])
    assert len(batch.x) == 4 and rows == slice(2, 4)


def test_a_run_of_other_workers_is_named(tmp_path: Path) -> None:
    loop = looped(EOVAE(TINY), recipe(), Random())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    write_snapshot(tmp_path, loop.snapshot(None, scaler), 0)
    with pytest.raises(ValueError, match="of 1 workers"):
        read_snapshot(tmp_path, 1, sliced=False)
    assert read_snapshot(tmp_path, 1, sliced=True).shared["position"]["total"] == 0
