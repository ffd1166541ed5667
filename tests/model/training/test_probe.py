"""Another network on the same loop: a linear probe in this process, resumed, in slices, and through Ray Train."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.training.checkpoint import Keeper, Store
from model.training.loop import Loop
from model.training.probe import HEAD, HeldTensors, Labelled, ProbeRecipe, ProbeTask, probed, train_probe
from model.training.ray_train import Run, fit, team_of_ray
from model.training.recipe import Stage
from model.training.tracking import Tracker, read_history

CHANNELS, CLASSES = 6, 3


def made(count: int, seed: int) -> Labelled:
    """Noise in which a linear map decides the class of each cell; a tenth has no class, a cell of each no values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, CHANNELS, 4, 4, generator=generator)
    truth = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(9))
    classes = torch.einsum("kc,bchw->bkhw", truth, values).argmax(1)
    classes[torch.rand(classes.shape, generator=generator) < 0.1] = -1
    values[:, :, 0, 0] = torch.nan
    return Labelled(values, classes)


def recipe(**changes: Any) -> ProbeRecipe:
    stage = Stage("probe", batch=8, steps=60, optimiser="adamw", schedule="warmup_cosine", lr=0.05, warmup=5)
    values = {"ema": 0.9, "precision": "fp32", "evaluate_minutes": 60.0, "checkpoint_steps": 20} | changes
    return ProbeRecipe((stage,), **values)


def test_it_beats_chance_by_far_and_is_written(tmp_path: Path) -> None:
    held = [made(16, 2)]
    head, figures = train_probe(recipe(), CHANNELS, CLASSES, HeldTensors(made(64, 1)), held, out=tmp_path / "out")
    assert figures.places == int(held[0].classes[:, 1:].numel() + held[0].classes[:, 0, 1:].numel()) - int(
        (held[0].classes.flatten(1)[:, 1:] == -1).sum()
    )
    assert figures.accuracy > 0.9 > figures.chance + 0.2 and figures.balanced_accuracy > 0.85
    assert figures.mean_iou > 0.7 and figures.cross_entropy < 0.5
    kept = load_file(tmp_path / "out" / HEAD)
    assert all(torch.equal(kept[key], tensor) for key, tensor in head.state_dict().items())
    about = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert about["held_out"]["accuracy"] == figures.accuracy and about["head"]["classes"] == CLASSES


def test_figures_by_hand() -> None:
    head = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    values = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [torch.nan, 0.0]])
    figures = probed(head, [Labelled(values, torch.tensor([0, 0, 1, 1, 0]))])
    assert (figures.places, figures.accuracy, figures.chance) == (4, 0.75, 0.5)
    assert figures.balanced_accuracy == 0.75 and figures.mean_iou == pytest.approx((2 / 3 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="no labelled place"):
        probed(head, [Labelled(values, torch.full((5,), -1))])
    with pytest.raises(ValueError, match="need classes of"):
        Labelled(values, torch.zeros(5, 2))


def test_a_batch_without_labels_trains_nothing() -> None:
    data = made(8, 1)
    task = ProbeTask(CHANNELS, CLASSES)
    start = {key: tensor.clone() for key, tensor in task.module.state_dict().items()}
    source = HeldTensors(replace(data, classes=torch.full_like(data.classes, -1)))
    stage = Stage("s", batch=4, steps=3, lr=0.1)
    Loop(task, ProbeRecipe((stage,), precision="fp32"), source).run()
    assert all(torch.equal(start[key], tensor) for key, tensor in task.module.state_dict().items())


def test_a_source_of_tensors_gives_each_once_an_epoch_and_resumes() -> None:
    data = Labelled(torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64))

    def drawn(source: HeldTensors, batches: int) -> list[float]:
        return [v for _ in range(batches) for v in source.draw(3, 1).values[:, 0].tolist()]

    source = HeldTensors(data, seed=1)
    whole = drawn(source, 10)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3 and whole[:10] != whole[10:20]
    again = HeldTensors(data, seed=1)
    assert drawn(again, 4) == whole[:12]
    later = HeldTensors(data, seed=1)
    later.load_state_dict(again.state_dict())
    assert drawn(later, 6) == whole[12:]
    shares = [drawn(HeldTensors(data, share=(rank, 2)), 5)[:5] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(10))
    with pytest.raises(ValueError, match="shared by 11"):
        HeldTensors(data, share=(0, 11))


def test_a_probe_that_is_left_goes_on_to_the_same_head(tmp_path: Path) -> None:
    held = [made(8, 2)]
    whole, figures = train_probe(recipe(), CHANNELS, CLASSES, HeldTensors(made(32, 1)), held)

    class Killed(HeldTensors):
        def draw(self, batch_size: int, patch: int) -> Labelled:
            if self._epoch == 7:
                raise KeyboardInterrupt
            return HeldTensors.draw(self, batch_size, patch)

    url = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_probe(recipe(), CHANNELS, CLASSES, Killed(made(32, 1)), held, keeper=Store(url))
    torch.manual_seed(5)
    again, same = train_probe(recipe(), CHANNELS, CLASSES, HeldTensors(made(32, 1)), held, keeper=Store(url))
    assert same == figures
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="'classes': 4"):
        train_probe(recipe(), CHANNELS, 4, HeldTensors(made(32, 1)), held, keeper=Store(url))


def test_the_shipped_recipe_is_of_probes_alone(tmp_path: Path) -> None:
    from model.training.eo_vae.recipe import EOVAERecipe

    assert ProbeRecipe.load("probe").stages[0].optimiser == "adamw"
    with pytest.raises(ValueError, match="recipe for probe: eo-vae is trained here"):
        EOVAERecipe.load("probe")


def _worker(options: Mapping[str, Any], keeper: Keeper) -> None:
    torch.set_num_threads(1)
    team = team_of_ray(options["strategy"])
    tracker = Tracker(options["url"], "probe") if team.leads else None
    source = HeldTensors(made(32, 1))
    out = Path(options["out"])
    how: ProbeRecipe = options["recipe"]
    train_probe(how, CHANNELS, CLASSES, source, [made(8, 2)], out=out, team=team, keeper=keeper, tracker=tracker)
    if tracker is not None:
        tracker.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_of_ray_train_equal_one(tmp_path: Path, ray_local: None, strategy: str) -> None:
    """One batch in slices: the head is nearly the same (each worker's mean is over its own labelled cells)."""
    how = replace(recipe(division="slices"), stages=(replace(recipe().stages[0], steps=40),))
    one, figures = train_probe(how, CHANNELS, CLASSES, HeldTensors(made(32, 1)), [made(8, 2)])
    run = Run("probe", str(tmp_path / "runs"), workers=2)
    out = tmp_path / "out"
    fit(_worker, {"url": run.url, "out": str(out), "recipe": how, "strategy": strategy}, run)
    two = load_file(out / HEAD)
    assert [line["step"] for line in read_history(run.url) if "loss" in line] == list(range(1, 41))
    accuracy = json.loads((out / "probe.json").read_text())["held_out"]["accuracy"]
    assert accuracy == pytest.approx(figures.accuracy, abs=0.03)
    state: Mapping[str, Tensor] = one.state_dict()
    assert all(float((two[key] - state[key]).norm()) < 0.1 * float(state[key].norm()) for key in state)
    assert {p.name for p in Path(run.url).glob("checkpoint_*/*")} >= {"state.pt", "rank-0000.pt", "rank-0001.pt"}
