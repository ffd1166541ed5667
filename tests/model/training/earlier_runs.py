"""Tiny runs of each kind of training, as they were begun before the loop knew tasks: how each is made, by seed.

`python -m tests.model.training.earlier_runs` records them anew under tests/data/runs: a checkpoint half way, and the
history and the weights of the undisturbed run at its end. What is there was recorded by the loop of November 2026
before `Task`; record again only where a change of results is meant.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from jobs.finetune import main
from model.eo_vae import EOVAE, EOVAEConfig
from model.training.checkpoint import Store, read_snapshot
from model.training.eo_vae.recipe import EOVAERecipe, EOVAEStage
from model.training.eo_vae.stage1 import Distillation, Teacher, distil_teacher
from model.training.tracking import Tracker, read_history
from model.weights import load_weights
from tests.model.training.batches import Random, looped
from tests.model.training.conftest import make_world
from tests.model.training.finetuning import short_finetuning

RUNS = Path(__file__).parents[2] / "data" / "runs"
MINIMAL = EOVAEConfig(
    ch=4, ch_mult=(1, 1), num_res_blocks=1, z_channels=2, norm_groups=1, hypernet_layers=1, wavelength_dim=8,
    hypernet_ff=8, hypernet_heads=2,
)  # fmt: skip
State = dict[str, Tensor]


def loop(folder: Path) -> State:
    """The loop by itself: Muon on the skeleton, Muon with all disturbances, Adam; an average, random sensors."""
    shared: dict[str, Any] = {"batch": 4, "patch": 16, "margin": 0, "warmup": 2}
    plain = {"charbonnier": 1.0}
    stages = (
        EOVAEStage("skeleton", steps=2, skeleton=True, **shared),
        EOVAEStage("all", steps=4, accumulate=2, sample=True, latent_noise=0.1, equivariance=0.5, loss=plain, **shared),
        EOVAEStage("adam", steps=3, optimiser="adam", schedule="warmup_cosine", loss=plain, lr=1e-3, **shared),
    )
    how = EOVAERecipe(
        config=MINIMAL, stages=stages, precision="fp32", ema=0.9, clip=1.0, evaluate_minutes=60.0, checkpoint_steps=4
    )
    torch.manual_seed(0)
    url = str(folder / "run")
    tracker = Tracker(url, "run")
    run = looped(EOVAE(MINIMAL), how, Random(5, mixed=True), keeper=Store(url, keep=9), tracker=tracker)
    with Store(url).restore() as checkpoint:
        if checkpoint is not None:
            run.resume(read_snapshot(checkpoint, 0, sliced=False))
    averaged = run.run()
    tracker.close()
    return averaged.state_dict()


def nano(folder: Path) -> State:
    """The recipe of the shipped weights, from a random start: free kernels, a skeleton, then all."""
    listing, data = make_world(folder / "world")
    stages: list[dict[str, Any]] = [
        dict(name="skeleton", steps=3, batch=2, patch=32, skeleton=True, margin=4, warmup=2),
        dict(name="all", steps=3, batch=2, patch=32, margin=4, warmup=2,
             loss=dict(relative_error=1.0, relative_angle=0.5, charbonnier=0.5)),
    ]  # fmt: skip
    recipe = dict(
        config=MINIMAL.to_dict() | {"ch_mult": [1, 1, 1, 1]}, listing=str(listing), stages=stages, precision="fp32",
        mix=dict(S2L2A=0.6, S1RTC=0.4), free_kernels=True, checkpoint_steps=4, evaluate_minutes=60, dtype="float32",
    )  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return _job(
        folder, str(data), "--recipe", "tiny.yaml", "--init", "random", "--name", "tiny", "--out", "tiny.safetensors"
    )


def adapt(folder: Path) -> State:
    """A finetuning to a sensor of one's own, from weights."""
    options = short_finetuning(folder, checkpoint_steps=2, config=MINIMAL)
    return _job(
        folder, options.data, "--recipe", "short.yaml", "--sensor", "dove.yaml", "--init", "tiny.safetensors",
        "--name", "dove", "--out", "dove.safetensors",
    )  # fmt: skip


def _job(folder: Path, data: str, *arguments: str) -> State:
    import tyro

    from jobs.finetune import Options

    begun = (folder / "run").is_dir()
    asked = ["--data", data, "--workers", "0", "--threads", "1", "--storage", "runs", "--keep", "9", *arguments]
    options = tyro.cli(Options, args=[*asked, *(["--resume"] if begun else [])])
    runs = folder / "runs"
    runs.mkdir()
    if begun:
        (folder / "run").rename(runs / options.name)
    before = Path.cwd()
    os.chdir(folder)  # a run's description names its recipe as it was given
    try:
        assert main(options) == 0
    finally:
        os.chdir(before)
    (runs / options.name).rename(folder / "run")
    return load_weights(folder / Path(options.out).name).state_dict()


def distillation(folder: Path) -> State:
    """Stage 1: the generators towards four tensors."""
    torch.manual_seed(0)
    vae = EOVAE(MINIMAL)
    ch = MINIMAL.ch
    shapes = ((ch, 3, 3, 3), (ch,), (3, ch, 3, 3), (3,))
    teacher = Teacher(tuple(0.2 * torch.randn(shape) for shape in shapes))  # type: ignore[arg-type]
    url = str(folder / "run")
    tracker = Tracker(url, "run")
    how = Distillation(steps=9, warmup=3, checkpoint_steps=4)
    distil_teacher(vae, teacher, how, keeper=Store(url, keep=9), tracker=tracker)
    tracker.close()
    return vae.state_dict()


KINDS: dict[str, tuple[Callable[[Path], State], int]] = {
    "loop": (loop, 4), "nano": (nano, 4), "adapt": (adapt, 2), "distillation": (distillation, 4),
}  # fmt: skip
"""How a run is made, and the step of the checkpoint that is kept of it."""


def record(kind: str) -> None:
    """Do the whole run; keep its checkpoint, the history and the weights of its end in one archive."""
    make, kept = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as parts:
        state = make(Path(folder))
        run, there = Path(folder) / "run", Path(parts)
        name = f"checkpoint_{kept:09d}"
        shutil.copytree(run / name, there / "run" / name)
        (there / "run" / "latest.json").write_text(json.dumps({"checkpoint": name, "metrics": {}}))
        for file in ("run.json", "history.jsonl"):
            if (run / file).is_file():
                shutil.copyfile(run / file, there / "run" / file)
        (there / "history.json").write_text(json.dumps(read_history(str(run))))
        torch.save(state, there / "end.pt")
        RUNS.mkdir(exist_ok=True)
        shutil.make_archive(str(RUNS / kind), "zip", there)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or KINDS:
        record(each)
