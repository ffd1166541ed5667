"""Reproduce the paper under one name: distil, finetune, evaluate, one after another; `--cost` reckons it beforehand."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import RunOptions, run_job

if TYPE_CHECKING:
    from model.training.chain import Chain
    from model.training.eo_vae.recipe import EOVAERecipe
    from model.training.ray_train import Run

log = logging.getLogger(__name__)
DISTIL, FINETUNE, EVALUATE = "distil", "finetune", "evaluate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(RunOptions):
    """Distil a FLUX.2 autoencoder, finetune it on TerraMesh, evaluate it: one command, one name, resumable.

    The runs are NAME-distil and NAME-finetune; NAME itself keeps which stages are finished.
    """

    out: Annotated[str, tyro.conf.arg(help="folder or fsspec URL: gets NAME.safetensors, NAME-distil.safetensors and "
                                      "NAME-evaluation, or cost.json")]  # fmt: skip
    name: Annotated[str, tyro.conf.arg(help="of the weights and the runs: a new one for a new reproduction")] = "eo_vae"
    teacher: Annotated[str | None, tyro.conf.arg(help="FLUX.2's ae.safetensors: a path or URL")] = None
    data: Annotated[str | None, tyro.conf.arg(help="TerraMesh: the folder or URL that holds train and val")] = None
    recipe: Annotated[str, tyro.conf.arg(help="published, published_corrected (EO-VAE*), or a YAML file")] = "published"
    test_shards: Annotated[str | None, tyro.conf.arg(help="what is evaluated, as a pattern below --data (default: the "
                                                     "recipe's held-out shards)")] = None  # fmt: skip
    limit: Annotated[int | None, tyro.conf.arg(help="evaluate the first so many samples of each modality")] = None
    steps: Annotated[int | None, tyro.conf.arg(help="steps of finetuning (default: the recipe's)")] = None
    distil_steps: Annotated[int | None, tyro.conf.arg(help="steps of distilling (default: distill.py's)")] = None
    cost: Annotated[bool, tyro.conf.arg(help="train nothing: time a few steps here, count FLOPs, write cost.json")] = (
        False
    )
    gpus: Annotated[int, tyro.conf.arg(help="of --cost: how many GPUs")] = 8
    gpu_tflops: Annotated[float, tyro.conf.arg(help="of --cost: TFLOP/s that a GPU sustains, an assumption")] = 100.0
    dollars_per_gpu_hour: Annotated[float, tyro.conf.arg(help="of --cost: a price, an assumption")] = 3.0


PAGE = Page(
    (
        (
            "distil, finetune and evaluate under one name",
            "python jobs/reproduce.py --teacher ae.safetensors --data s3://bucket/TerraMesh --out eo_vae --name eo_vae",
        ),
        ("what it would cost, before", "python jobs/reproduce.py --cost --out cost"),
        ("go on where it was ended", "python jobs/reproduce.py ... --name eo_vae --resume"),
    )
)


@dataclass(frozen=True, slots=True)
class Made:
    """Weights of a stage: `final` in the run's storage, which every node can read; `out` where the user wants them."""

    final: str
    out: str


def checked(options: Options) -> tuple[EOVAERecipe, str]:
    """The recipe and the pattern of what is evaluated; one shard of each pattern is looked into, so that a wrong URL is
    told before hours of training. ValueError for what cannot be done as asked."""
    from model.training.checkpoint import absolute, check_out
    from model.training.eo_vae.feeds import first_look
    from model.training.eo_vae.recipe import EOVAERecipe

    for key in ("teacher", "data"):
        if getattr(options, key) is None:
            raise ValueError(f"--{key} is missing: only --cost does without it")
    for key in ("steps", "distil_steps", "limit"):
        if getattr(options, key) is not None and getattr(options, key) < 1:
            raise ValueError(f"--{key.replace('_', '-')} {getattr(options, key)} must be 1 or more")
    recipe = EOVAERecipe.load(options.recipe)
    if not recipe.shards or recipe.config is None:
        raise ValueError(f"recipe {options.recipe} states no shards or no config: take published, or a recipe like it")
    pattern = options.test_shards or recipe.held_out_shards
    if not pattern:
        raise ValueError(f"recipe {options.recipe} holds no shards out: say what to evaluate with --test-shards")
    check_out(f"{_folder(options.out)}/{options.name}.safetensors")
    data = absolute(str(options.data))
    if "://" not in data and not Path(data).is_dir():
        raise ValueError(f"no folder {options.data}: give the one that holds TerraMesh's train and val")
    for each in dict.fromkeys((recipe.shards, recipe.held_out_shards, pattern)):
        if each:
            first_look(recipe, data, each)
    return recipe, pattern


def reproduce(options: Options) -> None:
    """Do what is not done yet of the three stages. Killed anywhere and called again with `resume`, it ends the same."""
    from model.training.chain import Chain
    from model.training.checkpoint import absolute, started
    from model.training.eo_vae.stage1 import read_teacher
    from model.training.ray_train import RunError

    recipe, pattern = checked(options)
    whole = options.where()
    for stage in (DISTIL, FINETUNE):
        url = replace(whole, name=f"{options.name}-{stage}").url
        if not options.resume and started(url):
            raise RunError(f"{url} holds a run of this name: --resume goes on with it, another --name begins anew")
    if not options.resume:
        read_teacher(absolute(str(options.teacher)), recipe.config)
    whole.claim({"recipe": options.recipe, "steps": options.steps, "distil_steps": options.distil_steps})
    chain = Chain(whole.url)
    start = distil(options, chain)
    weights = finetune(options, chain, start.final)
    evaluate(options, chain, recipe, pattern, weights.final)


def distil(options: Options, chain: Chain) -> Made:
    """Stage 1, unless it is finished."""
    from jobs import distill

    where = _where(options, DISTIL)
    made = _made(options, where, f"{options.name}-{DISTIL}.safetensors")

    def run() -> None:
        assert options.teacher is not None
        # no data: more workers would all compute the same
        asked = distill.Options(
            options.teacher, made.out, options.recipe, steps=options.distil_steps, name=where.name,
            threads=options.threads,
        )  # fmt: skip
        distill.run(distill.planned(asked), replace(where, workers=min(1, where.workers)))

    _stage(chain, DISTIL, made, run)
    return made


def finetune(options: Options, chain: Chain, init: str) -> Made:
    """Stage 2 from the weights `init`, unless it is finished; its weights bear the name without a stage."""
    from jobs import finetune as job

    where = _where(options, FINETUNE)
    made = _made(options, where, f"{options.name}.safetensors")

    def run() -> None:
        assert options.data is not None
        asked = job.Options(
            options.data, made.out, options.recipe, init=init, name=options.name, steps=options.steps,
            threads=options.threads,
        )  # fmt: skip
        job.run(job.planned(asked), where)

    _stage(chain, FINETUNE, made, run)
    return made


def evaluate(options: Options, chain: Chain, recipe: EOVAERecipe, pattern: str, weights: str) -> None:
    """The figures of `weights`, unless they are there; other shards or another limit do it anew."""
    from model.training.chain import digest
    from model.training.checkpoint import absolute, upload

    folder = f"{options.name}-evaluation"
    report = f"{_folder(options.out)}/{folder}/report.json"
    asked = {"shards": pattern, "limit": options.limit, "weights": digest(weights)}
    if chain.finished(EVALUATE, report, asked):
        log.info("%s is finished: %s", EVALUATE, report)
        return

    def write(out: Path) -> None:
        shards = f"{absolute(str(options.data)).rstrip('/')}/{pattern}"
        score(
            shards, weights, out, side=recipe.stages[-1].patch, corrected=recipe.corrected, limit=options.limit,
            threads=options.threads,
        )  # fmt: skip

    if "://" in options.out:
        upload(_folder(options.out), folder, write)
    else:
        write(Path(report).parent)
    chain.note(EVALUATE, report, asked)
    log.info("%s: %s", EVALUATE, report)


def score(
    shards: str, weights: str, out: Path, *, side: int = 256, corrected: bool = False, limit: int | None = None,
    threads: int | None = None,
) -> None:  # fmt: skip
    """What `jobs/evaluate.py` writes of weights on TerraMesh's shards, brought to `side` px, into the folder `out`."""
    from jobs import evaluate as job
    from model.training.eo_vae.feeds import modalities_of

    job.evaluate(
        job.Options(
            data=None, terramesh=shards, out=out, weights=weights, modalities=tuple(modalities_of(shards)),
            limit=limit, side=side, corrected=corrected, threads=threads,
        )
    )  # fmt: skip


def reckon(options: Options) -> None:
    """Print what the recipe costs, and write it to `out`/cost.json."""
    import torch

    from model.training.checkpoint import replace_file
    from model.training.eo_vae.cost import Assumptions, cost_of
    from model.training.eo_vae.recipe import EOVAERecipe, Job, limited
    from model.training.eo_vae.stage1 import Distillation

    recipe = EOVAERecipe.load(options.recipe)
    recipe = limited(recipe, Job(Path(), Path(), steps=options.steps))
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assumed = Assumptions(options.gpus, options.gpu_tflops, options.dollars_per_gpu_hour)
    cost = cost_of(Path(options.recipe).stem, recipe, options.distil_steps or Distillation().steps, assumed, device)
    replace_file(_folder(options.out), "cost.json", (json.dumps(cost.to_dict(), indent=1) + "\n").encode())
    print(cost.table())


def _where(options: Options, stage: str) -> Run:
    """The run of a stage: gone on with where it has begun."""
    from model.training.checkpoint import started

    run = replace(options.where(), name=f"{options.name}-{stage}")
    return replace(run, resume=started(run.url))


def _made(options: Options, where: Run, file: str) -> Made:
    return Made(f"{where.url}/final/{file}", f"{_folder(options.out)}/{file}")


def _stage(chain: Chain, stage: str, made: Made, run: Callable[[], None]) -> None:
    """Run it unless it is finished; then its weights lie at both places, also where a worker's disk is not this one."""
    from model.training.chain import digest

    if chain.finished(stage, made.final, {}):
        log.info("%s is finished: %s", stage, made.out)
    else:
        log.info("%s begins", stage)
        run()
        chain.note(stage, made.final, {})
    if digest(made.out) != digest(made.final):
        _fetch(made)


def _fetch(made: Made) -> None:
    from model.training.chain import fresh
    from model.training.checkpoint import delivered

    with delivered(made.out) as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".safetensors", ".json"):
            fs, source = fresh(made.final.removesuffix(".safetensors") + suffix)
            if fs.exists(source):
                fs.get_file(source, str(path.with_suffix(suffix)))


def _folder(out: str) -> str:
    from model.training.checkpoint import absolute

    return absolute(out).rstrip("/")


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    return run_job(lambda: reckon(options) if options.cost else reproduce(options))


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], "reproduce.py", PAGE)))
