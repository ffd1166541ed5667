"""Train an EO-VAE on local rasters with Ray Train; `--recipe nano` makes the shipped weights."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, slots=True)
class Options:
    """Train an EO-VAE on local rasters."""

    data: Annotated[Path, tyro.conf.arg(help="folder that the recipe's listing of sources is relative to")]
    out: Annotated[Path, tyro.conf.arg(help="safetensors file to write; a JSON with the held-out figures beside it")]
    recipe: Annotated[str, tyro.conf.arg(help="a recipe shipped with the package, or a YAML file")] = "nano"
    init: Annotated[str, tyro.conf.arg(help="linear (closed form), random, or weights to go on from")] = "linear"
    name: Annotated[str, tyro.conf.arg(help="name written into the weights, and of the Ray run")] = "nano"
    workers: Annotated[int, tyro.conf.arg(help="Ray Train workers (gloo on CPU, NCCL on GPU); 0: without Ray")] = 1
    gpu: Annotated[bool, tyro.conf.arg(help="one GPU a worker")] = False
    threads: Annotated[int | None, tyro.conf.arg(help="threads of each worker (default: torch's own)")] = None
    steps: Annotated[int | None, tyro.conf.arg(help="steps in all, shared out over the recipe's stages")] = None
    minutes: Annotated[float | None, tyro.conf.arg(help="minutes in all, shared out likewise")] = None
    storage: Annotated[Path, tyro.conf.arg(help="where Ray Train keeps checkpoints")] = Path("runs")


def _worker(options: dict[str, object]) -> None:
    """What each Ray Train worker runs: the loop, with checkpoints reported from rank 0."""
    import ray.train
    import torch

    from model.eo_vae import EOVAE
    from model.training.finetune import train
    from model.training.recipe import Job, Recipe

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe, job = Recipe.load(str(options["recipe"])), options["job"]
    if not isinstance(job, Job):
        raise TypeError("the job's description did not reach the worker")

    def report(losses: dict[str, float], averaged: EOVAE) -> None:
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(losses)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(averaged.state_dict(), Path(folder) / "averaged.pt")
            ray.train.report(losses, checkpoint=ray.train.Checkpoint.from_directory(folder))

    train(recipe, job, report)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad arguments."""
    from model.training.finetune import train
    from model.training.recipe import Job, Recipe

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = Recipe.load(options.recipe)
        if not options.data.is_dir():
            raise ValueError(f"no folder {options.data}: give the one the listing's paths are relative to")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    job = Job(
        options.data.resolve(), options.out.resolve(), options.init, options.name, options.minutes, options.steps,
        options.threads,
    )  # fmt: skip
    if options.workers == 0:
        train(recipe, job)
        return 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": options.recipe, "job": job},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(
            # a name used before would make Ray Train return that run's result
            name=f"{options.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=str(options.storage.resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=0),
        ),
        torch_config=TorchConfig(backend="nccl" if options.gpu else "gloo"),
    )
    trainer.fit()
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
