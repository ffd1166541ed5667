"""Stage 1: distil a FLUX.2 autoencoder's first and last convolution and write the EO-VAE that stage 2 starts from."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import RunOptions, run_job

if TYPE_CHECKING:
    from model.eo_vae import EOVAEConfig
    from model.training.checkpoint import Keeper
    from model.training.distributed import Team
    from model.training.eo_vae.stage1 import Distillation
    from model.training.ray_train import Run

GOOD = 1e-2


@dataclass(frozen=True, slots=True)
class Options(RunOptions):
    """Distil a FLUX.2 autoencoder into an EO-VAE."""

    teacher: Annotated[str, tyro.conf.arg(help="FLUX.2's ae.safetensors, original or diffusers layout: a path or URL")]
    out: Annotated[str, tyro.conf.arg(help="safetensors file to write, a path or an fsspec URL: give it to finetune.py "
                                      "as --init")]  # fmt: skip
    recipe: Annotated[str, tyro.conf.arg(help="stage 2's recipe: its config gives the network's sizes")] = "published"
    published: Annotated[bool, tyro.conf.arg(help="loss, rate and steps as published; slower, no better")] = False
    steps: Annotated[int | None, tyro.conf.arg(help="optimiser steps (default: 300; 5000 as published)")] = None
    name: Annotated[str, tyro.conf.arg(help="of the weights and of the run: a new one for a new run")] = field(
        default="distilled", kw_only=True
    )
    workers: Annotated[int, tyro.conf.arg(help="Ray Train workers; 0: without Ray")] = field(default=0, kw_only=True)
    licence: Annotated[str, tyro.conf.arg(help="written into the weights")] = "that of the FLUX.2 autoencoder given"


PAGE = Page(
    (("stage 1: from a FLUX.2 autoencoder", "python jobs/distill.py --teacher ae.safetensors --out start.safetensors"),)
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker is told."""

    teacher: str
    out: str
    config: EOVAEConfig
    how: Distillation
    name: str
    licence: str
    threads: int | None


def planned(options: Options) -> Plan:
    """The options as a plan. ValueError for a recipe without sizes."""
    from model.training.checkpoint import absolute, check_out
    from model.training.eo_vae.recipe import EOVAERecipe
    from model.training.eo_vae.stage1 import Distillation

    config = EOVAERecipe.load(options.recipe).config
    if config is None:
        raise ValueError(f"recipe {options.recipe} states no config: name the recipe that stage 2 will use")
    how = Distillation.published() if options.published else Distillation()
    if options.steps is not None:
        how = replace(how, steps=options.steps)
    teacher, out = absolute(options.teacher), check_out(options.out)
    return Plan(teacher, out, config, how, options.name, options.licence, options.threads)


def work(plan: Plan, url: str, keeper: Keeper, team: Team) -> None:
    """What one worker does, whether Ray started it or not."""
    import torch

    from model.training.checkpoint import delivered, upload
    from model.training.eo_vae.stage1 import distil_teacher, read_teacher, save_distilled
    from model.training.tracking import Tracker

    if plan.threads:
        torch.set_num_threads(plan.threads)
    vae, teacher = read_teacher(plan.teacher, plan.config, plan.how.seed)
    tracker = Tracker(url, plan.name) if team.leads else None
    try:
        errors = distil_teacher(vae, teacher, plan.how, team=team, keeper=keeper, tracker=tracker)
    finally:
        if tracker is not None:
            tracker.close()
    if team.leads:
        with delivered(plan.out) as out:
            save_distilled(vae, out, errors, plan.name, plan.licence)
            # `out` may be on a worker's own disk: the storage has it as well
            upload(url, "final", lambda folder: shutil.copyfile(out, folder / out.name))
        mean = sum(errors.values()) / len(errors)
        said = ", ".join(f"{k} {v:.5f}" for k, v in errors.items())
        verdict = "" if mean <= GOOD else f": above {GOOD:g}, give it more --steps"
        logging.getLogger(__name__).info(
            "mean relative error %.5f (%s)%s; written to %s", mean, said, verdict, plan.out
        )


def _ray_worker(options: Mapping[str, Any], keeper: Keeper) -> None:
    from model.training.ray_train import team_of_ray

    work(options["plan"], options["url"], keeper, team_of_ray("ddp"))


def run(plan: Plan, where: Run) -> None:
    """Check the teacher, claim the run's name and do it."""
    from model.training.eo_vae.stage1 import read_teacher
    from model.training.ray_train import fit

    read_teacher(plan.teacher, plan.config)
    where.claim({"stage": 1, "config": plan.config.to_dict(), "loss": plan.how.loss, "steps": plan.how.steps})
    if where.workers == 0:
        work(plan, where.url, where.store(), where.team())
    else:
        fit(_ray_worker, {"plan": plan, "url": where.url}, where)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    return run_job(lambda: run(planned(options), options.where()))


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], "distill.py", PAGE)))
