"""Train an EO-VAE: `--recipe nano` makes the shipped weights, `published` is stage 2, `--sensor` fits to your own."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import RunOptions, run_job

if TYPE_CHECKING:
    from model.eo_vae import EOVAE
    from model.sensors import TrainedSensor
    from model.training.checkpoint import Keeper
    from model.training.distributed import Team
    from model.training.eo_vae.feeds import Data
    from model.training.eo_vae.recipe import EOVAERecipe, Job
    from model.training.ray_train import Run


@dataclass(frozen=True, slots=True)
class Options(RunOptions):
    """Train an EO-VAE: from nothing, as published, or to a sensor or data of your own."""

    data: Annotated[str, tyro.conf.arg(help="folder or URL: what a listing's paths or shards are relative to, the "
                                       "folder of a sensor's GeoTIFFs, or a YAML data file that mixes shards, rasters, "
                                       "searches and cubes")]  # fmt: skip
    out: Annotated[str, tyro.conf.arg(help="safetensors file to write, a path or an fsspec URL; a JSON with the "
                                      "held-out figures beside it")]  # fmt: skip
    recipe: Annotated[str | None, tyro.conf.arg(help="nano, published, adapt, or a YAML file (default: nano; adapt "
                                                "with --sensor or a data file)")] = None  # fmt: skip
    sensor: Annotated[Path | None, tyro.conf.arg(help="YAML of a sensor of your own to finetune to")] = None
    listing: Annotated[Path | None, tyro.conf.arg(help="YAML listing of that sensor's rasters below --data")] = None
    init: Annotated[str | None, tyro.conf.arg(help="linear (closed form), random, or weights to go on from: a name, a "
                                              "path or a URL (default: "
                                              "linear for a listing's recipe, nano for adapt)")] = None  # fmt: skip
    name: Annotated[str, tyro.conf.arg(help="name written into the weights, and of the run: new for a new run")] = (
        field(default="nano", kw_only=True)
    )
    parallel: Annotated[Literal["ddp", "fsdp"], tyro.conf.arg(help="how workers share the network")] = "ddp"
    steps: Annotated[int | None, tyro.conf.arg(help="steps in all, shared out over the recipe's stages")] = None
    minutes: Annotated[float | None, tyro.conf.arg(help="minutes in all, shared out likewise")] = None
    precision: Annotated[Literal["bf16", "fp16", "fp32"] | None, tyro.conf.arg(help="of the body; default: the "
                                                                                "recipe's")] = None  # fmt: skip
    freeze_body: Annotated[bool, tyro.conf.arg(help="train the generated convolutions alone")] = False


PAGE = Page(
    (
        (
            "to a sensor of your own, from the shipped weights",
            "python jobs/finetune.py --sensor my.yaml --data my_tiffs --out my.safetensors --name my",
        ),
        (
            "to data of your own: shards, searches, cubes' sources, GeoTIFFs",
            "python jobs/finetune.py --data data.yaml --out mine.safetensors --name mine",
        ),
        ("go on with a run that was ended", "python jobs/finetune.py ... --name mine --resume"),
    ),
    {
        "What": ("data", "sensor", "listing", "recipe", "init", "out", "name"),
        "How long": ("steps", "minutes", "resume"),
    },
    ("data", "out", "name", "sensor", "recipe", "init", "steps", "minutes", "resume", "workers"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker is told: all that decides the run, read and checked by the driver. The weights are meant for `out`,
    a path or URL; a worker puts the file that it writes itself in `job.out`."""

    job: Job
    recipe: EOVAERecipe
    name: str
    out: str
    listing: Path | None = None
    sensor: TrainedSensor | None = None
    measure: bool = False
    form: tuple[float, float, float | None] = (1.0, 0.0, None)


def planned(options: Options) -> Plan:
    """The options as a plan. ValueError for what contradicts itself."""
    from model.training.checkpoint import check_out
    from model.training.eo_vae.adapt import with_job
    from model.training.eo_vae.recipe import EOVAERecipe, Job, limited

    for key in ("steps", "minutes", "threads"):
        value = getattr(options, key)
        if value is not None and value <= 0:
            raise ValueError(f"--{key} {value} must be above 0")
    mixed = _mixed(options.data)
    recipe_name = options.recipe or ("adapt" if options.sensor is not None or mixed else "nano")
    recipe = with_job(
        EOVAERecipe.load(recipe_name), freeze_body=True if options.freeze_body else None, precision=options.precision
    )
    local = recipe.listing != "" and options.sensor is None and not mixed
    if not local and not mixed and options.sensor is None and not recipe.shards:
        raise ValueError(f"recipe {recipe_name} names no data of its own: give --sensor, or a recipe with a listing")
    if recipe.corrected and options.sensor is not None and not mixed:
        raise ValueError(f"recipe {recipe_name} corrects TerraMesh's shards: --sensor reads rasters, take recipe adapt")
    init = options.init or ("linear" if local else "nano" if recipe.config is None else None)
    if init is None:
        raise ValueError(f"recipe {recipe_name} starts from weights: --init with those of jobs/distill.py, or a path")
    data: Path | str = options.data if "://" in options.data else Path(options.data).resolve()
    if isinstance(data, Path) and not (data.is_file() if mixed else data.is_dir()):
        raise ValueError(f"no {'file' if mixed else 'folder'} {options.data}: give the one that the data lie in")
    job = Job(
        data, Path(options.out), init, options.name, options.minutes, options.steps, options.threads,
        options.parallel,
    )  # fmt: skip
    plan = Plan(job, recipe if local else limited(recipe, job), recipe_name, check_out(options.out))
    return plan if options.sensor is None else _with_sensor(plan, options.sensor, options.listing)


def _mixed(data: Path | str) -> bool:
    """Whether `--data` is a data file (`model/training/sources/data_file.py`) rather than a folder or URL of data."""
    return Path(data).suffix.lower() in (".yaml", ".yml")


def _with_sensor(plan: Plan, path: Path, listing: Path | None) -> Plan:
    from eocube.sensors.sensor import WEIGHTS_UNITS
    from eocube.sensors.yaml_file import read_sensor
    from model.training.sources.statistics import trained_sensor

    described = read_sensor(path)
    factor, unit = WEIGHTS_UNITS[described.unit]
    sensor = trained_sensor(described, unit)
    absent = all(m == 0 for m in sensor.mean) and all(s == 1 for s in sensor.std)
    nodata = None if math.isnan(described.nodata) else described.nodata
    return replace(
        plan, sensor=sensor, measure=absent, listing=None if listing is None else listing.resolve(),
        form=(described.scale * factor, described.offset * factor, nodata),
    )  # fmt: skip


@contextmanager
def _listing(plan: Plan, sensor: TrainedSensor) -> Iterator[Path]:
    from model.training.eo_vae.feeds import listing_of_folder

    if plan.listing is not None:
        yield plan.listing
        return
    with listing_of_folder(Path(plan.job.data), sensor, *plan.form) as listing:
        yield listing


def opened(plan: Plan, vae: EOVAE, rank: int = 0, world: int = 1) -> Data:
    """The data of a plan for one worker. ValueError where there are none, or fewer bands than the sensor's."""
    from model.training.eo_vae.adapt import trained_sensors
    from model.training.eo_vae.feeds import from_file, rasters, terramesh, trained_as
    from model.training.sources.terramesh import MODALITIES

    known = trained_sensors(vae.meta)
    if _mixed(plan.job.data):
        from eocube.cube.patches import KINDS

        sensors = trained_as(plan.recipe, known)
        own = {} if plan.sensor is None else {plan.sensor.name: plan.sensor}
        measured = plan.sensor.name if plan.sensor is not None and plan.measure else None
        return from_file(plan.recipe, Path(plan.job.data), rank, world, sensors | own, KINDS, measure=measured)
    if plan.sensor is None:
        return terramesh(plan.recipe, str(plan.job.data), rank, world, trained_as(plan.recipe, known, list(MODALITIES)))
    with _listing(plan, plan.sensor) as listing:
        return rasters(plan.recipe, listing, Path(plan.job.data), plan.sensor, rank, world, measure=plan.measure)


def work(plan: Plan, url: str, keeper: Keeper, team: Team) -> None:
    """What one worker does, whether Ray started it or not."""
    from model.training.checkpoint import delivered, upload

    with delivered(plan.out, leads=team.leads) as out:
        _train(replace(plan, job=replace(plan.job, out=out)), url, keeper, team)
        if team.leads:  # `out` may be on a worker's own disk: the storage has it as well
            upload(url, "final", lambda folder: _copy(out, folder))


def _train(plan: Plan, url: str, keeper: Keeper, team: Team) -> None:
    from model.training.eo_vae.adapt import adapt, initial
    from model.training.eo_vae.finetune import train
    from model.training.tracking import Tracker

    tracker = Tracker(url, plan.job.name, {"recipe": plan.name}) if team.leads else None
    try:
        if plan.sensor is None and plan.recipe.listing and not _mixed(plan.job.data):
            train(plan.recipe, plan.job, team=team, keeper=keeper, tracker=tracker)
        else:
            vae = initial(plan.recipe, plan.job)
            data = opened(plan, vae, team.rank, team.world)
            adapt(plan.recipe, plan.job, vae, data, team=team, keeper=keeper, tracker=tracker)
    finally:
        if tracker is not None:
            tracker.close()


def _copy(out: Path, folder: Path) -> None:
    for path in (out, out.with_suffix(".json")):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def _ray_worker(options: Mapping[str, Any], keeper: Keeper) -> None:
    from model.training.ray_train import team_of_ray

    plan: Plan = options["plan"]
    work(plan, options["url"], keeper, team_of_ray(plan.job.parallel))


def run(plan: Plan, where: Run) -> None:
    """Check what can be checked, claim the run's name and do it."""
    from model.training.eo_vae.adapt import initial, known_sensors
    from model.training.eo_vae.feeds import try_out
    from model.training.ray_train import fit

    config = plan.recipe.config
    if plan.sensor is not None or plan.recipe.shards or _mixed(plan.job.data):
        vae = initial(plan.recipe, plan.job)
        config = vae.config
        data = opened(plan, vae)
        try_out(data, plan.recipe)
        strangers = [name for name in data.sensors if name not in known_sensors(vae.meta)]
        if strangers:
            logging.getLogger(__name__).info("%s: new to %s", ", ".join(strangers), plan.job.init)
    about = {
        "recipe": plan.name,
        "sensor": None if plan.sensor is None else plan.sensor.name,
        "corrected": plan.recipe.corrected or None,  # which runs from before there was a choice do not say
    }
    where.claim(about | {"config": None if config is None else config.to_dict()})
    if where.workers == 0:
        work(plan, where.url, where.store(), where.team(plan.job.parallel))
    else:
        fit(_ray_worker, {"plan": plan, "url": where.url}, where)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""

    def work_and_tell() -> None:
        plan = planned(options)
        run(plan, options.where())
        print("\n".join(ended(plan, options)))

    return run_job(work_and_tell)


def ended(plan: Plan, options: Options) -> list[str]:
    """What a run wrote, how good it is, and how to go on with it."""
    import fsspec

    from eocube.commands.answers import command_name

    out, figures = options.out, f"{options.out.removesuffix('.safetensors')}.json"
    lines = [f"written: {out}, figures in {figures}"]
    try:
        with fsspec.open(figures, "r") as file:
            held = dict(json.load(file).get("held_out") or {})
    except (OSError, ValueError):  # on a worker's own disk: the run's storage has both
        lines[0] = f"written: {out}; on a cluster also final/ of the run's storage, {options.storage}/{options.name}"
        held = {}
    for name, row in held.items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float | int))
        lines.append(f"held out, {name}: {shown}" if shown else f"held out, {name}: in {figures}")
    if not held and not lines[0].endswith(options.name):
        lines.append("no held-out figures: the data lie in too few blocks of ground to keep some out")
    sensor = "" if plan.sensor is None else f" --sensor {options.sensor}"
    lines.append("next:")
    if plan.sensor is not None:
        judge = f"python jobs/evaluate.py --weights {out}{sensor} --data {options.data} --out report"
        lines.append(f"  {judge}  # beside a KLT and 8 x 8 means, by band")
    where = "--bbox W S E N --datetime A/B --out cube.zarr"
    catalog = "" if plan.sensor is None else " --catalog YOUR/catalog.json"
    lines.append(f"  {command_name()} encode{sensor} --weights {out}{catalog} {where}  # encode with it")
    return lines


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], "finetune.py", PAGE)))
