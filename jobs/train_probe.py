"""Probe what cubes hold: `python jobs/train_probe.py --cubes s3://bucket/a.zarr --name greens --out probe`.

A linear head learns from stored values alone which NDVI class the decoded pixels of each cell are of; the figures are
of blocks of ground that it has not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import RunOptions, run_job

if TYPE_CHECKING:
    from eocube.cube.cell_classes import ClassifiedBatches
    from eocube.net.redaction import SecretOptions
    from model.training.checkpoint import Keeper
    from model.training.distributed import Team
    from model.training.probe import Labelled, ProbeFigures, ProbeRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(RunOptions):
    """A linear probe of cubes' values, trained on the loop that every network uses."""

    cubes: Annotated[tuple[str, ...], tyro.conf.arg(help="URLs of cubes of one space")]
    out: Annotated[Path, tyro.conf.arg(help="folder for the head and its figures on held-out ground")]
    recipe: Annotated[str, tyro.conf.arg(help="a shipped recipe or a YAML file; its first stage's patch is the side of "
                                         "a patch in cells")] = "probe"  # fmt: skip
    thresholds: Annotated[tuple[float, ...], tyro.conf.arg(help="rising NDVI between the classes")] = (0.2, 0.5)
    block: Annotated[float, tyro.conf.arg(help="metres a side of a block of ground that is trained on or held out")] = (
        5000
    )
    margin: Annotated[float, tyro.conf.arg(help="metres between what is trained on and what is held out")] = 500
    held_out: Annotated[float, tyro.conf.arg(help="share of the blocks that is held out")] = 0.2
    steps: Annotated[int | None, tyro.conf.arg(help="steps of the first stage, in the recipe's stead")] = None
    storage_options: Annotated[tuple[str, ...], tyro.conf.arg(help="fsspec options of the cubes: JSON, name=value or "
                                                              "@file.json")] = ()  # fmt: skip


PAGE = Page(
    (
        (
            "a linear head on stored values",
            "python jobs/train_probe.py --cubes s3://bucket/a.zarr --name greens --out probe",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every worker is told."""

    recipe: ProbeRecipe
    cubes: tuple[str, ...]
    out: Path
    thresholds: tuple[float, ...]
    split: tuple[float, float, float]
    """Block and margin in metres, share held out."""
    threads: int | None
    options: SecretOptions | None


def planned(options: Options) -> Plan:
    """The recipe and the data as asked. ValueError where they do not fit."""
    from eocube.net.storage_options import parse_options
    from model.training.probe import ProbeRecipe

    recipe = ProbeRecipe.load(options.recipe)
    if options.steps is not None:
        recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=options.steps), *recipe.stages[1:]))
    return Plan(
        recipe, options.cubes, options.out.resolve(), options.thresholds,
        (options.block, options.margin, options.held_out), options.threads, parse_options(options.storage_options),
    )  # fmt: skip


def opened(plan: Plan, split: str, rank: int = 0, world: int = 1) -> ClassifiedBatches[Labelled]:
    """One worker's share of a split, "train" or "test"."""
    import torch

    from eocube.cube.cell_classes import ClassifiedBatches, NdviClasses
    from eocube.cube.window_stream import WindowStream
    from eocube.cube.windows import CubeWindows
    from model.training.probe import Labelled
    from model.training.sources.splits import BlockSplit

    block, margin, held_out = plan.split
    rule = BlockSplit(block, margin, {"train": 1 - held_out, "test": held_out}, plan.recipe.seed)
    windows = CubeWindows(
        plan.cubes, side=plan.recipe.stages[0].patch, split=(rule, split), seed=plan.recipe.seed, normalise="moments",
        storage_options=plan.options,
    )  # fmt: skip
    return ClassifiedBatches(
        WindowStream(windows, rank=rank, world=world),
        NdviClasses(windows, plan.thresholds, storage_options=plan.options),
        lambda values, classes: Labelled(torch.from_numpy(values), torch.from_numpy(classes)),
    )


def work(plan: Plan, url: str, keeper: Keeper, team: Team) -> ProbeFigures:
    """What one worker does, whether Ray started it or not; the figures on held-out ground."""
    import torch

    from model.training.probe import train_probe
    from model.training.tracking import Tracker

    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    rank, world = (team.rank, team.world) if plan.recipe.division == "shares" else (0, 1)
    train, test = opened(plan, "train", rank, world), opened(plan, "test")
    held_out = test.epoch(32)
    test.close()
    tracker = Tracker(url, "probe") if team.leads else None
    try:
        _, figures = train_probe(
            plan.recipe, train.windows.channels, train.classes.count, train, held_out, out=plan.out, team=team,
            keeper=keeper, tracker=tracker,
        )  # fmt: skip
        return figures
    finally:
        train.close()
        if tracker is not None:
            tracker.close()


def _ray_worker(options: Mapping[str, Any], keeper: Keeper) -> None:
    from model.training.ray_train import team_of_ray

    work(options["plan"], options["url"], keeper, team_of_ray("ddp"))


def run(options: Options) -> None:
    """Claim the run's name and do it."""
    from model.training.ray_train import fit

    plan, where = planned(options), options.where()
    opened(
        plan, "train", 0, max(1, where.workers) if plan.recipe.division == "shares" else 1
    )  # what cannot be is said now
    opened(plan, "test")
    where.claim({"recipe": options.recipe, "thresholds": list(plan.thresholds), "split": list(plan.split)})
    if where.workers == 0:
        figures = work(plan, where.url, where.store(), where.team())
        print(f"accuracy {figures.accuracy:.3f}, the commonest class alone {figures.chance:.3f}")
    else:
        fit(_ray_worker, {"plan": plan, "url": where.url}, where)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    return run_job(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], "train_probe.py", PAGE)))
